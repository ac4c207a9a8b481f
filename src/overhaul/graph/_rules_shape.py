"""Rules of operations that arrange elements anew."""

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from overhaul.graph._call import Call, Dims, UnknownUse, rule
from overhaul.graph._labels import Dim
from overhaul.graph._sizes import Attribute, Combined, Expression, Extent, expression_of


def _axis(dim: int, rank: int) -> int:
    return int(dim) % rank if rank else 0


def _listed(args: tuple[Any, ...]) -> list[int]:
    return list(args[0]) if args and isinstance(args[0], tuple | list) else list(args)


def reshaped(call: Call, dims: Sequence[Dim], old: Sequence[int], new: Sequence[int]) -> Dims:
    """Return the dims after a reshape: products of neighbours are merged and cut."""
    result: Dims = []
    i = j = 0
    while i < len(old) or j < len(new):
        i_end, j_end = i + 1, j + 1
        if j >= len(new):
            i += 1  # what is left are dimensions of size one
            continue
        if i >= len(old):
            result.append(None)
            j += 1
            continue
        left, right = old[i], new[j]
        while left != right:
            if left < right:
                left *= old[i_end]
                i_end += 1
            else:
                right *= new[j_end]
                j_end += 1
        merged = call.merge(dims[i:i_end], old[i:i_end])
        parts = list(new[j:j_end])
        result += [merged] if len(parts) == 1 else call.cut(merged, parts)
        i, j = i_end, j_end
    return result


@rule("view", "reshape", "unsafe_view")
def view(call: Call, input: Tensor, *shape: Any, **named: Any) -> Dims:
    """The shape is given, with at most one -1."""
    if named:
        shape = (named.get("shape", named.get("size")),)
    sizes = _listed(shape)
    if sizes and not isinstance(sizes[0], int):
        raise UnknownUse("changes the type of the elements")
    dims = reshaped(call, call.dims(input), list(input.shape), list(call.out.shape))
    for size, dim, count in zip(sizes, dims, call.out.shape, strict=True):
        if int(size) != -1:
            call.require(size, dim, count)
    _stays_a_copy(call, input)
    _heads_of(call, sizes, dims)
    return dims


def _stays_a_copy(call: Call, input: Tensor) -> None:
    """Of an expanded tensor a reshape makes a copy, but not where a dimension of one is left.

    What it makes then is expanded itself, and a `view` that comes after it fails.
    """
    expanded = any(n > 1 and step == 0 for n, step in zip(input.shape, input.stride(), strict=True))
    if not expanded or call.out.data_ptr() == input.data_ptr():
        return
    text = "the reshape of an expanded tensor is a copy only where more than one is left"
    for size, dim in zip(input.shape, call.dims(input), strict=True):
        call.more_than(dim, size, 1, text)


def _heads_of(call: Call, sizes: Sequence[int], dims: Sequence[Dim]) -> None:
    """In `view(..., heads, width // heads)` the width stays right if it goes with its heads."""
    given = [expression_of(size) for size in sizes]
    for place, each in enumerate(given):
        if not isinstance(each, Combined) or each.operation is not operator.floordiv:
            continue
        width = each.left.dim if isinstance(each.left, Extent) else None
        found = [j for j, other in enumerate(given) if _same(other, each.right)]
        if width is None or len(found) != 1:
            continue
        factors = [(int(sizes[j]), dims[j]) for j in (found[0], place)]
        if math.prod(count for count, _ in factors) == len(width):
            call.trace.relate(width, factors, call.fixed_here)


def _same(one: Expression, other: Expression) -> bool:
    if isinstance(one, Extent) and isinstance(other, Extent):
        return one.dim is other.dim and one.dim is not None
    return isinstance(one, Attribute) and one == other


@rule("view_as", "reshape_as", "expand_as")
def shaped_as(call: Call, input: Tensor, other: Tensor) -> Dims:
    """The shape is that of another tensor."""
    if call.name == "expand_as":
        return call.broadcast(input, other)
    dims = reshaped(call, call.dims(input), list(input.shape), list(call.out.shape))
    for dim, given in zip(dims, call.dims(other), strict=True):
        call.tie(dim, given)
    return dims


@rule("flatten")
def flatten(call: Call, input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Dims:
    """Neighbouring dimensions become one."""
    return reshaped(call, call.dims(input), list(input.shape), list(call.out.shape))


@rule("unflatten")
def unflatten(call: Call, input: Tensor, dim: int, sizes: Sequence[int]) -> Dims:
    """A dimension becomes several."""
    start = _axis(dim, input.ndim)
    dims = reshaped(call, call.dims(input), list(input.shape), list(call.out.shape))
    for place, size in enumerate(sizes):
        if int(size) != -1:
            call.require(size, dims[start + place], int(size))
    return dims


@rule("permute")
def permute(call: Call, input: Tensor, *order: Any, dims: Any = None) -> Dims:
    """Dimensions change places."""
    before = call.dims(input)
    return [before[_axis(d, input.ndim)] for d in (dims or _listed(order))]


@rule("transpose", "swapaxes", "swapdims", "transpose_")
def transpose(call: Call, input: Tensor, dim0: int, dim1: int) -> Dims:
    """Two dimensions change places."""
    dims = call.dims(input)
    a, b = _axis(dim0, input.ndim), _axis(dim1, input.ndim)
    dims[a], dims[b] = dims[b], dims[a]
    return dims


@rule("t", "T", "mT", "H", "mH", "adjoint")
def last_two(call: Call, input: Tensor) -> Dims:
    """The last two dimensions change places; of `T` all of them."""
    dims = call.dims(input)
    if call.name == "T":
        return dims[::-1]
    return dims if input.ndim < 2 else [*dims[:-2], dims[-1], dims[-2]]


@rule("movedim", "moveaxis")
def movedim(call: Call, input: Tensor, source: Any, destination: Any) -> Dims:
    """Some dimensions move, the others keep their order."""
    before = call.dims(input)
    sources = [_axis(d, input.ndim) for d in _listed((source,))]
    places = [_axis(d, input.ndim) for d in _listed((destination,))]
    rest = iter(d for d in range(input.ndim) if d not in sources)
    order = [
        sources[places.index(place)] if place in places else next(rest)
        for place in range(input.ndim)
    ]
    return [before[d] for d in order]


@rule("unsqueeze", "unsqueeze_")
def unsqueeze(call: Call, input: Tensor, dim: int) -> Dims:
    """A dimension of size one is put in."""
    dims = call.dims(input)
    dims.insert(_axis(dim, input.ndim + 1), None)
    return dims


@rule("squeeze", "squeeze_")
def squeeze(call: Call, input: Tensor, dim: Any = None) -> Dims:
    """Dimensions of size one are taken out."""
    shape = _shape_before(call, input)
    chosen = range(len(shape)) if dim is None else [_axis(d, len(shape)) for d in _listed((dim,))]
    dims = call.dims(input)
    for d in chosen:
        call.more_than(dims[d], shape[d], 1, "it would be squeezed away if only one were left")
    return [dims[d] for d in range(len(shape)) if d not in chosen or shape[d] != 1]


def _shape_before(call: Call, input: Tensor) -> list[int]:
    if call.name.endswith("_"):
        raise UnknownUse("changes the shape in place")
    return list(input.shape)


@rule("expand", "broadcast_to")
def expand(call: Call, input: Tensor, *sizes: Any, size: Any = None, **_: Any) -> Dims:
    """Dimensions of size one are repeated without a copy."""
    given = list(size) if size is not None else _listed(sizes)
    dims: Dims = [*([None] * (len(given) - input.ndim)), *call.dims(input)]
    shape = [1] * (len(given) - input.ndim) + list(input.shape)
    for place, wanted in enumerate(given):
        count = call.out.shape[place]
        if int(wanted) == -1 or count == 1:
            continue
        if shape[place] == 1:
            dims[place] = call.fresh(count)
        call.require(wanted, dims[place], count)
    return dims


@rule("repeat", "tile")
def repeat(call: Call, input: Tensor, *sizes: Any, **named: Any) -> Dims:
    """The whole tensor is repeated along dimensions."""
    times = list(next(iter(named.values()))) if named else _listed(sizes)
    rank = max(len(times), input.ndim)
    times = [1] * (rank - len(times)) + times
    dims: Dims = [*([None] * (rank - input.ndim)), *call.dims(input)]
    shape = [1] * (rank - input.ndim) + list(input.shape)
    for place, count in enumerate(times):
        dim = dims[place]
        if shape[place] == 1 and int(count) > 1:
            dims[place] = call.fresh(int(count))
            call.require(count, dims[place], int(count))
        elif dim is not None:
            dims[place] = np.tile(dim, int(count))
    return dims


@rule("repeat_interleave")
def repeat_interleave(
    call: Call, input: Tensor, repeats: Any, dim: int | None = None, **_: Any
) -> Dims:
    """Each position is repeated."""
    if not isinstance(repeats, int) or dim is None:
        raise UnknownUse("repeats positions differently often")
    dims = call.dims(input)
    place = _axis(dim, input.ndim)
    old = dims[place]
    if old is not None:
        dims[place] = np.repeat(old, int(repeats))
    elif input.shape[place] == 1 and int(repeats) > 1:
        dims[place] = call.fresh(int(repeats))
        call.require(repeats, dims[place], int(repeats))
    return dims


@rule("flip", "fliplr", "flipud")
def flip(call: Call, input: Tensor, *args: Any, dims: Any = None) -> Dims:
    """Positions are taken from the end to the beginning."""
    result = call.dims(input)
    chosen = {"fliplr": [1], "flipud": [0]}.get(call.name) or _listed((dims,) if dims else args)
    for place in {_axis(d, input.ndim) for d in chosen}:
        dim = result[place]
        result[place] = None if dim is None else dim[::-1]
    return result


@rule("roll")
def roll(call: Call, input: Tensor, shifts: Any, dims: Any = None) -> Dims:
    """Positions are moved on, and those at the end go to the beginning.

    A shift that is written as a number stays right when nothing that goes round is removed.
    """
    result = call.dims(input)
    if dims is None or (isinstance(dims, tuple) and not dims):
        raise UnknownUse("rolls the flattened tensor")
    for shift, d in zip(_listed((shifts,)), _listed((dims,)), strict=True):
        place = _axis(d, input.ndim)
        dim = result[place]
        if dim is None:
            continue
        back = int(shift) % len(dim)
        if back == 0:
            continue
        if int(shift) > 0:
            call.require(shift, dim[-back:], back)
        else:
            call.require(-shift, dim[: len(dim) - back], len(dim) - back)
        result[place] = np.roll(dim, back)
    return result


@rule("pad")
def pad(
    call: Call, input: Tensor, pad: Sequence[int], mode: str = "constant", value: Any = None
) -> Dims:
    """New positions are put before and behind; a negative number takes some away."""
    dims = call.dims(input)
    for back in range(len(pad) // 2):
        place = input.ndim - 1 - back
        before, behind = pad[2 * back], pad[2 * back + 1]
        dim = dims[place]
        if dim is None or (int(before) == 0 and int(behind) == 0):
            continue
        if mode != "constant":
            raise UnknownUse(f"pads removable positions in the mode {mode}")
        if int(before) < 0:
            call.require(-before, dim[: -int(before)], -int(before))
            dim = dim[-int(before) :]
        if int(behind) < 0:
            call.require(-behind, dim[int(behind) :], -int(behind))
            dim = dim[: int(behind)]
        ends = []
        for count in (before, behind):
            ends.append(call.fresh(max(int(count), 0)))
            if int(count) > 0:
                call.require(count, ends[-1], int(count))
        dims[place] = np.concatenate([ends[0], dim, ends[1]])
    return dims


@rule("cat", "concat", "concatenate", "hstack", "vstack", "dstack")
def cat(call: Call, tensors: Sequence[Tensor], dim: Any = 0, axis: Any = None, **_: Any) -> Dims:
    """Positions of several tensors one behind the other."""
    if call.name in ("hstack", "vstack", "dstack"):
        dim = {"vstack": 0, "hstack": 0 if tensors[0].ndim == 1 else 1, "dstack": 2}[call.name]
        if tensors[0].ndim < int(dim) + 1 or tensors[0].ndim == 1:
            raise UnknownUse("stacks tensors of too few dimensions")
    tensors = [t for t in tensors if not (t.ndim == 1 and t.numel() == 0)] or list(tensors)
    place = _axis(dim if axis is None else axis, tensors[0].ndim)
    result = call.dims(tensors[0])
    for tensor in tensors[1:]:
        for d, dim_ in enumerate(call.dims(tensor)):
            if d != place:
                call.tie(result[d], dim_)
                result[d] = None if dim_ is None else result[d]
    parts = [(call.dims(t)[place], t.shape[place]) for t in tensors]
    if all(part is None for part, _ in parts):
        result[place] = None
    else:
        result[place] = np.concatenate([call.concrete(part, size) for part, size in parts])
    return result


@rule("stack")
def stack(call: Call, tensors: Sequence[Tensor], dim: int = 0, **_: Any) -> Dims:
    """Several tensors along a new dimension."""
    result = call.broadcast(*tensors)
    result.insert(_axis(dim, tensors[0].ndim + 1), None)
    return result


@rule("pixel_shuffle")
def pixel_shuffle(call: Call, input: Tensor, upscale_factor: int) -> Dims:
    """`r * r` channels become one of a finer image."""
    dims = call.dims(input)
    channel = call.cut(
        dims[-3], [input.shape[-3] // int(upscale_factor) ** 2, int(upscale_factor) ** 2]
    )
    call.fix(channel[1], "they are the pixels of one channel")
    return [*dims[:-3], channel[0], *_image(call, dims)]


@rule("pixel_unshuffle")
def pixel_unshuffle(call: Call, input: Tensor, downscale_factor: int) -> Dims:
    """One channel becomes `r * r` of a coarser image."""
    dims = call.dims(input)
    channel = dims[-3]
    many = None if channel is None else np.repeat(channel, int(downscale_factor) ** 2)
    return [*dims[:-3], many, *_image(call, dims)]


def _image(call: Call, dims: Dims) -> Dims:
    """Fix the last two dimensions and return what they are in the result."""
    for dim in dims[-2:]:
        call.fix(dim, "it is a side of an image")
    return [None, None]


@rule("channel_shuffle", "native_channel_shuffle")
def channel_shuffle(call: Call, input: Tensor, groups: int) -> Dims:
    """Channels of several groups alternate."""
    dims = call.dims(input)
    sizes = [int(groups), input.shape[1] // int(groups)]
    outer, inner = call.cut(dims[1], sizes)
    call.require(groups, outer, sizes[0])
    dims[1] = call.merge([inner, outer], sizes[::-1])
    return dims


@rule("unfold")
def unfold(call: Call, input: Tensor, *args: Any, **options: Any) -> Dims:
    """Patches of an image, as columns; or windows of one dimension."""
    dims = call.dims(input)
    if call.out.ndim == input.ndim + 1 and len(args) == 3:
        place = _axis(args[0], input.ndim)
        call.fix(dims[place], "windows are cut from it")
        return [*dims[:place], None, *dims[place + 1 :], None]
    channel = dims[-3]
    _image(call, dims)
    many = None if channel is None else np.repeat(channel, call.out.shape[-2] // input.shape[-3])
    return [*dims[:-3], many, None]


@rule("fold")
def fold(call: Call, input: Tensor, output_size: Any, kernel_size: Any, *_: Any, **__: Any) -> Dims:
    """Columns of patches become an image again."""
    dims = call.dims(input)
    kernel = input.shape[-2] // call.out.shape[-3]
    channel, window = call.cut(dims[-2], [input.shape[-2] // kernel, kernel])
    call.fix(window, "they are the pixels of one channel")
    call.fix(dims[-1], "they are the places of patches")
    return [*dims[:-2], channel, None, None]


def sides(call: Call, input: Tensor, kept: int) -> Dims:
    """Return dims of which the first `kept` stay as they are and the rest are fixed."""
    dims = call.dims(input)
    for dim in dims[kept:]:
        call.fix(dim, "neighbouring positions are computed together")
    return [*dims[:kept], *([None] * (call.out.ndim - kept))]


@rule("tril", "triu")
def triangle(call: Call, input: Tensor, *_: Any, **__: Any) -> Dims:
    """A triangle of the last two dimensions is kept."""
    return sides(call, input, input.ndim - 2)


_SPATIAL = [
    *(
        f"{kind}_pool{d}d"
        for kind in ("avg", "max", "adaptive_avg", "adaptive_max", "lp")
        for d in (1, 2, 3)
    ),
    *(f"max_pool{d}d_with_indices" for d in (1, 2, 3)),
    *("interpolate", "upsample", "grid_sample", "upsample_nearest", "upsample_bilinear"),
]


@rule(*_SPATIAL)
def spatial(call: Call, input: Tensor, *args: Any, **__: Any) -> Any:
    """Neighbouring places are computed together, channel by channel."""
    outs = [call.out] if isinstance(call.out, Tensor) else [t for t in call.out if t is not None]
    kept = 2 if call.name in ("interpolate", "upsample", "grid_sample") else None
    if kept is None:
        rank = next((int(c) for c in call.name if c.isdigit()), 2)
        kept = input.ndim - rank
    dims = sides(call, input, kept)
    return dims if isinstance(call.out, Tensor) else [list(dims) for _ in outs]
