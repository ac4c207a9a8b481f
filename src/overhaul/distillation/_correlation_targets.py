"""`CorrelationTargets`: the student's probabilities go up and down with the teacher's."""

from typing import Self

from pydantic import Field, model_validator
from torch import Tensor, nn

from overhaul.core import Batch, Context, SpecError, Task
from overhaul.distillation._auto import Temperature
from overhaul.distillation._match import BoundMatch
from overhaul.distillation._output_match import BoundOutputMatch, ClassMatch
from overhaul.distillation._precision import single, unit


class CorrelationTargets(ClassMatch):
    r"""One minus the correlation of the student's probabilities with the teacher's.

    .. math::
        L = \beta\,\frac{1}{B} \sum_b \bigl(1 - \rho(P_{s,b\cdot}, P_{t,b\cdot})\bigr)
          + \gamma\,\frac{1}{C} \sum_c \bigl(1 - \rho(P_{s,\cdot c}, P_{t,\cdot c})\bigr)

    with :math:`P = \sigma(z / T)` and Pearson's :math:`\rho`: over the classes of each sample
    (*inter*), and over the samples for each class (*intra*). It asks less than equal
    probabilities, which a student far weaker than its teacher cannot reach. Rows and columns in
    which the teacher's probabilities are all the same have no correlation and do not count.

    There is no factor :math:`T^2`: a correlation does not change with the scale of what is
    compared, so that its gradient keeps its size when the temperature rises. With the factor it
    would be 264 times as large at :math:`T = 20` as at 1 (random logits). It does grow where the
    student's outputs are all nearly the same, as before training: about 14 times that of the task's
    loss for a small convolutional network, so that `clip_norm` of `Train` may help at first.

    The sum over the samples sees those that one process computes at once: with `accumulate`, or
    under several processes, a part of the batch. With a language model the samples of both sums are
    its tokens that count, all alike.

    Args:
        inter: :math:`\beta`, weight of the correlation over classes. Default 1.
        intra: :math:`\gamma`, weight of the correlation over samples. Default 1.
        temperature: :math:`T`; `auto` chooses it on `val`. Default 1.
        weight: Factor of this loss beside the others. Default 1.

    Shapes: outputs of student and teacher `[B, C]`; of language models `[B, T, V]`.

    Raises:
        SpecError: the task is not one of classes, or both weights are 0.

    Example:
        >>> CorrelationTargets(temperature=4.0, intra=2.0)
        CorrelationTargets(temperature=4.0, intra=2.0)

    Paper: Huang et al., NeurIPS 2022 (DIST).  Differs: some programs for it multiply by
    :math:`T^2`, this one does not; rows and columns without a correlation are left out.  The
    defaults are those of the loss in the authors' program.
    """

    inter: float = Field(default=1.0, ge=0, description="Weight of the correlation over classes.")
    intra: float = Field(default=1.0, ge=0, description="Weight of the correlation over samples.")
    temperature: Temperature = Field(default=1.0, description="It divides both networks' logits.")

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if self.inter == self.intra == 0:
            raise SpecError("one of `inter` and `intra` must be above 0, got 0 for both.")
        return self

    def bind(
        self, student: nn.Module, teacher: nn.Module, batch: Batch, ctx: Context
    ) -> BoundMatch:
        """Return the correlations for this task."""
        return _CorrelationTargets(self, ctx.task)


class _CorrelationTargets(BoundOutputMatch):
    suffix = "correlation"

    def __init__(self, plan: CorrelationTargets, task: Task) -> None:
        super().__init__(plan, task)
        self.plan = plan

    def part_loss(self, part: Task, student: Tensor, teacher: Tensor, targets: Tensor) -> Tensor:
        own_BC, theirs_BC = (
            (single(part.rows(logits, targets)) / self.temperature).softmax(1)
            for logits in (student, teacher)
        )
        inter = _uncorrelated(own_BC, theirs_BC)
        intra = _uncorrelated(own_BC.T, theirs_BC.T)
        return self.plan.inter * inter + self.plan.intra * intra


def _uncorrelated(own_NK: Tensor, theirs_NK: Tensor) -> Tensor:
    """Return the mean over rows of one minus the correlation."""
    own_NK, theirs_NK = (
        unit(values_NK - values_NK.mean(1, keepdim=True)) for values_NK in (own_NK, theirs_NK)
    )
    known_N = theirs_NK.abs().sum(1) > 0
    loss_N = (1 - (own_NK * theirs_NK).sum(1)) * known_N
    return loss_N.sum() / known_N.sum().clamp(min=1)
