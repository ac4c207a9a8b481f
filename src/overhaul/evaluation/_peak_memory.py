"""`measure_peak_memory`: what it takes to hold and run a model, in a process of its own."""

import sys
import tempfile
import warnings
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from overhaul.core import PLAIN, Batch, Outputs, evaluating, unwrap_outputs
from overhaul.evaluation import _peak_memory_process
from overhaul.evaluation._measured_apart import measured_apart
from overhaul.evaluation._model_device import model_device


@dataclass(frozen=True)
class PeakMemory:
    """The memory that a model takes.

    Attributes:
        bytes: Highest resident memory, less that of the same process without the model; None
            where it could not be measured.
        reason: Why not.
    """

    bytes: int | None
    reason: str | None = None


def measure_peak_memory(
    model: nn.Module, batch: Batch, *, threads: int = 1, timeout_s: float = 300.0
) -> PeakMemory:
    """Measure the highest resident memory of a fresh process that loads the model and runs a batch.

    The model is exported with `torch.export`, so that the process needs neither its source nor
    pickle. The process first runs an empty model, so that libraries, threads and kernels are there;
    what is measured is the difference from then on: weights, activations, work space. The
    inputs are not in it, nor is what the loader needs for a moment. On Linux it repeats to about
    1 MB. On macOS the peak cannot be reset, so that a model smaller than what the start of the
    process took for a moment shows as 0.

    Args:
        model: A copy of it is moved to the CPU if it is elsewhere.
        batch: Real inputs.
        threads: Threads of the process. Default 1.
        timeout_s: After so many seconds the process is ended and nothing is measured.
    """
    if model_device(model).type != "cpu":
        model = deepcopy(model).cpu()
    with tempfile.TemporaryDirectory(prefix="overhaul-") as name:
        folder = Path(name)
        args, kwargs = batch.to("cpu").arguments
        try:
            _export(model, args, kwargs, folder / "model.pt2")
        except Exception as error:
            return PeakMemory(None, f"torch.export cannot export this model: {_first_line(error)}")
        torch.save((args, kwargs), folder / "inputs.pt")
        nothing, zeros = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), torch.zeros(1, 1, 8, 8)
        _export(nothing, (zeros,), {}, folder / "nothing.pt2")
        torch.save(((zeros,), {}), folder / "nothing.pt")
        return _run(folder, threads, timeout_s)


def _run(folder: Path, threads: int, timeout_s: float) -> PeakMemory:
    # -P: the folder of the script is not to be searched for modules.
    command = [sys.executable, "-P", _peak_memory_process.__file__, str(folder), str(threads)]
    found = measured_apart(command, timeout_s=timeout_s)
    if isinstance(found, str):
        return PeakMemory(None, found)
    return PeakMemory(max(0, found["after"] - found["before"]))


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], path: Path) -> None:
    with evaluating(model), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.export.export(_OnlyTensors(model), args, kwargs)
        # The process knows torch's operations alone, and not those of integers.
        program = program.run_decompositions(dict(PLAIN))
        # They would be stored with the model and count as its memory.
        program.example_inputs = None
        torch.export.save(program, path)


class _OnlyTensors(nn.Module):
    """Returns no object of a library's class, which the process would have to know."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Outputs:
        return unwrap_outputs(self.model(*args, **kwargs))


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
