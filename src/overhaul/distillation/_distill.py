"""`Distill`: a student learns the soft targets of a teacher."""

from copy import deepcopy
from pathlib import Path
from typing import Literal, assert_never

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from overhaul.core import (
    Batch,
    Context,
    InputFile,
    ModelError,
    Network,
    Splits,
    Task,
    check_model_fits,
    load_weights_,
    part_of,
)
from overhaul.training import BoundObjective, Objective


class Distill(Objective):
    r"""The task's loss and the distance of the student's soft outputs from the teacher's.

    .. math:: L = (1 - \lambda)\,L_\text{task}
              + \lambda\,T^2\,\mathrm{KL}\bigl(\sigma(z_t / T)\,\|\,\sigma(z_s / T)\bigr)

    with the logits :math:`z_s, z_t` of student and teacher. The factor :math:`T^2` keeps the size
    of the gradient when the temperature changes. For independent labels, the divergence is the sum
    of that of each label; for plain values it is half the squared distance. The teacher sees the
    very inputs that the student sees, augmentations included, is in evaluation mode and does not
    learn.

    Args:
        teacher: `original` (the model that the run was given), a network, a `Network` (factory and
            weights), or a file with weights for the original's architecture.
        temperature: :math:`T`; higher shows more of how the teacher ranks wrong answers. Default 4.
        weight: :math:`\lambda`, the share of the teacher in the loss, in [0, 1]. Default 0.5.

    Shapes: logits of student and teacher `[B, C]`.

    Raises:
        ModelError: the teacher's outputs do not fit the task.

    Example:
        >>> Distill(teacher="original", temperature=2.0)
        Distill(temperature=2.0)

    Paper: Hinton, Vinyals and Dean, 2015.  Differs: the two weights sum to one.
    """

    teacher: Literal["original"] | Network | InputFile | nn.Module = "original"
    temperature: float = Field(default=4.0, gt=0, description="It divides both networks' logits.")
    weight: float = Field(
        default=0.5, ge=0, le=1, description="It is the teacher's share of the loss."
    )

    def preflight(self, original: nn.Module, task: Task, data: Splits) -> None:
        """Load the teacher and see that its outputs fit the task."""
        teacher = self._load_teacher(original)
        problem = check_model_fits(task, teacher, next(data.train.in_order(2)))
        if problem is not None:
            raise ModelError(f"the teacher cannot teach this task: {problem}")

    def bind(self, model: nn.Module, ctx: Context) -> BoundObjective:
        """Return the objective with its teacher."""
        return _SoftTargets(self, self._load_teacher(ctx.original), ctx.task)

    def _load_teacher(self, original: nn.Module) -> nn.Module:
        if isinstance(self.teacher, Network):
            teacher = self.teacher.build()
        elif isinstance(self.teacher, nn.Module):
            teacher = deepcopy(self.teacher)
        else:
            teacher = deepcopy(original)
            if self.teacher != "original":
                load_weights_(teacher, Path(self.teacher))
        return teacher.eval().requires_grad_(False)


class _SoftTargets(BoundObjective):
    def __init__(self, plan: Distill, teacher: nn.Module, task: Task) -> None:
        super().__init__()
        self.plan, self.teacher, self.task = plan, teacher, task

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        outputs = batch.forward(model)
        with torch.no_grad():
            targets = batch.forward(self.teacher)
        weight = self.plan.weight
        losses = self.task.losses(outputs, batch.targets)
        weighted = {name: (1 - weight) * loss for name, loss in losses.items()}
        for name, part in self.task.parts.items():
            distance = soft_distance(
                part_of(outputs, name),
                part_of(targets, name),
                kind=part.output_kind,
                temperature=self.plan.temperature,
            )
            weighted[f"{name}_soft"] = weight * distance
        return weighted


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
    if student_BC.shape != teacher_BC.shape:
        raise ModelError(
            f"the outputs of student and teacher must have one shape, got {list(student_BC.shape)} "
            f"and {list(teacher_BC.shape)}. Make both return the same, for example by `squeeze(1)`."
        )
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
