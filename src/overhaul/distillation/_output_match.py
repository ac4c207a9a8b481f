"""`BoundOutputMatch`: a match of outputs at work, with a loss for each named part of the task."""

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from overhaul.core import ModelError, Task, part_of
from overhaul.distillation._match import BoundMatch
from overhaul.distillation._seen import Seen


class BoundOutputMatch(BoundMatch):
    """A match of outputs at work.

    Attributes:
        suffix: What the names of its losses end with, after the part of the task.
    """

    suffix: ClassVar[str]

    def __init__(self, task: Task) -> None:
        """Take the task."""
        super().__init__()
        self.task = task

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
