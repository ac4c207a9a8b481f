"""`Relational`: distances and angles between samples become those that the teacher has."""

from typing import Self

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from overhaul.core import Batch, SpecError
from overhaul.distillation._layer_match import BoundLayerMatch, LayerMatch, sample_rows
from overhaul.distillation._pair_layers import Pair


class Relational(LayerMatch):
    r"""The difference of distances and angles between the samples of a batch.

    .. math::
        L = \lambda_D \operatorname{mean}_{i \ne j} h\Bigl(\frac{d_{s,ij}}{\mu_s}
            - \frac{d_{t,ij}}{\mu_t}\Bigr)
          + \lambda_A \operatorname{mean}_{i \ne j \ne k \ne i} h\bigl(\cos\angle_{s,ijk}
            - \cos\angle_{t,ijk}\bigr)

    with the distance :math:`d_{ij}` of the features of two samples, its mean :math:`\mu` over the
    batch, the angle at sample :math:`j` between the directions to :math:`i` and :math:`k`, and
    Huber's function :math:`h`, which is :math:`u^2 / 2` up to 1 and then linear. Neither channels
    nor sizes need to be the same, and there is no projector.

    It sees the samples that one process computes at once: with `accumulate`, or under several
    processes, a part of the batch. Fewer than two samples have no distance and fewer than three no
    angle: that part is then 0. Angles take memory for :math:`B^3` numbers several times over: at
    256 samples 64 MiB each time.

    Args:
        distance: :math:`\lambda_D`. Default 1.
        angle: :math:`\lambda_A`. Default 2.
        layers: Pairs of module paths, of the student and of the teacher. Default `auto`: the last
            pair by depth and shape.
        weight: Factor of this loss beside the others. Default 1.

    Shapes: features `[B, ...]`.

    Raises:
        SpecError: both weights are 0.

    Example:
        >>> Relational(angle=0.0, weight=25.0)
        Relational(weight=25.0, angle=0.0)

    Paper: Park et al., CVPR 2019 (RKD).  Differs: means are over distinct samples only.  Weights 1
    and 2 are those of the authors' program, for metric learning; 25 and 50, usual for classes, are
    those of the program of Tian, Krishnan and Isola (ICLR 2020), here `weight=25`.
    """

    distance: float = Field(default=1.0, ge=0, description="Weight of the distances.")
    angle: float = Field(default=2.0, ge=0, description="Weight of the angles.")

    @model_validator(mode="after")
    def _some_weight(self) -> Self:
        if self.distance == self.angle == 0:
            raise SpecError("one of `distance` and `angle` must be above 0, got 0 for both.")
        return self

    def choose(self, pairs: tuple[Pair, ...]) -> tuple[Pair, ...]:
        """Return the last pair."""
        return pairs[-1:]

    def bind_pairs(
        self, pairs: tuple[Pair, ...], student: nn.Module, teacher: nn.Module, batch: Batch
    ) -> BoundLayerMatch:
        """Return the match of these pairs of layers."""
        return _Relational(self, pairs)


class _Relational(BoundLayerMatch):
    def __init__(self, plan: Relational, pairs: tuple[Pair, ...]) -> None:
        super().__init__(plan, pairs)
        self.plan = plan

    def pair_loss(
        self, number: int, student_BCP: Tensor, teacher_BCP: Tensor, batch: Batch
    ) -> Tensor:
        own_BB, theirs_BB = _distances(student_BCP), _distances(teacher_BCP)
        samples = len(own_BB)
        loss = own_BB.sum() * 0.0
        if self.plan.distance > 0 and samples > 1:
            gap = F.smooth_l1_loss(_over_mean(own_BB), _over_mean(theirs_BB), reduction="sum")
            loss = loss + self.plan.distance * gap / (samples * (samples - 1))
        if self.plan.angle > 0 and samples > 2:
            gap = F.smooth_l1_loss(_cosines(own_BB), _cosines(theirs_BB), reduction="sum")
            loss = loss + self.plan.angle * gap / (samples * (samples - 1) * (samples - 2))
        return loss


def _distances(feature_BCP: Tensor) -> Tensor:
    flat_BF = sample_rows(feature_BCP)
    # By a product of matrices, small distances would be lost to cancellation.
    return torch.cdist(flat_BF, flat_BF, compute_mode="donot_use_mm_for_euclid_dist")


def _over_mean(distance_BB: Tensor) -> Tensor:
    samples = len(distance_BB)
    mean = distance_BB.sum() / (samples * (samples - 1))
    return torch.where(mean > 0, distance_BB / mean.clamp(min=1e-12), distance_BB)


def _cosines(distance_BB: Tensor) -> Tensor:
    """Return `[j, i, k]`, the cosine at j between i and k, by the law of cosines; 0 if none."""
    to_i_BB1, to_k_B1B = distance_BB[:, :, None], distance_BB[:, None, :]
    product_BBB = 2 * to_i_BB1 * to_k_B1B
    apart_BBB = (product_BBB > 0) & ~torch.eye(
        len(distance_BB), dtype=torch.bool, device=distance_BB.device
    )
    above_BBB = to_i_BB1.square() + to_k_B1B.square() - distance_BB.square()
    cosine_BBB = above_BBB / torch.where(apart_BBB, product_BBB, torch.ones_like(product_BBB))
    return torch.where(apart_BBB, cosine_BBB, torch.zeros_like(cosine_BBB))
