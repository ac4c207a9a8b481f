"""The process that `measure_peak_memory` starts. It imports nothing of this package.

It prints one line of JSON: the peak memory before the model is loaded, and after it has run.
"""

import gc
import json
import sys
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main(folder: Path, threads: int) -> None:
    """Load and run the model that is in `folder`, and print what that took."""
    torch.set_num_threads(threads)
    # The first run of any model loads kernels and starts threads, which is not this model's doing.
    _run(folder / "nothing.pt2", folder / "nothing.pt")
    args, kwargs = torch.load(folder / "inputs.pt", weights_only=True)
    gc.collect()
    reset_peak()
    before = peak_bytes()
    model = torch.export.load(folder / "model.pt2").module()
    gc.collect()
    # What the loader needs for a moment is the loader's; what stays is the model's.
    reset_peak()
    with torch.no_grad():
        model(*args, **kwargs)
    print(json.dumps({"before": before, "after": peak_bytes()}))


def peak_bytes() -> int:
    """Return the highest resident memory of this process so far (on Linux: since the reset)."""
    if _STATUS.exists():
        # Not `ru_maxrss`: on Linux that starts with the memory of the parent process.
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak() -> None:
    """Forget the peak so far, where the system can."""
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def _run(model: Path, inputs: Path) -> None:
    args, kwargs = torch.load(inputs, weights_only=True)
    with torch.no_grad():
        torch.export.load(model).module()(*args, **kwargs)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
