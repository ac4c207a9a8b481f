"""A tiny task over rows of tensors."""

from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn

from overhaul.core import (
    Batch,
    Context,
    Fact,
    Outputs,
    SealedSplit,
    Split,
    SplitName,
    Splits,
    Targets,
    Task,
)

Inputs = tuple[Tensor, ...] | dict[str, Tensor]


class Rows(Split):
    """Samples that are rows of tensors."""

    def __init__(self, name: SplitName, inputs: Inputs, targets: Targets) -> None:
        self.name = name
        self._all = Batch(inputs, targets, torch.arange(len(_first(inputs))))

    def __len__(self) -> int:
        return len(self._all)

    def read(self, indices: Tensor) -> Batch:
        rows = self._all.map_tensors(lambda tensor: tensor[indices])
        return Batch(rows.inputs, rows.targets, indices)

    def batches(self, index_batches: list[Tensor], workers: int = 0) -> Iterator[Batch]:
        return map(self.read, index_batches)

    @property
    def fingerprint(self) -> str:
        return "rows"


class Sealed(SealedSplit):
    """A test split that nobody needs here."""

    def __len__(self) -> int:
        return 1

    def open(self) -> Split:
        raise AssertionError("deploying opened the test split")

    @property
    def fingerprint(self) -> str:
        return "sealed"


class RowTask(Task):
    """Accuracy over classes; with a dict of outputs the mean over its entries.

    Every split but the test split holds all rows.
    """

    inputs: Any
    targets: Any

    def prepare(self) -> Splits:
        rows = [Rows(name, self.inputs, self.targets) for name in ("train", "val")]
        return Splits(rows[0], rows[1], Sealed())

    @property
    def output_kind(self) -> Literal["classes", "labels", "values"]:
        return "classes"

    def output_size(self, data: Splits) -> int:
        return 3

    @property
    def selection_metric(self) -> str:
        return "accuracy"

    @property
    def higher_is_better(self) -> bool:
        return True

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        return torch.stack(list(self.losses(outputs, targets).values())).mean()

    def losses(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        return {
            name: nn.functional.cross_entropy(output, target)
            for name, (output, target) in _pairs(outputs, targets)
        }

    def metrics(self, outputs: Outputs, targets: Targets) -> dict[str, float]:
        hits = [(o.argmax(1) == t).float().mean() for _, (o, t) in _pairs(outputs, targets)]
        return {"accuracy": float(torch.stack(hits).mean())}

    def sample_scores(self, outputs: Outputs, targets: Targets) -> Tensor | None:
        return None

    def problem_with(self, outputs: Outputs, batch: Batch) -> str | None:
        return None

    def predictions(self, outputs: Outputs) -> Any:
        if isinstance(outputs, dict):
            return {name: output.argmax(1) for name, output in outputs.items()}
        return outputs.argmax(1)


def fact(ctx: Context, name: str, subject: str) -> Fact:
    """Return the only fact of this name and subject."""
    (found,) = [f for f in ctx.facts if f.name == name and f.subject == subject]
    return found


def _first(inputs: Inputs) -> Tensor:
    return next(iter(inputs.values())) if isinstance(inputs, dict) else inputs[0]


def _pairs(outputs: Outputs, targets: Targets) -> list[tuple[str, tuple[Tensor, Tensor]]]:
    if isinstance(outputs, dict) and isinstance(targets, dict):
        return [(name, (outputs[name], targets[name])) for name in outputs]
    if isinstance(outputs, Tensor) and isinstance(targets, Tensor):
        return [("all", (outputs, targets))]
    raise AssertionError("outputs and targets are of different kinds")
