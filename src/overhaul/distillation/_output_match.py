"""`OutputMatch`: a match of softened outputs, with a loss for each named part of the task."""

from abc import ABC, abstractmethod
from typing import ClassVar

from pydantic import Field
from torch import Tensor, nn

from overhaul.core import Batch, ModelError, SpecError, Task, part_of
from overhaul.distillation._auto import Temperature, as_number
from overhaul.distillation._match import BoundMatch, Match
from overhaul.distillation._seen import Seen


class OutputMatch(Match, ABC):
    """A match of outputs that a temperature softens.

    Args:
        temperature: It divides the logits of both networks; `auto` chooses it on `val`. Default 4.
        weight: Factor of this loss beside the others. Default 1.
    """

    temperature: Temperature = Field(default=4.0, description="It divides both networks' logits.")


class ClassMatch(OutputMatch, ABC):
    """A match of outputs for tasks of classes alone."""

    def preflight(self, teacher: nn.Module, task: Task, batch: Batch) -> None:
        """See that the task has classes."""
        for name, part in task.parts.items():
            if part.output_kind != "classes":
                raise SpecError(
                    f"{self.spec_name()} needs classes, and the outputs of '{name}' are "
                    f"{part.output_kind}. Use soft_targets, which knows both."
                )


class BoundOutputMatch(BoundMatch):
    """A match of outputs at work.

    Attributes:
        suffix: What the names of its losses end with, after the part of the task.
    """

    suffix: ClassVar[str]

    def __init__(self, plan: OutputMatch, task: Task) -> None:
        """Take the task, and a temperature that is given."""
        super().__init__()
        self.task, self.temperature = task, as_number(plan.temperature, "temperature")

    def forward(self, student: Seen, teacher: Seen) -> dict[str, Tensor]:
        """Return the loss of each part of the task."""
        losses = {}
        for name, part in self.task.parts.items():
            own, theirs = part_of(student.outputs, name), part_of(teacher.outputs, name)
            check_one_shape(own, theirs)
            targets = part_of(student.batch.targets, name)
            losses[f"{name}_{self.suffix}"] = self.part_loss(part, own, theirs, targets)
        return losses

    @abstractmethod
    def part_loss(self, part: Task, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of one part, a scalar; both outputs have one shape."""


def check_one_shape(student_BC: Tensor, teacher_BC: Tensor) -> None:
    """Refuse outputs that would broadcast against each other.

    Raises:
        ModelError: the shapes differ.
    """
    if student_BC.shape != teacher_BC.shape:
        raise ModelError(
            f"the outputs of student and teacher must have one shape, got {list(student_BC.shape)} "
            f"and {list(teacher_BC.shape)}. {_what_to_do(student_BC, teacher_BC)}"
        )


def _what_to_do(student_BC: Tensor, teacher_BC: Tensor) -> str:
    if student_BC.ndim == teacher_BC.ndim and student_BC.ndim > 1:
        return (
            "Their last dimensions must be the same classes or tokens: give a teacher with the "
            "student's, or match features (hints)."
        )
    return "Make both return the same, for example by `squeeze(1)`."
