"""`Match`: what of a teacher a student is trained to match."""

from abc import ABC, abstractmethod

from pydantic import Field
from torch import Tensor, nn

from overhaul.core import Batch, Context, Spec, Task
from overhaul.distillation._seen import Seen


class BoundMatch(nn.Module, ABC):
    """A match at work on one student and one teacher.

    Parameters of its own that require a gradient (a projector) are trained along and then dropped:
    they are never part of the student.

    Attributes:
        student_paths: Modules of the student whose outputs it needs.
        teacher_paths: Modules of the teacher whose outputs it needs.
        input_gradients: Whether it differentiates by the inputs, so that the inputs require a
            gradient and the teacher has a graph.
        keep_teacher_graph: Whether the teacher's graph is still needed afterwards.
    """

    student_paths: tuple[str, ...] = ()
    teacher_paths: tuple[str, ...] = ()
    input_gradients: bool = False
    keep_teacher_graph: bool = True

    @abstractmethod
    def forward(self, student: Seen, teacher: Seen) -> dict[str, Tensor]:
        """Return the named losses of this batch, each a scalar."""


class Match(Spec, ABC):
    """What of a teacher a student is trained to match.

    Args:
        weight: Factor of this loss beside the others of `Distill`. Default 1.
    """

    weight: float = Field(default=1.0, gt=0, description="Factor of this loss beside the others.")

    def preflight(self, teacher: nn.Module, task: Task, batch: Batch) -> None:
        """Check, before any step of the run starts, what can be told without the student.

        Raises:
            SpecError: the task has no such outputs, or the teacher no such layer.
        """

    @abstractmethod
    def bind(
        self, student: nn.Module, teacher: nn.Module, batch: Batch, ctx: Context
    ) -> BoundMatch:
        """Return the match for these two networks.

        Args:
            student: The network that is trained.
            teacher: In evaluation mode, without gradients.
            batch: Two samples, on the device of both, to see shapes with.
            ctx: For facts and randomness.
        """
