"""`SingleTask`: a task with one kind of target and one loss."""

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import Field, field_validator
from torch import Tensor

from overhaul.core import DataError, Outputs, SpecError, SplitName, Targets, nearest, part_of
from overhaul.tasks._data_task import DataTask


class SingleTask(DataTask, ABC):
    """A task with one kind of target and one loss.

    Args:
        allow_missing: Targets may be missing: such samples are left out of loss and metrics.
    """

    metric_names: ClassVar[dict[str, bool]]
    """The metrics, and whether higher is better."""

    metric: str
    allow_missing: bool = Field(default=False, description="Targets may be missing.")

    @field_validator("metric")
    @classmethod
    def _check_metric(cls, value: str) -> str:
        if value not in cls.metric_names:
            raise SpecError(f"'{value}' is not a metric. {nearest(value, cls.metric_names)}")
        return value

    @property
    def selection_metric(self) -> str:
        """The name of the one number to choose by."""
        return self.metric

    @property
    def higher_is_better(self) -> bool:
        """Whether a higher value of it is better."""
        return self.metric_names[self.metric]

    @property
    @abstractmethod
    def output_names(self) -> tuple[str, ...] | None:
        """What the outputs are called, in order, if that is known."""

    def losses(self, outputs: Outputs, targets: Targets) -> dict[str, Tensor]:
        """Return the loss under the name `task`."""
        return {"task": self.loss(outputs, targets)}


def only_tensor(values: Outputs | Targets) -> Tensor:
    """Return the outputs or targets of a task that is not made of several."""
    return part_of(values, "task")


def only_target(name: SplitName, targets: Targets) -> Tensor:
    """Return the targets, or refuse named ones.

    Raises:
        DataError: there are several by name.
    """
    if isinstance(targets, dict):
        raise DataError(
            f"`{name}` has several targets by name ({', '.join(targets)}), and this task has one. "
            "Use MultiTask, or choose one of them."
        )
    return targets


def not_one_tensor(outputs: Outputs) -> str | None:
    """Return what is wrong if the model gives outputs by name."""
    if isinstance(outputs, dict):
        return (
            f"the model gives several outputs by name ({', '.join(outputs)}), and the task has one "
            "target: use MultiTask, or return one of them"
        )
    return None
