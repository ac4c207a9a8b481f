"""`Objective`: what training minimizes."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from overhaul.core import Batch, Context, Spec, Splits, Task
from overhaul.training._optimizers import Optimizer


@dataclass(frozen=True)
class Companion:
    """A network that is trained beside the model, with an optimizer of its own.

    Attributes:
        network: Not changed by anything else than its optimizer; no constraint holds of it.
        optimizer: None is one like the model's.
    """

    network: nn.Module
    optimizer: Optimizer | None = None


@dataclass(frozen=True)
class OpenSetting:
    """A setting of an objective that is `auto`: `Train` chooses it on `val` before it trains.

    Attributes:
        name: What it is called in facts: `weight`.
        values: What is tried; of two that do as well, the first is taken.
        start: Which of them it has while settings before it are chosen.
        meaning: What choosing a value says, in words, where it says something.
    """

    name: str
    values: tuple[float, ...]
    start: float
    meaning: Mapping[float, str] = field(default_factory=dict)


class BoundObjective(nn.Module, ABC):
    """An objective at work on one model.

    A module, so that networks it needs move to the device with it. Parameters of its own that
    require a gradient (a projector) are trained along; a teacher's must not require one.

    Attributes:
        companions: Networks of its own (parts of this module) that are trained beside the model,
            each with its own optimizer and its own clipping, are saved in checkpoints, and are
            gone at the end.
        beside: Names of losses that train something else than the model. The combiner does not
            see them, and they are no part of the training loss that is shown.
        networks: Others than the model that get its batches, such as a teacher.
    """

    companions: tuple[Companion, ...] = ()
    networks: tuple[nn.Module, ...] = ()
    beside: tuple[str, ...] = ()

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the named losses of this batch, each a scalar."""

    def after_epoch(self, epoch: int) -> None:
        """Follow each epoch, to log what is worth knowing."""


class Objective(Spec, ABC):
    """What training minimizes: one or more named losses."""

    @property
    def open_settings(self) -> tuple[OpenSetting, ...]:
        """What is to be chosen on `val` before the training, in this order."""
        return ()

    def settled(self, values: Mapping[str, float]) -> "Objective":
        """Return the objective with these values of its open settings."""
        return self

    def preflight(self, original: nn.Module, task: Task, data: Splits) -> None:
        """Check, before any step of the run starts, what needs files or data (a teacher)."""

    @abstractmethod
    def bind(self, model: nn.Module, ctx: Context) -> BoundObjective:
        """Return the objective for this model; loads what it needs (a teacher)."""


class TaskLoss(Objective):
    """The loss of the task itself: cross-entropy for classification, and so on.

    With named tasks there is one loss for each.

    Example:
        >>> TaskLoss()
        TaskLoss()
    """

    def bind(self, model: nn.Module, ctx: Context) -> BoundObjective:
        """Return the task's losses as an objective."""
        return _TaskLosses(ctx.task)


class _TaskLosses(BoundObjective):
    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return self.task.losses(batch.forward(model), batch.targets)
