"""A tiny task over tensors, and a context to deploy in."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import (
    Batch,
    CheckpointFolder,
    Context,
    Fact,
    Outputs,
    Progress,
    SealedSplit,
    Split,
    SplitName,
    Splits,
    Targets,
    Task,
)

Inputs = tuple[Tensor, ...] | dict[str, Tensor]
MakeContext = Callable[..., Context]


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


class Classes(Task):
    """Accuracy over classes; with a dict of outputs the mean over its entries."""

    class_names: tuple[str, ...] | None = None

    def prepare(self) -> Splits:
        raise NotImplementedError

    @property
    def output_kind(self) -> Literal["classes"]:
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


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def make_context(tmp_path: Path) -> MakeContext:
    """Return a function that makes a context whose data are 20 rows of the given inputs."""

    def make(model: nn.Module, inputs: Inputs, targets: Targets, **more: Any) -> Context:
        split = Rows("val", inputs, targets)
        return Context(
            task=Classes(),
            data=Splits(Rows("train", inputs, targets), split, Sealed()),
            original=more.pop("original", model),
            checkpoints=CheckpointFolder(tmp_path / "checkpoints"),
            artifact_folder=tmp_path / "artifact",
            label="2 deploy",
            progress=Progress(quiet=True),
            **more,
        )

    return make


def fact(ctx: Context, name: str, subject: str) -> Fact:
    """Return the only fact of this name and subject."""
    (found,) = [f for f in ctx.facts if f.name == name and f.subject == subject]
    return found


def labels(count: int, classes: int, seed: int = 3) -> Tensor:
    return torch.randint(0, classes, (count,), generator=torch.Generator().manual_seed(seed))


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _first(inputs: Inputs) -> Tensor:
    return next(iter(inputs.values())) if isinstance(inputs, dict) else inputs[0]


def _pairs(outputs: Outputs, targets: Targets) -> list[tuple[str, tuple[Tensor, Tensor]]]:
    if isinstance(outputs, dict) and isinstance(targets, dict):
        return [(name, (outputs[name], targets[name])) for name in outputs]
    if isinstance(outputs, Tensor) and isinstance(targets, Tensor):
        return [("all", (outputs, targets))]
    raise AssertionError("outputs and targets are of different kinds")
