"""`artifact_cost`: how long an artifact takes to open, and how much memory to run."""

import sys
from dataclasses import dataclass
from pathlib import Path

from overhaul.evaluation import measured_apart

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
    found = measured_apart(command)
    if isinstance(found, str):
        return ArtifactCost(None, None, found)
    return ArtifactCost(found["load_s"], max(0, found["peak_bytes"]))
