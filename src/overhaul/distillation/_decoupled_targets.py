"""`DecoupledTargets`: what the teacher says of the right class, and of the others, apart."""

from typing import Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from overhaul.core import Batch, Context, SpecError, Task
from overhaul.distillation._match import BoundMatch
from overhaul.distillation._output_match import (
    BoundOutputMatch,
    ClassMatch,
    check_one_shape,
)
from overhaul.distillation._precision import single


class DecoupledTargets(ClassMatch):
    r"""The divergence of soft targets in two parts: of the right class, and among the others.

    .. math::
        L = T^2\,\bigl[\alpha\,\mathrm{KL}(b_t\,\|\,b_s)
            + \beta\,\mathrm{KL}(\hat p_t\,\|\,\hat p_s)\bigr]

    with the softened probabilities :math:`p = \sigma(z / T)` of teacher and student,
    :math:`b = (p_y, 1 - p_y)` for the right class :math:`y`, and :math:`\hat p` the probabilities
    of the other classes among themselves. The divergence of `SoftTargets` is the case
    :math:`\alpha = 1, \beta = 1 - p_{t,y}`: the surer the teacher is of a sample, the less it then
    tells of the other classes. A fixed :math:`\beta` undoes that.

    Samples without a label count in neither part. The classes of a language model are its tokens;
    each token that counts is a row, averaged as the task's loss is.

    Args:
        alpha: Weight of the right class. Default 1.
        beta: Weight of the others among themselves. Default 1. Large ones need long trainings: in
            two epochs of fine-tuning, 8 lost nine points (`benchmarks/learning_cifar.py`).
        temperature: :math:`T`, which `auto` chooses on `val`; both parts have the factor
            :math:`T^2`. Default 4.
        weight: Factor of this loss beside the others. Default 1.

    Shapes: outputs of student and teacher `[B, C]`, labels `[B]`; of language models `[B, T, V]`
    and `[B, T]`.

    Raises:
        SpecError: the task is not one of classes, or both weights are 0.

    Example:
        >>> DecoupledTargets(beta=2.0)
        DecoupledTargets(beta=2.0)

    Paper: Zhao et al., CVPR 2022 (DKD).  Differs: the weight does not rise over the first epochs
    (20 of 240 in the authors' program), so that the default of `beta` is 1. Theirs is another for
    each pair of networks: 8 from ResNet-32x4 to 8x4, 2 from ResNet-56 to 20 (CIFAR-100).
    """

    alpha: float = Field(default=1.0, ge=0, description="Weight of the right class.")
    beta: float = Field(default=1.0, ge=0, description="Weight of the other classes.")

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if self.alpha == self.beta == 0:
            raise SpecError("one of `alpha` and `beta` must be above 0, got 0 for both.")
        return self

    def bind(
        self, student: nn.Module, teacher: nn.Module, batch: Batch, ctx: Context
    ) -> BoundMatch:
        """Return the two divergences for this task."""
        return _DecoupledTargets(self, ctx.task)


class _DecoupledTargets(BoundOutputMatch):
    suffix = "decoupled"

    def __init__(self, plan: DecoupledTargets, task: Task) -> None:
        super().__init__(plan, task)
        self.plan = plan

    def part_loss(self, part: Task, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        labels_B = part.rows(targets, targets)
        right_B, others_B = decoupled_distances(
            part.rows(student, targets),
            part.rows(teacher, targets),
            labels_B,
            temperature=self.temperature,
        )
        loss_B = self.plan.alpha * right_B + self.plan.beta * others_B
        known_B = labels_B >= 0
        mean = part.mean_over_rows(loss_B * known_B, targets)
        return mean * len(known_B) / known_B.sum().clamp(min=1)


def decoupled_distances(
    student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor, *, temperature: float
) -> tuple[Tensor, Tensor]:
    r"""Return, for each sample, the divergences of the right class and of the others.

    Both are times :math:`T^2`.

    Args:
        student_BC: The student's logits `[B, C]`.
        teacher_BC: The teacher's logits `[B, C]`.
        labels_B: The right classes `[B]`; a negative one stands for class 0.
        temperature: :math:`T`.

    Raises:
        ModelError: the shapes differ.

    Example:
        >>> logits = torch.tensor([[1.0, -2.0, 0.5]])
        >>> decoupled_distances(logits, logits, torch.tensor([0]), temperature=2.0)
        (tensor([0.]), tensor([0.]))
    """
    check_one_shape(student_BC, teacher_BC)
    right_B = labels_B.clamp(min=0)
    own_B2, own_others_BR = _logs(single(student_BC) / temperature, right_B)
    their_B2, their_others_BR = _logs(single(teacher_BC) / temperature, right_B)
    square = temperature**2
    return (
        square * _divergence(their_B2, own_B2),
        square * _divergence(their_others_BR, own_others_BR),
    )


def _logs(logits_BC: Tensor, right_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return the logarithms of (right, not right), and of the others among themselves."""
    classes = logits_BC.shape[1]
    steps_R = torch.arange(1, classes, device=logits_BC.device)
    others_BR = logits_BC.gather(1, (right_B[:, None] + steps_R) % classes)
    of_right_B = logits_BC.gather(1, right_B[:, None]).squeeze(1)
    binary_B2 = torch.stack((of_right_B, others_BR.logsumexp(1)), dim=1)
    return binary_B2.log_softmax(1), others_BR.log_softmax(1)


def _divergence(log_p: Tensor, log_q: Tensor) -> Tensor:
    return (log_p.exp() * (log_p - log_q)).sum(1)
