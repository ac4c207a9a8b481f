"""`linear_excess` and `conv_excess`: what sums of products lose on a CPU that saturates them."""

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

_LOW, _HIGH = -(2**15), 2**15 - 1
_MOST_SUMS = 2**24
"""Sums of pairs that are in memory at once."""


def linear_excess(x: Tensor, weight: Tensor) -> Tensor:
    r"""Return how far the exact sums of a linear layer are above the saturated ones.

    A CPU with AVX2 and without VNNI multiplies `uint8` by `int8` with `vpmaddubsw`, which adds two
    products that are next to each other and keeps what fits 16 bits:

    .. math:: y_{no} = \sum_p \mathrm{sat}_{16}(x_{n,2p} w_{o,2p} + x_{n,2p+1} w_{o,2p+1})

    Two products of at most :math:`255 \cdot 127` do not fit; two of :math:`255 \cdot 63` do.

    Args:
        x: `[N, K]`, the numbers of a `uint8`, of any type.
        weight: `[O, K]`, those of an `int8`.

    Returns:
        `[N, O]`, `int32`: exact sum minus saturated sum.

    Example:
        >>> x, w = torch.tensor([[255, 255, 1]]), torch.tensor([[127, 127, 1]])
        >>> linear_excess(x, w), 2 * 255 * 127 - 32767
        (tensor([[32003]], dtype=torch.int32), 32003)
    """
    x_NP2, w_OP2 = _paired(x), _paired(weight)
    out = torch.zeros(len(x), len(weight), dtype=torch.int32, device=x.device)
    if len(x):
        places = _suspects(w_OP2, x_NP2.amax(0))
        _add_excess_(out, x_NP2, w_OP2, places)
    return out


def conv_excess(
    x: Tensor,
    weight: Tensor,
    *,
    stride: tuple[int, int],
    dilation: tuple[int, int],
    groups: int = 1,
) -> Tensor:
    """Return the same of a convolution: pairs are neighbouring input channels of a group.

    Kernels go over the channels first, padded to an even number, and over places of the window
    then, so that a convolution of one channel a group never saturates.

    Args:
        x: `[N, C, H, W]`, the numbers of a `uint8`, already padded at the borders.
        weight: `[O, C / groups, kH, kW]`, those of an `int8`.
        stride: In both directions.
        dilation: In both directions.
        groups: Of channels.

    Returns:
        `[N, O, oH, oW]`, `int32`.
    """
    N, C, H, W = x.shape
    outs, ins, kH, kW = weight.shape
    size = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip((H, W), (kH, kW), stride, dilation, strict=True)
    ]
    out = torch.zeros(N, outs, size[0] * size[1], dtype=torch.int32, device=x.device)
    highs_C = x.amax((0, 2, 3)) if N else x.new_zeros(C)
    for group in range(groups):
        w_OKI = weight[group * outs // groups : (group + 1) * outs // groups].flatten(2).mT
        w_OP2 = _paired(w_OKI).flatten(1, 2)
        highs_P2 = _paired(highs_C[group * ins : (group + 1) * ins]).repeat(kH * kW, 1)
        places = _suspects(w_OP2, highs_P2)
        if not len(places[0]):
            continue
        for n in range(N):
            part = x[n : n + 1, group * ins : (group + 1) * ins].float()
            columns = F.unfold(part, (kH, kW), dilation=dilation, stride=stride)
            x_LKI = columns.view(ins, kH * kW, -1).permute(2, 1, 0)
            found = torch.zeros(
                size[0] * size[1], outs // groups, dtype=torch.int32, device=x.device
            )
            _add_excess_(found, _paired(x_LKI).flatten(1, 2), w_OP2, places)
            out[n, group * outs // groups : (group + 1) * outs // groups] = found.mT
    return out.view(N, outs, *size)


def _paired(values: Tensor) -> Tensor:
    """Return the last dimension in pairs, filled up with a zero."""
    pairs: Tensor = F.pad(values, (0, values.shape[-1] % 2)).to(torch.int32).unflatten(-1, (-1, 2))
    return pairs


def _suspects(w_OP2: Tensor, highs_P2: Tensor) -> tuple[Tensor, Tensor]:
    """Return the outputs and pairs whose sums can leave 16 bits, with the largest inputs."""
    most = (w_OP2.clamp(min=0) * highs_P2).sum(-1)
    least = (w_OP2.clamp(max=0) * highs_P2).sum(-1)
    found = ((most > _HIGH) | (least < _LOW)).nonzero()
    return found[:, 0], found[:, 1]


def _add_excess_(out: Tensor, x_NP2: Tensor, w_OP2: Tensor, places: tuple[Tensor, Tensor]) -> None:
    """Add what the sums at these places lose to `out`, `[N, O]`."""
    step = max(1, _MOST_SUMS // max(1, len(x_NP2)))
    edges = [*range(0, len(places[0]), step), len(places[0])]
    for first, last in pairwise(edges):
        outputs, pairs = places[0][first:last], places[1][first:last]
        sums = (x_NP2[:, pairs] * w_OP2[outputs, pairs]).sum(-1)
        lost = sums - sums.clamp(_LOW, _HIGH)
        out.index_add_(1, outputs, lost.to(torch.int32))
