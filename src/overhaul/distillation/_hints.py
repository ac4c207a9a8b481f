"""`Hints`: the student's layers come close to the teacher's, through a projector."""

import torch.nn.functional as F
from torch import Tensor, nn

from overhaul.core import Batch
from overhaul.distillation._layer_match import BoundLayerMatch, LayerMatch
from overhaul.distillation._pair_layers import Pair


class Hints(LayerMatch):
    r"""The squared distance of the student's features, projected, from the teacher's.

    .. math:: L = \frac{1}{2} \operatorname{mean}\bigl((r(f_s) - f_t)^2\bigr)

    where :math:`r` is a linear map from the channels of the student to those of the teacher, the
    same at every place, which is trained along and then dropped. If the networks' sizes differ,
    the larger features are averaged to the smaller size.

    Args:
        layers: Pairs of module paths, of the student and of the teacher. Default `auto`: by depth
            and shape.
        weight: Factor of this loss beside the others. Default 1.

    Shapes: features `[B, C, H, W]`, `[B, T, C]` or `[B, C]`.

    Raises:
        ModelError: sequences of two lengths are paired.

    Example:
        >>> Hints(layers=[("layer1", "layer2")])
        Hints(layers=(('layer1', 'layer2'),))

    Paper: Romero et al., ICLR 2015 (FitNets).  Differs: hints and task are trained together, not
    one after the other, several pairs at once, and the loss is a mean and not a sum.
    """

    def bind_pairs(
        self, pairs: tuple[Pair, ...], student: nn.Module, teacher: nn.Module, batch: Batch
    ) -> BoundLayerMatch:
        """Return the match with a projector for each pair."""
        return _Hints(self, pairs)


class _Hints(BoundLayerMatch):
    def __init__(self, plan: Hints, pairs: tuple[Pair, ...]) -> None:
        super().__init__(plan, pairs)
        for pair in pairs:
            pair.check_places(self.name)
        self.projectors = nn.ModuleList(
            nn.Linear(pair.student.channels, pair.teacher.channels) for pair in pairs
        )

    def pair_loss(
        self, number: int, student_BCP: Tensor, teacher_BCP: Tensor, batch: Batch
    ) -> Tensor:
        own_BCP, theirs_BCP = self.pairs[number].at_one_size(student_BCP, teacher_BCP)
        # Whatever the networks run in, the projector has single precision. A product of matrices:
        # the same by a convolution takes longer on a CPU.
        own_BPC = self.projectors[number](own_BCP.float().transpose(1, 2))
        return 0.5 * F.mse_loss(own_BPC, theirs_BCP.float().transpose(1, 2))
