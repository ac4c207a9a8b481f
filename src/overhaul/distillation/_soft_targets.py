"""`SoftTargets`: the student's softened outputs come close to the teacher's."""

from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from overhaul.core import Batch, Context, ModelError, Task, part_of
from overhaul.distillation._match import BoundMatch, Match
from overhaul.distillation._precision import single
from overhaul.distillation._seen import Seen


class SoftTargets(Match):
    r"""The divergence of the student's softened outputs from the teacher's.

    .. math:: L = T^2\,\mathrm{KL}\bigl(\sigma(z_t / T)\,\|\,\sigma(z_s / T)\bigr)

    with the logits :math:`z_s, z_t` of student and teacher. The factor :math:`T^2` keeps the size
    of the gradient when the temperature changes. For independent labels, the divergence is the sum
    of that of each label; for plain values it is half the squared distance.

    Args:
        temperature: :math:`T`; higher shows more of how the teacher ranks wrong answers. Default 4.
        weight: Factor of this loss beside the others. Default 1.

    Shapes: outputs of student and teacher `[B, C]`.

    Example:
        >>> SoftTargets(temperature=2.0)
        SoftTargets(temperature=2.0)

    Paper: Hinton, Vinyals and Dean, 2015.
    """

    temperature: float = Field(default=4.0, gt=0, description="It divides both networks' logits.")

    def bind(
        self, student: nn.Module, teacher: nn.Module, batch: Batch, ctx: Context
    ) -> BoundMatch:
        """Return the divergence for this task."""
        return _SoftTargets(self, ctx.task)


class _SoftTargets(BoundMatch):
    def __init__(self, plan: SoftTargets, task: Task) -> None:
        super().__init__()
        self.plan, self.task = plan, task

    def forward(self, student: Seen, teacher: Seen) -> dict[str, Tensor]:
        return {
            f"{name}_soft": soft_distance(
                part_of(student.outputs, name),
                part_of(teacher.outputs, name),
                kind=part.output_kind,
                temperature=self.plan.temperature,
            )
            for name, part in self.task.parts.items()
        }


def soft_distance(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    kind: Literal["classes", "labels", "values"],
    temperature: float,
) -> Tensor:
    r"""Return the mean distance of soft outputs, times :math:`T^2`.

    Args:
        student_BC: The student's outputs `[B, C]`; plain values may be `[B]`.
        teacher_BC: The teacher's outputs, of the same shape.
        kind: `classes` (one softmax), `labels` (a sigmoid each) or `values` (squared distance).
        temperature: :math:`T`.

    Raises:
        ModelError: the shapes differ.

    Example:
        >>> logits = torch.tensor([[1.0, -2.0, 0.5]])
        >>> float(soft_distance(logits, logits, kind="classes", temperature=3.0))
        0.0
    """
    check_one_shape(student_BC, teacher_BC)
    student_BC, teacher_BC = single(student_BC), single(teacher_BC)
    if kind == "values":
        return 0.5 * (student_BC - teacher_BC).square().sum() / len(student_BC)
    student, teacher = student_BC / temperature, teacher_BC / temperature
    if kind == "classes":
        log_p, log_q = F.log_softmax(teacher, dim=1), F.log_softmax(student, dim=1)
        divergence = F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    elif kind == "labels":
        log_p = torch.stack((F.logsigmoid(teacher), F.logsigmoid(-teacher)))
        log_q = torch.stack((F.logsigmoid(student), F.logsigmoid(-student)))
        divergence = F.kl_div(log_q, log_p, reduction="sum", log_target=True) / len(student)
    else:
        assert_never(kind)
    return divergence * temperature**2


def check_one_shape(student_BC: Tensor, teacher_BC: Tensor) -> None:
    """Refuse outputs that would broadcast against each other.

    Raises:
        ModelError: the shapes differ.
    """
    if student_BC.shape != teacher_BC.shape:
        raise ModelError(
            f"the outputs of student and teacher must have one shape, got {list(student_BC.shape)} "
            f"and {list(teacher_BC.shape)}. Make both return the same, for example by `squeeze(1)`."
        )
