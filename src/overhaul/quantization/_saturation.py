"""`linear_excess` and `conv_excess`: what sums of products lose on a CPU that saturates them."""

from itertools import product

import torch
from torch import Tensor

_LOW, _HIGH = -(2**15), 2**15 - 1
_MOST_SUMS = 2**22
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
    out = torch.zeros(len(x), len(weight), dtype=torch.int32, device=x.device)
    if len(x):
        _add_excess_(out, x, weight, x.amax(0))
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
    N, _, *wide = x.shape
    outs, ins, *kernel = weight.shape
    size = [
        (n - d * (k - 1) - 1) // s + 1
        for n, k, s, d in zip(wide, kernel, stride, dilation, strict=True)
    ]
    out = torch.zeros(N, outs, *size, dtype=torch.int32, device=x.device)
    if not N or ins < 2:  # one product alone fits 16 bits
        return out
    highs_C = x.amax((0, 2, 3))
    for group, (i, j) in product(range(groups), product(*map(range, kernel))):
        mine, read = (slice(group * n, (group + 1) * n) for n in (outs // groups, ins))
        rows, columns = (
            slice(at * d, at * d + (n - 1) * s + 1, s)
            for at, d, n, s in zip((i, j), dilation, size, stride, strict=True)
        )
        window = x[:, read, rows, columns]
        _add_excess_(out[:, mine], window, weight[mine, :, i, j], highs_C[read])
    return out


def _add_excess_(out: Tensor, x: Tensor, weight: Tensor, highs: Tensor) -> None:
    """Add what sums over pairs of channels lose.

    Args:
        out: `[N, O, ...]`.
        x: `[N, C, ...]`.
        weight: `[O, C]`.
        highs: `[C]`, the largest input of each channel: most pairs cannot saturate with these.
    """
    even = weight.shape[1] // 2 * 2
    w_OP2 = weight[:, :even].float().unflatten(1, (-1, 2))
    highs_P2 = highs[:even].float().view(-1, 2)
    most = (w_OP2.clamp(min=0) * highs_P2).sum(-1)
    least = (w_OP2.clamp(max=0) * highs_P2).sum(-1)
    places = ((most > _HIGH) | (least < _LOW)).nonzero()
    if not len(places):
        return
    beside = [-1] + [1] * (x.ndim - 2)
    for chunk in places.split(max(1, _MOST_SUMS // x[:, 0].numel())):
        outputs, pairs = chunk.unbind(1)
        sums = sum(
            x[:, 2 * pairs + n].float() * w_OP2[outputs, pairs, n].view(beside) for n in (0, 1)
        )
        assert isinstance(sums, Tensor)
        lost = sums - sums.clamp(_LOW, _HIGH)
        out.index_add_(1, outputs, lost.to(torch.int32))
