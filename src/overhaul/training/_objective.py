"""`Objective`: what training minimizes."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from overhaul.core import Batch, Context, Spec, Splits, Task


class BoundObjective(nn.Module, ABC):
    """An objective at work on one model.

    A module, so that networks it needs move to the device with it. Parameters of its own that
    require a gradient (a projector) are trained along; a teacher's must not require one.
    """

    @abstractmethod
    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return the named losses of this batch, each a scalar."""


class Objective(Spec, ABC):
    """What training minimizes: one or more named losses."""

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
