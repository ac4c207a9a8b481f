"""`WeightForm` and `integers_of`: how a weight is written in few bits."""

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from overhaul.core import Spec, dequantize, pack4, unpack4

WeightType: TypeAlias = Literal["int8", "int4", "float16", "bfloat16"]
Granularity: TypeAlias = Literal["tensor", "channel", "block"]
_AT_ONCE = 2**16
"""Numbers of a weight whose scales are searched at once: they stay in the cache of a CPU."""


class WeightForm(Spec):
    """How one weight is stored.

    Attributes:
        type: Of the stored numbers.
        axis: The dimension along which scales differ: of the outputs for channels, of the inputs
            for blocks.
        block: How many integers share a scale along `axis`; 0 for none.
        per_tensor: Whether a single scale serves all.
        bits: How many bits the integers have; 7 leaves room for sums on a CPU that saturates.
        shape: Of the weight, where the integers are packed: as `[O, N]`, and two in a byte.
    """

    type: WeightType
    axis: int = 0
    block: int = 0
    per_tensor: bool = False
    bits: int = 8
    shape: tuple[int, ...] = ()

    @property
    def is_integer(self) -> bool:
        """Whether the numbers are integers with a scale."""
        return self.type in ("int8", "int4")

    @property
    def limits(self) -> tuple[int, int]:
        """The smallest and the largest integer; as far from zero on both sides for 7 and 8 bits."""
        top = 2 ** (self.bits - 1) - 1
        return (-top - 1 if self.bits <= 4 else -top), top

    def flat(self, weight: Tensor) -> Tensor:
        """Return the weight in the shape that its integers and scales belong to."""
        return weight.flatten(1) if self.shape else weight

    def stored(self, q: Tensor) -> Tensor:
        """Return the integers as they are stored: two in a byte if they have four bits."""
        return pack4(q) if self.type == "int4" else q

    def restored(self, stored: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        """Return the weight that the layer computes with."""
        if self.type != "int4":
            return dequantize(stored, scale, zero_point, self.axis, self.block)
        q = unpack4(stored, math.prod(self.shape[1:]))
        return dequantize(q, scale, zero_point, self.axis, self.block).view(self.shape)


def scales_of(weight: Tensor, form: WeightForm, *, search: bool) -> Tensor:
    r"""Return the scale of each channel or block of a weight, for a zero point of zero.

    .. math:: s = \max |w| \, / \, q_{\max}

    With `search`, the scale among shrunken ones that has the least squared error
    :math:`\sum (w - s\,\mathrm{clip}(\mathrm{round}(w/s)))^2`: to lose a few outliers is often
    better than to be coarse everywhere. The scales of blocks are many, so they are rounded to
    float16.

    Args:
        weight: `[...]`.
        form: Where scales differ.
        search: Whether to look for the least error.
    """
    w = weight.detach()
    apart = not form.per_tensor and (form.axis == 0) != bool(form.block)  # rows share no scale
    if not (search and apart and w.device.type == "cpu" and w.numel() > _AT_ONCE):
        scale = _scales_of(w, form, search=search)
    else:
        rows = max(1, _AT_ONCE * len(w) // w.numel())
        scale = torch.cat([_scales_of(part, form, search=search) for part in w.split(rows)])
    return _as_halves(scale) if form.block else scale


def _scales_of(w: Tensor, form: WeightForm, *, search: bool) -> Tensor:
    low, top = form.limits
    largest = reduced(w.abs(), form, "max").clamp(min=_smallest(w.dtype))
    if low < -top:  # the side with the larger numbers gets the additional integer
        highest, lowest = reduced(w, form, "max"), -reduced(-w, form, "max")
        scale = torch.where(highest > -lowest, -highest / -low, lowest / low)
        scale = torch.where(scale == 0, largest / top, scale)
    else:
        scale = largest / top
    if not search:
        return scale
    best, least = scale, _error(w, scale, form)
    for part in torch.linspace(0.98, 0.5, 25).tolist():
        candidate = scale * part
        error = _error(w, candidate, form)
        best = torch.where(error < least, candidate, best)
        least = torch.minimum(error, least)
    return best


def _smallest(dtype: torch.dtype) -> float:
    """Return what counts as zero: its 127th part must still be a number of this type."""
    tiny = torch.finfo(dtype).tiny
    return tiny if dtype == torch.float16 else tiny * 1e6  # float16 begins at 6e-5


def _as_halves(scale: Tensor) -> Tensor:
    """Round scales to float16 where its normal numbers reach, so that an artifact may store that.

    A block of zeros alone has a scale of no meaning: it gets the smallest of these numbers.
    """
    size, half = scale.abs(), torch.finfo(torch.float16)
    reached = (size >= half.tiny) & (size <= half.max)
    nothing = size < torch.finfo(torch.float32).tiny * 1e6
    rounded = torch.where(reached, scale.half().to(scale.dtype), scale)
    return torch.where(nothing, half.tiny, rounded)


def integers_of(weight: Tensor, scale: Tensor, form: WeightForm) -> Tensor:
    """Return the nearest integers, `int8`, of the shape of the weight."""
    low, top = form.limits
    return (weight / spread(scale, weight, form)).round().clamp(low, top).to(torch.int8)


def spread(values: Tensor, weight: Tensor, form: WeightForm) -> Tensor:
    """Return one value for each channel or block so that it meets the weight."""
    if form.per_tensor:
        return values
    if form.block:
        return values.repeat_interleave(form.block, form.axis).narrow(
            form.axis, 0, weight.shape[form.axis]
        )
    return values.view([-1 if dim == form.axis else 1 for dim in range(weight.ndim)])


def _error(weight: Tensor, scale: Tensor, form: WeightForm) -> Tensor:
    wide = spread(scale, weight, form)
    low, top = form.limits
    return reduced((weight - (weight / wide).round().clamp(low, top) * wide).square(), form, "sum")


def reduced(values: Tensor, form: WeightForm, how: Literal["max", "sum"]) -> Tensor:
    """Return the largest value, or the sum, of each channel or block."""
    if form.per_tensor:
        return values.amax() if how == "max" else values.sum()
    if form.block:
        size = values.shape[form.axis]
        short = -size % form.block
        fill = float("-inf") if how == "max" else 0.0
        last = values.movedim(form.axis, -1)
        blocks = torch.nn.functional.pad(last, (0, short), value=fill).unflatten(
            -1, (-1, form.block)
        )
        found: Tensor = blocks.amax(-1) if how == "max" else blocks.sum(-1)
        return found.movedim(-1, form.axis)
    others = [dim for dim in range(values.ndim) if dim != form.axis]
    result: Tensor = values.amax(others) if how == "max" else values.sum(others)
    return result
