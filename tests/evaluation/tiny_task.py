"""A task, splits and predictions of a few numbers, made by hand for these tests."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from overhaul.core import Batch, Outputs, Split, SplitName, Splits, Targets, Task
from overhaul.evaluation import Predictions


class TinySplit(Split):
    """Samples in tensors."""

    def __init__(self, inputs: Any, targets: Targets, name: SplitName = "val") -> None:
        self.inputs, self.targets, self.name = inputs, targets, name
        self.size = len(next(iter(targets.values())) if isinstance(targets, dict) else targets)

    def __len__(self) -> int:
        return self.size

    def read(self, indices: Tensor) -> Batch:
        whole = Batch(self.inputs, self.targets, torch.arange(self.size))
        return replace(whole.map_tensors(lambda tensor: tensor[indices]), indices=indices)

    def batches(self, index_batches: list[Tensor], workers: int = 0) -> Iterator[Batch]:
        return (self.read(indices) for indices in index_batches)

    @property
    def fingerprint(self) -> str:
        return "tiny"


class _TinyTask(Task):
    def prepare(self) -> Splits:
        raise NotImplementedError

    def losses(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        return {"all": self.loss(outputs, targets)}

    def problem_with(self, outputs: Outputs, batch: Batch) -> str | None:
        return None


class TinyClassification(_TinyTask):
    """Logits `[N, C]` against labels `[N]`, judged by accuracy."""

    @property
    def output_kind(self) -> Literal["classes"]:
        return "classes"

    def output_size(self, data: Splits) -> int:
        return 2

    @property
    def selection_metric(self) -> str:
        return "accuracy"

    @property
    def higher_is_better(self) -> bool:
        return True

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        return torch.nn.functional.cross_entropy(_tensor(outputs), _tensor(targets))

    def metrics(self, outputs: Outputs, targets: Targets) -> dict[str, float]:
        return {"accuracy": float(self._right(outputs, targets).mean())}

    def sample_scores(self, outputs: Outputs, targets: Targets) -> Tensor | None:
        return self._right(outputs, targets)

    def _right(self, outputs: Outputs, targets: Targets) -> Tensor:
        return (_tensor(outputs).argmax(dim=1) == _tensor(targets)).float()


class TinyF1(TinyClassification):
    """Two classes judged by F1, which is no mean over samples."""

    @property
    def selection_metric(self) -> str:
        return "f1"

    def metrics(self, outputs: Outputs, targets: Targets) -> dict[str, float]:
        said, true = _tensor(outputs).argmax(dim=1) == 1, _tensor(targets) == 1
        both, either = int((said & true).sum()), int(said.sum() + true.sum())
        return {"f1": 2 * both / either if either else float("nan")}

    def sample_scores(self, outputs: Outputs, targets: Targets) -> Tensor | None:
        return None


class TinyRegression(_TinyTask):
    """Values `[N]` judged by the mean absolute error, of which less is better."""

    @property
    def output_kind(self) -> Literal["values"]:
        return "values"

    def output_size(self, data: Splits) -> int:
        return 1

    @property
    def selection_metric(self) -> str:
        return "mae"

    @property
    def higher_is_better(self) -> bool:
        return False

    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        return torch.nn.functional.mse_loss(_tensor(outputs), _tensor(targets))

    def metrics(self, outputs: Outputs, targets: Targets) -> dict[str, float]:
        return {"mae": float((_tensor(outputs) - _tensor(targets)).abs().mean())}

    def sample_scores(self, outputs: Outputs, targets: Targets) -> Tensor | None:
        return (_tensor(outputs) - _tensor(targets)).abs()


def answers(said: list[int] | Tensor, true: list[int] | Tensor) -> Predictions:
    """Return predictions of a classifier that says `said`, one of two classes, for each sample."""
    said, true = torch.as_tensor(said), torch.as_tensor(true)
    return Predictions(torch.nn.functional.one_hot(said, 2).float(), true)


def paired_answers(
    both: int, only_first: int, only_second: int, neither: int
) -> tuple[Predictions, Predictions]:
    """Return two classifiers that are right together, alone and never so many times."""
    first = [1] * (both + only_first) + [0] * (only_second + neither)
    second = [1] * both + [0] * only_first + [1] * only_second + [0] * neither
    true = [1] * len(first)
    return answers(first, true), answers(second, true)


def _tensor(value: Tensor | dict[str, Tensor]) -> Tensor:
    assert isinstance(value, Tensor)
    return value
