"""`Contrastive`: the student tells samples apart in the space in which the teacher does."""

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from overhaul.core import Batch
from overhaul.distillation._layer_match import BoundLayerMatch, LayerMatch
from overhaul.distillation._pair_layers import Pair
from overhaul.distillation._precision import unit, without_autocast


class Contrastive(LayerMatch):
    r"""The cross-entropy of finding a sample's own teacher feature among those of other samples.

    .. math::
        L = -\frac{1}{2B} \sum_b \Bigl(\log \frac{e^{s_{bb}}}{\sum_{k \in N_b} e^{s_{bk}}}
            + \log \frac{e^{s_{bb}}}{\sum_{k \in N_b} e^{s_{kb}}}\Bigr),
        \qquad s_{bk} = g_s(f_{s,b})^\top g_t(f_{t,k}) / \tau

    where :math:`g_s, g_t` are linear maps of the features, averaged over places, to vectors of
    length one. Both are trained along and then dropped. :math:`N_b` is sample :math:`b` and
    those of the batch that are of other classes, or the whole batch where the task is not a single
    one of classes. The loss is not 0 for a student equal to its teacher.

    It sees the samples that one process computes at once: with `accumulate`, or under several
    processes, a part of the batch, which then has fewer others to be told from. Use large batches.

    Args:
        dimensions: Of the space of :math:`g_s, g_t`. Default 128.
        temperature: :math:`\tau`. Default 0.07.
        layers: Pairs of module paths, of the student and of the teacher. Default `auto`: the last
            pair by depth and shape.
        weight: Factor of this loss beside the others. Default 1.

    Shapes: features `[B, C, H, W]`, `[B, T, C]` or `[B, C]`.

    Example:
        >>> Contrastive(weight=0.8, layers=[("avgpool", "avgpool")])
        Contrastive(weight=0.8, layers=(('avgpool', 'avgpool'),))

    Paper: Tian, Krishnan and Isola, ICLR 2020 (CRD).  Differs: the others are those of the batch
    and not drawn from a memory of all samples, and the loss is a softmax over them and not a yes
    or no for each: the weight 0.8 of the authors' program is of another loss. The dimensions and
    the temperature are theirs.
    """

    dimensions: int = Field(default=128, ge=1, description="Size of the common space.")
    temperature: float = Field(default=0.07, gt=0, description="It divides the similarities.")

    def choose(self, pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
        """Return the last pair."""
        return pairs[-1:]

    def bind_pairs(
        self, pairs: tuple[Pair, ...], student: nn.Module, teacher: nn.Module, batch: Batch
    ) -> BoundLayerMatch:
        """Return the match with two projectors for each pair."""
        return _Contrastive(self, pairs)


class _Contrastive(BoundLayerMatch):
    def __init__(self, plan: Contrastive, pairs: tuple[Pair, ...]) -> None:
        super().__init__(plan, pairs)
        self.temperature = plan.temperature
        self.student_projectors = nn.ModuleList(
            nn.Linear(pair.student.channels, plan.dimensions) for pair in pairs
        )
        self.teacher_projectors = nn.ModuleList(
            nn.Linear(pair.teacher.channels, plan.dimensions) for pair in pairs
        )

    def pair_loss(
        self, number: int, student_BCP: Tensor, teacher_BCP: Tensor, batch: Batch
    ) -> Tensor:
        with without_autocast(student_BCP):
            own_BD = unit(self.student_projectors[number](student_BCP.float().mean(2)))
            theirs_BD = unit(self.teacher_projectors[number](teacher_BCP.float().mean(2)))
            score_BB = own_BD @ theirs_BD.T / self.temperature
        score_BB = score_BB.masked_fill(_of_one_class(batch, score_BB), -torch.inf)
        right_B = torch.arange(len(score_BB), device=score_BB.device)
        return 0.5 * (F.cross_entropy(score_BB, right_B) + F.cross_entropy(score_BB.T, right_B))


def _of_one_class(batch: Batch, score_BB: Tensor) -> Tensor:
    """Return which pairs of two samples have the same class, if there are classes."""
    labels = batch.targets
    if not isinstance(labels, Tensor) or labels.ndim != 1 or labels.is_floating_point():
        return torch.zeros_like(score_BB, dtype=torch.bool)
    known_B = labels >= 0
    same_BB = (labels[:, None] == labels) & known_B[:, None]
    return same_BB & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
