"""`SimilarityPreserving`: samples alike to the teacher become alike to the student."""

from torch import Tensor, nn

from overhaul.core import Batch
from overhaul.distillation._layer_match import BoundLayerMatch, LayerMatch, sample_rows
from overhaul.distillation._pair_layers import Pair
from overhaul.distillation._precision import unit, without_autocast


class SimilarityPreserving(LayerMatch):
    r"""The squared distance of how alike the samples of a batch are to the two networks.

    .. math::
        L = \frac{1}{B} \sum_b \Bigl\|\frac{G_{s,b\cdot}}{\|G_{s,b\cdot}\|_2}
            - \frac{G_{t,b\cdot}}{\|G_{t,b\cdot}\|_2}\Bigr\|_2^2,
        \qquad G = F F^\top

    with the features :math:`F` of a layer, a row for each sample. Neither channels nor sizes need
    to be the same, and there is no projector.

    It sees the samples that one process computes at once: with `accumulate`, or under several
    processes, a part of the batch.

    Args:
        layers: Pairs of module paths, of the student and of the teacher. Default `auto`: by depth
            and shape.
        weight: Factor of this loss beside the others. Default 1.

    Shapes: features `[B, ...]`.

    Example:
        >>> SimilarityPreserving(weight=20.0)
        SimilarityPreserving(weight=20.0)

    Paper: Tung and Mori, ICCV 2019.  Differs: divided by :math:`B` and not by :math:`B^2`, so that
    the loss does not shrink with the batch (the weight :math:`\gamma` of the paper is
    :math:`\gamma / B` here); a mean over layers and not a sum.  The usual :math:`\gamma = 3000`, of
    the program of Tian, Krishnan and Isola (ICLR 2020) for batches of 64, is 47 here for one layer.
    """

    def bind_pairs(
        self, pairs: tuple[Pair, ...], student: nn.Module, teacher: nn.Module, batch: Batch
    ) -> BoundLayerMatch:
        """Return the match of these pairs of layers."""
        return _SimilarityPreserving(self, pairs)


class _SimilarityPreserving(BoundLayerMatch):
    def pair_loss(
        self, number: int, student_BCP: Tensor, teacher_BCP: Tensor, batch: Batch
    ) -> Tensor:
        with without_autocast(student_BCP):
            difference_BB = _similarity(student_BCP) - _similarity(teacher_BCP)
        return difference_BB.square().sum() / len(difference_BB)


def _similarity(feature_BCP: Tensor) -> Tensor:
    flat_BF = sample_rows(feature_BCP)
    return unit(flat_BF @ flat_BF.T)
