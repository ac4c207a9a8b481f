"""What a task is: data in three splits, a loss, metrics, and the one number to choose by."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from overhaul.core._batch import Batch, Outputs, Targets
from overhaul.core._facts import Fact, SplitName
from overhaul.core._model_state import evaluating
from overhaul.core._spec import Spec
from overhaul.runtime import OverhaulError


class Split(ABC):
    """One part of the data, read in batches by position."""

    name: SplitName

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def read(self, indices: Tensor) -> Batch:
        """Return the samples at these positions, `[B]`, as one batch on the CPU."""

    @abstractmethod
    def batches(self, index_batches: list[Tensor], workers: int = 0) -> Iterator[Batch]:
        """Yield one batch for each tensor of positions, in that order.

        Args:
            index_batches: The positions of each batch.
            workers: Processes that read ahead; 0 reads in this one.
        """

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Yield the whole split in order."""
        return self.batches(list(torch.split(torch.arange(len(self)), batch_size)))

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of every sample in order."""


class SealedSplit(ABC):
    """The test split: its size is known, its samples are not until it is opened."""

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def open(self) -> Split:
        """Break the seal. Only the final evaluation does this, and every opening is counted."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """A hash of every sample in order."""


@dataclass(frozen=True)
class Splits:
    """The data of a task, checked and ready.

    Attributes:
        train: What training may see.
        val: What choices are made on.
        test: What the verdict is given on; sealed.
        facts: What was found while checking: sizes, class counts, how splits were made.
    """

    train: Split
    val: Split
    test: SealedSplit
    facts: tuple[Fact, ...] = ()

    @property
    def fingerprint(self) -> str:
        """A hash of all data."""
        return "-".join((self.train.fingerprint, self.val.fingerprint, self.test.fingerprint))


class Task(Spec, ABC):
    """What a model is for. See `overhaul.Classification` and its siblings.

    A task is a description; `prepare` reads, checks and splits its data.
    """

    @abstractmethod
    def prepare(self) -> Splits:
        """Read the data, check it, split what is missing off `train`.

        Raises:
            DataError: the data breaks a rule; the message names index and field.
        """

    @property
    @abstractmethod
    def output_kind(self) -> Literal["classes", "labels", "values"]:
        """What the outputs are: logits of classes or of independent labels, or plain values."""

    @property
    def parts(self) -> "dict[str, Task]":
        """The named tasks that this one is made of: itself, unless it is made of several."""
        return {"task": self}

    @abstractmethod
    def output_size(self, data: Splits) -> int:
        """Return how many outputs a model needs for one sample."""

    @property
    @abstractmethod
    def selection_metric(self) -> str:
        """The name of the one number to choose by, a key of what `metrics` returns."""

    @property
    @abstractmethod
    def higher_is_better(self) -> bool:
        """Whether a higher value of the selection metric is better."""

    @abstractmethod
    def loss(self, outputs: Outputs, targets: Targets) -> Tensor:
        """Return the mean loss over the labelled samples, a scalar with a gradient."""

    @abstractmethod
    def losses(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Return the mean loss of each part: one entry, or one for each named task."""

    def rows(self, values: Tensor, targets: Tensor) -> Tensor:
        """Return the rows that count, `[N, ...]`: all, unless a sample has many (its tokens).

        What matches the outputs of two networks does so row by row.

        Args:
            values: Outputs, or what else there is one of for each target, `[B, ...]`.
            targets: The targets of the same samples, `[B, ...]`.
        """
        return values

    def mean_over_rows(self, numbers_N: Tensor, targets: Tensor) -> Tensor:
        """Return the mean of one number for each of the `rows`, weighted as `loss` weights them.

        It must be a mean over samples, so that parts of a batch add up to the batch.
        """
        return numbers_N.mean()

    @abstractmethod
    def metrics(self, outputs: Outputs, targets: Targets) -> dict[str, float]:
        """Return every metric over a whole split."""

    @abstractmethod
    def sample_scores(self, outputs: Outputs, targets: Targets) -> Tensor | None:
        """Return scores `[N]` whose mean is the selection metric.

        None if the selection metric is not a mean over samples (F1, AUROC, R2).
        """

    @abstractmethod
    def problem_with(self, outputs: Outputs, batch: Batch) -> str | None:
        """Return what is wrong with the shape of a model's outputs for this task, or None."""

    def predictions(self, outputs: Outputs) -> Any:
        """Return what a user reads off the outputs (class numbers, values)."""
        return outputs


def check_model_fits(task: Task, model: nn.Module, batch: Batch) -> str | None:
    """Run one forward pass in evaluation mode and return what does not fit, or None.

    The model's `training` flags are restored.
    """
    problem = forward_problem(model, batch)
    if problem is not None:
        return problem
    with evaluating(model):
        outputs = batch.forward(model)
    if any(each.is_complex() for each in tree_leaves(outputs)):
        return (
            "the model gives complex numbers, and a task needs real ones: return their `.abs()`, "
            "`.real`, or torch.view_as_real of them"
        )
    return task.problem_with(outputs, batch)


def forward_problem(model: nn.Module, batch: Batch) -> str | None:
    """Run one forward pass in evaluation mode and return why the model fails, or None.

    The model's `training` flags are restored.
    """
    try:
        with evaluating(model):
            batch.forward(model)
    except OverhaulError as error:
        return str(error).rstrip(".")
    except Exception as error:  # a forward pass of a user may raise anything
        kind = "" if isinstance(error, RuntimeError | ValueError) else f"{type(error).__name__}: "
        said = f"the model fails on inputs of {_shapes(batch.inputs)}: {kind}{error}".rstrip(".")
        return f"{said}. {_advice(model, batch)}"
    return None


def _advice(model: nn.Module, batch: Batch) -> str:
    own = {each.dtype for each in model.parameters() if each.is_floating_point()}
    given = {each.dtype for each in tree_leaves(batch.inputs) if isinstance(each, Tensor)}
    given = {dtype for dtype in given if dtype.is_floating_point}
    if own and given and own.isdisjoint(given):
        return (
            f"The model has numbers of {_names(own)} and the data of {_names(given)} (float64 is "
            "read as float32): convert the model, as by `model.float()`"
        )
    return "Give the data the shape that the model takes, or a model that takes this shape"


def _names(dtypes: set[torch.dtype]) -> str:
    return " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))


def _shapes(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, dict):
        return ", ".join(f"{key} {_shapes(item)}" for key, item in value.items())
    if isinstance(value, tuple | list):
        return ", ".join(map(_shapes, value))
    return type(value).__name__


def part_of(values: Tensor | dict[str, Tensor], part: str) -> Tensor:
    """Return what belongs to a named part of a task: the tensor itself where there is just one."""
    return values if isinstance(values, Tensor) else values[part]
