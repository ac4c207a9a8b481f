"""`AttentionTransfer`: the student's layers are active at the places where the teacher's are."""

import math

from torch import Tensor, nn

from overhaul.core import Batch, ModelError
from overhaul.distillation._layer_match import BoundLayerMatch, LayerMatch
from overhaul.distillation._pair_layers import Pair
from overhaul.distillation._precision import single, unit


class AttentionTransfer(LayerMatch):
    r"""The squared distance of the maps of where the layers of both networks are active.

    .. math::
        L = \frac{1}{2B} \sum_b \Bigl\|\frac{q_{s,b}}{\|q_{s,b}\|_2}
            - \frac{q_{t,b}}{\|q_{t,b}\|_2}\Bigr\|_2^2,
        \qquad q_{b,p} = \sum_c f_{b,c,p}^2

    over the places :math:`p` of the features :math:`f`. It is in [0, 1] and needs no projector: the
    numbers of channels may differ. If heights and widths differ, the larger maps are averaged to
    the smaller size.

    Args:
        layers: Pairs of module paths, of the student and of the teacher. Default `auto`: by depth
            and shape, those with more than one place.
        weight: Factor of this loss beside the others. Default 1.

    Shapes: features `[B, C, H, W]`, `[B, C, T]` or `[B, T, C]`.

    Raises:
        ModelError: a layer has a single place, or sequences of two lengths are paired.

    Example:
        >>> AttentionTransfer(weight=100.0, layers=[("layer1", "layer2")])
        AttentionTransfer(weight=100.0, layers=(('layer1', 'layer2'),))

    Paper: Zagoruyko and Komodakis, ICLR 2017, activation-based, with squares (p = 2).  Differs:
    the distance is squared, which is smooth at zero; a mean over layers and samples and not a sum.
    The usual weight 1000 is of a mean over places too (in the program of Tian, Krishnan and Isola,
    ICLR 2020): for a layer with :math:`P` places it is :math:`2000 / P` here, 31 for 8 x 8.
    """

    def choose(self, pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
        """Return the pairs that have places to be active at."""
        chosen = tuple(pair for pair in pairs if _places(pair) > 1)
        if not chosen:
            raise ModelError(
                f"{self.spec_name()} compares places, and no pair of layers found by 'auto' has "
                "more than one. Name layers before the pooling: "
                "layers=[('student.path', 'teacher.path')]; for features without places use hints."
            )
        return chosen

    def bind_pairs(
        self, pairs: tuple[Pair, ...], student: nn.Module, teacher: nn.Module, batch: Batch
    ) -> BoundLayerMatch:
        """Return the match of these pairs of layers."""
        return _AttentionTransfer(self, pairs)


class _AttentionTransfer(BoundLayerMatch):
    def __init__(self, plan: AttentionTransfer, pairs: tuple[Pair, ...]) -> None:
        super().__init__(plan, pairs)
        for pair in pairs:
            pair.check_places(self.name)
            if _places(pair) == 1:
                raise ModelError(
                    f"{self.name} compares places, and one of {pair.student} of the student and "
                    f"{pair.teacher} of the teacher has only one. Name layers before the pooling, "
                    "or use hints."
                )

    def pair_loss(
        self, number: int, student_BCP: Tensor, teacher_BCP: Tensor, batch: Batch
    ) -> Tensor:
        own_B1P, theirs_B1P = self.pairs[number].at_one_size(
            _activity(student_BCP), _activity(teacher_BCP)
        )
        difference_B1P = unit(own_B1P) - unit(theirs_B1P)
        return 0.5 * difference_B1P.square().sum() / len(difference_B1P)


def _activity(feature_BCP: Tensor) -> Tensor:
    return single(feature_BCP).square().sum(1, keepdim=True)


def _places(pair: Pair) -> int:
    return min(math.prod(pair.student.places), math.prod(pair.teacher.places))
