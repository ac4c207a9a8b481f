"""Integers for real numbers: `quantize` and `dequantize`, which every engine knows."""

from abc import ABC, abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

_LIBRARY = torch.library.Library("overhaul", "DEF")
_LIBRARY.define("quantize(Tensor x, Tensor scale, Tensor zero_point, int axis) -> Tensor")
_LIBRARY.define(
    "dequantize(Tensor q, Tensor scale, Tensor zero_point, int axis, int block) -> Tensor"
)
_LIBRARY.define("unpack4(Tensor packed, int size) -> Tensor")


class StoresIntegers(ABC):
    """A module that keeps weights which are no parameters any more, in few bits.

    They are counted like parameters wherever parameters are counted.
    """

    @abstractmethod
    def stored_weights(self) -> Iterator[tuple[Tensor, int]]:
        """Yield each weight as it is stored, and how many numbers it is."""

    @property
    @abstractmethod
    def rounds_inputs(self) -> bool:
        """Whether its inputs pass through integers too."""

    @abstractmethod
    def restore_(self) -> None:
        """Become the plain module again, with the real numbers that its integers stand for."""


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int = 0) -> Tensor:
    r"""Return the integers of real numbers, ONNX's `QuantizeLinear`.

    .. math:: q = \operatorname{clip}(\operatorname{round}(x / s) + z)

    rounded half to even, and clipped to the range of the integer type.

    Args:
        x: `[...]`, real numbers.
        scale: `[]`, or `[N]` along `axis`: the real number that is a step of one.
        zero_point: Like `scale`: the integer that is zero. Its type, `uint8` or `int8`, is that of
            the result.
        axis: Which dimension of `x` the scales belong to; of no meaning for a single one.

    Example:
        >>> quantize(torch.tensor([0.0, 0.5, 9.0]), torch.tensor(0.5), torch.tensor(1).byte())
        tensor([ 1,  2, 19], dtype=torch.uint8)
    """
    out: Tensor = torch.ops.overhaul.quantize(x, scale, zero_point, axis)
    return out


def dequantize(
    q: Tensor, scale: Tensor, zero_point: Tensor, axis: int = 0, block: int = 0
) -> Tensor:
    r"""Return the real numbers of integers, ONNX's `DequantizeLinear`.

    .. math:: \hat x = (q - z) \, s

    Args:
        q: `[...]`, integers.
        scale: `[]`, or `[N]` along `axis`, or for blocks the shape of `q` with `ceil(N / block)`
            along `axis`.
        zero_point: Like `scale`, of the type of `q`.
        axis: Which dimension of `q` the scales belong to; of no meaning for a single one.
        block: How many integers along `axis` share a scale; 0 for no blocks.

    Returns:
        `[...]`, of the type of `scale`.

    Example:
        >>> dequantize(torch.tensor([1, 19]).byte(), torch.tensor(0.5), torch.tensor(1).byte())
        tensor([0., 9.])
    """
    out: Tensor = torch.ops.overhaul.dequantize(q, scale, zero_point, axis, block)
    return out


def pack4(q: Tensor) -> Tensor:
    """Return integers of four bits, two in a byte, the first of them in the lower half.

    Args:
        q: `[..., N]`, `int8` in -8 .. 7.

    Returns:
        `[..., ceil(N / 2)]`, `uint8`.

    Example:
        >>> pack4(torch.tensor([1, -1, 7]).char())
        tensor([241,   7], dtype=torch.uint8)
    """
    nibbles = torch.nn.functional.pad(q, (0, q.shape[-1] % 2)).to(torch.uint8) & 15
    return nibbles[..., 0::2] | (nibbles[..., 1::2] << 4)


def unpack4(packed: Tensor, size: int) -> Tensor:
    """Return what `pack4` packed: `[..., size]`, `int8`.

    Example:
        >>> unpack4(torch.tensor([241, 7]).byte(), 3)
        tensor([ 1, -1,  7], dtype=torch.int8)
    """
    out: Tensor = torch.ops.overhaul.unpack4(packed, size)
    return out


def plain_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    """Compute `quantize` with torch's own operations."""
    limits = torch.iinfo(zero_point.dtype)
    q = (x / _beside(scale, x, axis)).round() + _beside(zero_point, x, axis).to(x.dtype)
    return q.clamp(limits.min, limits.max).to(zero_point.dtype)


def plain_dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, axis: int, block: int) -> Tensor:
    """Compute `dequantize` with torch's own operations."""
    if block:
        size = q.shape[axis]
        scale, zero_point = (
            each.repeat_interleave(block, axis).narrow(axis, 0, size)
            for each in (scale, zero_point)
        )
    else:
        scale, zero_point = _beside(scale, q, axis), _beside(zero_point, q, axis)
    return (q.to(scale.dtype) - zero_point.to(scale.dtype)) * scale


def plain_unpack4(packed: Tensor, size: int) -> Tensor:
    """Compute `unpack4` with torch's own operations."""
    halves = torch.stack((packed & 15, packed >> 4), -1).flatten(-2).to(torch.int8)
    signed: Tensor = torch.where(halves > 7, halves - 16, halves)
    return signed.narrow(-1, 0, size)


def _beside(values: Tensor, x: Tensor, axis: int) -> Tensor:
    """Shape one value for each position of an axis so that it meets `x`."""
    if values.ndim == 0:
        return values
    return values.view([-1 if dim == axis % x.ndim else 1 for dim in range(x.ndim)])


PLAIN = {
    torch.ops.overhaul.quantize.default: plain_quantize,
    torch.ops.overhaul.dequantize.default: plain_dequantize,
    torch.ops.overhaul.unpack4.default: plain_unpack4,
}
"""What each operation is in torch's own operations: for an engine that knows no integers."""


def _quantize_shape(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int) -> Tensor:
    return torch.empty_like(x, dtype=zero_point.dtype)


def _dequantize_shape(
    q: Tensor, scale: Tensor, zero_point: Tensor, axis: int, block: int
) -> Tensor:
    return torch.empty_like(q, dtype=scale.dtype)


def _unpack4_shape(packed: Tensor, size: int) -> Tensor:
    return packed.new_empty((*packed.shape[:-1], size), dtype=torch.int8)


for _operation, _plain in PLAIN.items():
    _LIBRARY.impl(_operation._opname, _plain, "CompositeExplicitAutograd")
torch.library.register_fake("overhaul::quantize", _quantize_shape, lib=_LIBRARY)
torch.library.register_fake("overhaul::dequantize", _dequantize_shape, lib=_LIBRARY)
torch.library.register_fake("overhaul::unpack4", _unpack4_shape, lib=_LIBRARY)
