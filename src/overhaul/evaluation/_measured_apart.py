"""`measured_apart`: what a process of its own has measured."""

import json
import subprocess
from collections.abc import Sequence
from typing import Any


def measured_apart(command: Sequence[str], *, timeout_s: float = 300.0) -> dict[str, Any] | str:
    """Run a process that prints JSON as its last line, and return that; or why there is none.

    Args:
        command: With its arguments.
        timeout_s: After so many seconds the process is ended.

    Example:
        >>> import sys
        >>> program = "import json; print(json.dumps({'bytes': 5}))"
        >>> measured_apart([sys.executable, "-c", program])
        {'bytes': 5}
        >>> measured_apart([sys.executable, "-c", "raise SystemExit('no memory')"])
        'the process ended with code 1: no memory'
    """
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        return f"the process did not end within {timeout_s:g} s"
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return f"the process ended with code {done.returncode}: {last}"
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
