"""`SoftTargets`: the student's softened outputs come close to the teacher's."""

import math
from typing import Any, Literal, Self, TypeAlias, assert_never

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from overhaul.core import Batch, Context, SpecError, Task
from overhaul.distillation._match import BoundMatch
from overhaul.distillation._output_match import BoundOutputMatch, OutputMatch, check_one_shape
from overhaul.distillation._precision import single

Divergence: TypeAlias = Literal["forward", "reverse", "jensen_shannon"]
"""How softened outputs are compared; see `SoftTargets`."""
_HALF = 0.5


class SoftTargets(OutputMatch):
    r"""The divergence of the student's softened outputs from the teacher's.

    .. math:: L = T^2\,D(p, q) \qquad p = \sigma(z_t / T), \quad q = \sigma(z_s / T)

    with the logits :math:`z_s, z_t` of student and teacher. :math:`D` is

    - `forward`: :math:`\mathrm{KL}(p\,\|\,q)`; the student covers all that the teacher may say;
    - `reverse`: :math:`\mathrm{KL}(q\,\|\,p)`; the student keeps to what the teacher finds likely,
      which suits one that is too small to cover all;
    - `jensen_shannon`: :math:`\beta\,\mathrm{KL}(p\,\|\,m) + (1 - \beta)\,\mathrm{KL}(q\,\|\,m)`
      with :math:`m = \beta p + (1 - \beta) q`; it has a bound. Where :math:`p` and :math:`q` are
      close it is :math:`\beta (1 - \beta)` times either of the others, so that a `weight` of
      :math:`1 / (\beta (1 - \beta))` gives gradients of their size.

    The factor :math:`T^2` keeps the size of the gradient when the temperature changes. For
    independent labels, the divergence is the sum of that of each label; for plain values it is half
    the squared distance, which is `forward` and `reverse` of Gaussians of variance one. For a
    language model it is that of each token that counts, averaged as the task's loss is; padding has
    no part in it.

    Args:
        temperature: :math:`T`; higher shows more of how the teacher ranks wrong answers. `auto`
            chooses it on `val`. Default 4.
        divergence: :math:`D`. Default `forward`.
        mixture: :math:`\beta`, the teacher's share of :math:`m`, for `jensen_shannon`. Default 0.5.
        weight: Factor of this loss beside the others. Default 1.

    Shapes: outputs of student and teacher `[B, C]`; of language models `[B, T, V]`.

    Raises:
        SpecError: `mixture` is given for another divergence, or `jensen_shannon` for plain values.

    Example:
        >>> SoftTargets(temperature=1.0, divergence="reverse")
        SoftTargets(temperature=1.0, divergence='reverse')

    Paper: Hinton, Vinyals and Dean, 2015; Gu et al., ICLR 2024 (MiniLLM, reverse); Agarwal et al.,
    ICLR 2024 (GKD, Jensen-Shannon).  Differs: both divergences are of single tokens, on the texts
    of the data; the student writes none of its own.
    """

    divergence: Divergence = Field(default="forward", description="It says what is compared how.")
    mixture: float = Field(
        default=_HALF, gt=0, lt=1, description="The teacher's share of the mixture."
    )

    @model_validator(mode="after")
    def _mixture_is_used(self) -> Self:
        if self.mixture != _HALF and self.divergence != "jensen_shannon":
            raise SpecError(
                f"`mixture` is for divergence='jensen_shannon', got {self.divergence!r}. Leave "
                "`mixture` out, or choose that divergence."
            )
        return self

    def preflight(self, teacher: nn.Module, task: Task, batch: Batch) -> None:
        """See that the outputs have what is asked for: a divergence, a temperature to choose."""
        if self.temperature == "auto" and {p.output_kind for p in task.parts.values()} == {
            "values"
        }:
            raise SpecError(
                "`temperature` of soft_targets is 'auto', and plain values have none. Leave it out."
            )
        for name, part in task.parts.items():
            if part.output_kind == "values" and self.divergence == "jensen_shannon":
                raise SpecError(
                    f"jensen_shannon needs probabilities, and the outputs of '{name}' are values. "
                    "Use divergence='forward', which is half the squared distance for them."
                )

    def bind(
        self, student: nn.Module, teacher: nn.Module, batch: Batch, ctx: Context
    ) -> BoundMatch:
        """Return the divergence for this task."""
        return _SoftTargets(self, ctx.task)


class _SoftTargets(BoundOutputMatch):
    suffix = "soft"

    def __init__(self, plan: SoftTargets, task: Task) -> None:
        super().__init__(plan, task)
        self.plan = plan

    def part_loss(self, part: Task, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        return soft_loss(
            part,
            student,
            teacher,
            targets,
            temperature=self.temperature,
            divergence=self.plan.divergence,
            mixture=self.plan.mixture,
        )


def soft_loss(
    part: Task,
    student: Tensor,
    teacher: Tensor,
    targets: Tensor,
    *,
    temperature: float,
    divergence: Divergence = "forward",
    mixture: float = _HALF,
) -> Tensor:
    """Return the mean soft distance over the rows of the outputs that count for a task.

    Raises:
        ModelError: the shapes differ.
    """
    check_one_shape(student, teacher)
    distances_N = soft_distances(
        part.rows(student, targets),
        part.rows(teacher, targets),
        kind=part.output_kind,
        temperature=temperature,
        divergence=divergence,
        mixture=mixture,
    )
    return part.mean_over_rows(distances_N, targets)


def soft_distance(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    kind: Literal["classes", "labels", "values"],
    temperature: float,
    divergence: Divergence = "forward",
    mixture: float = _HALF,
) -> Tensor:
    r"""Return the mean distance of soft outputs, times :math:`T^2`.

    Args:
        student_BC: The student's outputs `[B, C]`; plain values may be `[B]`.
        teacher_BC: The teacher's outputs, of the same shape.
        kind: `classes` (one softmax), `labels` (a sigmoid each) or `values` (squared distance).
        temperature: :math:`T`.
        divergence: Of probabilities; see `SoftTargets`.
        mixture: The teacher's share of the mixture of `jensen_shannon`.

    Raises:
        ModelError: the shapes differ.

    Example:
        >>> logits = torch.tensor([[1.0, -2.0, 0.5]])
        >>> float(soft_distance(logits, logits, kind="classes", temperature=3.0))
        0.0
    """
    return soft_distances(
        student_BC,
        teacher_BC,
        kind=kind,
        temperature=temperature,
        divergence=divergence,
        mixture=mixture,
    ).mean()


def soft_distances(
    student_BC: Tensor,
    teacher_BC: Tensor,
    *,
    kind: Literal["classes", "labels", "values"],
    temperature: float,
    divergence: Divergence = "forward",
    mixture: float = _HALF,
) -> Tensor:
    """Return the distance of each row, `[B]`; see `soft_distance`."""
    check_one_shape(student_BC, teacher_BC)
    student_BC, teacher_BC = single(student_BC), single(teacher_BC)
    if kind == "values":
        return 0.5 * _row_sums((student_BC - teacher_BC).square())
    log_p, log_q = (_log_probabilities(z / temperature, kind) for z in (teacher_BC, student_BC))
    if divergence == "forward":
        distances_B = _row_sums(log_p.exp() * (log_p - log_q))
    elif divergence == "reverse":
        distances_B = _row_sums(log_q.exp() * (log_q - log_p))
    elif divergence == "jensen_shannon":
        distances_B = _jensen_shannon(log_p, log_q, mixture)
    else:
        assert_never(divergence)
    return distances_B * temperature**2


def _log_probabilities(logits_BC: Tensor, kind: Literal["classes", "labels"]) -> Tensor:
    """Return those of the classes, `[B, C]`, or of yes and no for each label, `[B, C, 2]`."""
    if kind == "classes":
        return F.log_softmax(logits_BC, dim=1)
    return torch.stack((F.logsigmoid(logits_BC), F.logsigmoid(-logits_BC)), dim=-1)


class _JensenShannon(torch.autograd.Function):
    r"""Its terms, and their gradients in closed form, which take half the time of autograd's.

    By :math:`\log p` that is :math:`\beta p \log (p / m)`, by :math:`\log q` it is
    :math:`(1 - \beta) q \log (q / m)`: what else there is cancels.
    """

    @staticmethod
    def forward(ctx: Any, log_p: Tensor, log_q: Tensor, mixture: float) -> Tensor:
        # Written by log(q / p), so that equal ones are at no distance at all, and with exponents of
        # negative numbers alone.
        ratio = log_q - log_p
        below = torch.log1p((1 - mixture) * torch.expm1(ratio.clamp(max=0)))
        both = below + torch.log1p(mixture * torch.expm1(ratio.neg().clamp_(max=0)))
        over_p = mixture * log_p.exp() * (both + ratio.clamp(min=0))
        over_q = (1 - mixture) * log_q.exp() * (both + ratio.neg_().clamp_(min=0))
        ctx.save_for_backward(over_p, over_q)
        return -(over_p + over_q)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        over_p, over_q = ctx.saved_tensors
        by_p, by_q, _ = ctx.needs_input_grad
        return -gradient * over_p if by_p else None, -gradient * over_q if by_q else None, None


def _jensen_shannon(log_p: Tensor, log_q: Tensor, mixture: float) -> Tensor:
    terms: Tensor = _JensenShannon.apply(log_p, log_q, mixture)
    return _row_sums(terms)


def _row_sums(values: Tensor) -> Tensor:
    return values.reshape(len(values), math.prod(values.shape[1:])).sum(1)
