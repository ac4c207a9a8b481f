"""What the benchmarks of learning share: a run as a row, and what is found with `test` sealed."""

import json
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from scipy.stats import t as student_t
from torch import Tensor, nn

import overhaul as oh
from overhaul.core import CheckpointFolder, Context, Progress
from overhaul.evaluation import Predictions, predict

QUIET = Progress(quiet=True)


def without_test(
    step: oh.Step,
    model: nn.Module,
    task: oh.Task,
    folder: Path,
    seed: int,
    original: nn.Module | None = None,
) -> nn.Module:
    """Apply a step to a copy of the model; the test split stays sealed, which a run would open.

    The original, from which the model may learn, is the model itself if none is given.
    """
    ctx = Context(
        task=task,
        data=task.prepare(),
        original=model if original is None else original,
        checkpoints=CheckpointFolder(folder),
        artifact_folder=folder / "artifact",
        seed=seed,
        progress=QUIET,
    )
    return step.apply(deepcopy(model), ctx).eval()


def on_val(step: oh.Step, model: nn.Module, task: oh.Task, folder: Path, seed: int) -> float:
    """Return the task's number on `val` after a step, chosen and judged without the test split."""
    made = without_test(step, model, task, folder, seed)
    found = predict(made, task.prepare().val)
    return task.metrics(found.outputs, found.targets)[task.selection_metric]


def row(run: oh.Run) -> dict[str, Any]:
    """Return what a run has shown, with its own words."""
    original, control = run.verdict.original, run.verdict.control
    assert original is not None
    assert control is not None
    return {
        "says": str(run.verdict).splitlines(),
        "n": control.n,
        "test_opened": run.verdict.test_opened,
        "teacher": original.reference_value,
        "student": control.value,
        "control": control.reference_value,
        "difference": control.difference,
        "interval": control.interval,
        "effect": control.effect,
        "against_teacher": {"difference": original.difference, "interval": original.interval},
    }


def control_of(run: oh.Run, teacher: nn.Module) -> nn.Module:
    """Return the control's network of a run."""
    return oh.load_model(run.folder.path / "control", teacher).eval()


def over_seeds(values: Sequence[float]) -> tuple[float, float]:
    """Return the mean over seeds and half of its 95 % interval (Student's t)."""
    half = float(student_t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return mean(values), half


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def write(path: Path, results: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(results, indent=1) + "\n")


def points(difference: float, interval: tuple[float, float] | list[float]) -> str:
    low, high = interval
    return f"{100 * difference:+.2f} ({100 * low:+.2f} to {100 * high:+.2f})"


def errors(found: Predictions) -> Tensor:
    """Return which samples are wrong, `[N]`."""
    assert isinstance(found.outputs, Tensor)
    assert isinstance(found.targets, Tensor)
    return found.outputs.argmax(1) != found.targets
