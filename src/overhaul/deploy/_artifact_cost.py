"""`artifact_cost`: how long an artifact takes to open, and how much memory to run."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

_TIMEOUT_S = 300.0
_PROCESS = "from overhaul.deploy._artifact_process import main; main()"


@dataclass(frozen=True)
class ArtifactCost:
    """What it takes to open an artifact and run its golden samples, in a fresh process.

    Attributes:
        load_s: From the folder to a model that can be called. Importing packages is not in it.
        peak_bytes: Highest resident memory from opening to the first result, less that before.
        reason: Why they could not be measured.
    """

    load_s: float | None
    peak_bytes: int | None
    reason: str | None = None


def artifact_cost(path: Path, *, threads: int) -> ArtifactCost:
    """Measure in a process of its own.

    Args:
        path: The artifact's folder, one that was written here: it may be executed.
        threads: Threads of a call.
    """
    command = [sys.executable, "-c", _PROCESS, str(path), str(threads)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return ArtifactCost(None, None, f"the process did not end within {_TIMEOUT_S:g} s")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return ArtifactCost(None, None, f"the process ended with code {done.returncode}: {last}")
    found = json.loads(done.stdout.splitlines()[-1])
    return ArtifactCost(found["load_s"], max(0, found["peak_bytes"]))
