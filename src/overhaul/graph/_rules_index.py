"""Rules of operations that pick positions."""

from typing import Any

import numpy as np
from torch import Tensor

from overhaul.graph._call import Call, Dims, UnknownUse, rule
from overhaul.graph._labels import Dim, Positions
from overhaul.graph._sizes import Attribute, Extent, expression_of, leaves
from overhaul.graph._trace import is_size


@rule("__getitem__", "getitem")
def getitem(call: Call, input: Tensor, index: Any) -> Dims:
    """Integers, slices, None and Ellipsis; of tensors and lists, one."""
    return indexed(call, input, index)


@rule("__setitem__", "setitem")
def setitem(call: Call, input: Tensor, index: Any, value: Any) -> None:
    """What is picked is replaced."""
    if not isinstance(value, Tensor):
        indexed(call, input, index)
        return
    dims = indexed(call, input, index)
    shape = list(input[index].shape)
    call.broadcast_dims([(shape, dims), (list(value.shape), call.dims(value))])


def indexed(call: Call, input: Tensor, index: Any) -> Dims:
    """Return the dims of `input[index]`."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if isinstance(index, list):
        parts = [np.asarray(index)]
    taken = sum(_takes(part) for part in parts)
    places = [i for i, part in enumerate(parts) if part is Ellipsis]
    at = places[0] if places else len(parts)
    fill = [slice(None)] * (input.ndim - taken)
    parts = [*parts[:at], *fill, *parts[at + bool(places) :]]
    before, result, place = call.dims(input), Dims(), 0
    picked: list[int] = []
    for part in parts:
        if part is None:
            result.append(None)
            continue
        if isinstance(part, bool):
            raise UnknownUse("is indexed by a truth value")
        dim = before[place]
        if isinstance(part, int):
            _select(call, input, dim, int(part), input.shape[place])
            place += 1
        elif isinstance(part, slice):
            result.append(_slice(call, input, dim, part, input.shape[place]))
            place += 1
        else:
            if picked and picked[-1] != len(result):
                raise UnknownUse("is indexed by several tensors that are apart")
            if picked:
                call.fix(dim, "it is indexed by fixed positions")
            else:
                picked.append(len(result))
                result += _pick(call, dim, part)
                picked.append(len(result))
            place += _takes(part)
    return result


def _takes(part: Any) -> int:
    if part is None or part is Ellipsis or isinstance(part, bool):
        return 0
    if (
        isinstance(part, Tensor)
        and part.dtype.is_floating_point is False
        and str(part.dtype)
        in (
            "torch.bool",
            "torch.uint8",
        )
    ):
        return part.ndim
    return 1


def _select(call: Call, input: Tensor, dim: Dim, place: int, size: int) -> None:
    if dim is None:
        return
    if _may_grow(call, input, place):
        call.fix(dim, "single positions of it are picked")
    elif place >= 0:
        call.fix(dim[: place + 1], f"position {place} of it is picked by its number")
    else:
        call.fix(dim[place:], f"position {place} of it is picked by its number")


def _slice(call: Call, input: Tensor, dim: Dim, part: slice, size: int) -> Dim:
    if dim is None:
        _number_like(call, part)
        return None
    start, stop, step = part.indices(size)
    if step != 1:
        if start >= step or part.stop is not None or size % step:
            call.fix(dim, "every so many positions of it are picked")
            return dim[start:stop:step]
        blocks = dim.reshape(-1, step)
        call.trace.labels.tie(blocks, np.broadcast_to(blocks[:, :1], blocks.shape))
        return dim[start:stop:step]
    cuts = [] if start == 0 else [(part.start, start)]
    if part.stop is not None and stop < size:
        cuts.append((part.stop, stop))
    for value, at in cuts:
        if _may_grow(call, input, value):
            call.fix(dim, "a part of it is picked that depends on the input or on a number")
        elif int(value) >= 0:
            call.require(value, dim[:at], at)
        else:
            call.require(-value, dim[at:], size - at)
            text = "it is counted from the end how many are left out or taken, which must be some"
            call.more_than(dim[at:], size - at, 0, text)
    if (
        part.stop is not None
        and stop == size
        and is_size(part.stop)
        and int(part.stop) == size
        and start == 0
    ):
        call.require(part.stop, dim, size)
    return dim[start:stop]


def _may_grow(call: Call, input: Tensor, value: Any) -> bool:
    """Return whether another input, or another attribute, would pick more of a parameter."""
    if call.trace.flow(input).depends and not is_size(value):
        return False
    found = list(leaves(expression_of(value)))
    if any(isinstance(leaf, Extent) and leaf.dim is None for leaf in found):
        return True
    if any(isinstance(leaf, Extent | Attribute) for leaf in found):
        return False
    return not call.trace.flow(input).depends


def _number_like(call: Call, part: slice) -> None:
    for value in (part.start, part.stop):
        if is_size(value):
            call.trace.number(expression_of(value), call.where)


def _pick(call: Call, dim: Dim, part: Any) -> Dims:
    """Return the dims that an index tensor puts in the place of a dimension."""
    if not isinstance(part, Tensor):
        part = np.asarray(part)
        call.fix(dim, "it is indexed by fixed positions")
        return [None] * part.ndim
    index = call.trace.flow(part)
    inner = list(index.dims)
    if dim is None:
        return inner if str(part.dtype) != "torch.bool" else [None]
    if index.values is None or part.ndim != 1 or bool((part < 0).any()):
        call.fix(dim, "it is indexed by values that are computed")
        for each in inner:
            call.fix(each, "it is a table of positions")
        return [None] * (part.ndim if str(part.dtype) != "torch.bool" else 1)
    return [_named(call, dim, inner[0], part.numpy(), index.values)]


def _named(call: Call, dim: Positions, inner: Dim, places: Positions, buffer: str) -> Dim:
    """Return the positions that a buffer of numbers names; it is renumbered when some go."""
    known = call.trace.renumbered.setdefault(buffer, dim)
    if inner is None or len(known) != len(dim):
        for each in (known, dim, inner):
            call.fix(each, "it is indexed by values that stay")
        return None
    call.tie(known, dim)
    call.tie(inner, dim[places])
    return dim[places]


@rule("select")
def select(call: Call, input: Tensor, dim: int, index: int) -> Dims:
    """One position."""
    place = dim % input.ndim
    return indexed(call, input, (*[slice(None)] * place, index))


@rule("narrow")
def narrow(call: Call, input: Tensor, dim: int, start: int, length: int) -> Dims:
    """Some neighbouring positions."""
    place = dim % input.ndim
    return indexed(call, input, (*[slice(None)] * place, slice(start, start + length)))


@rule("index_select")
def index_select(call: Call, input: Tensor, dim: int, index: Tensor) -> Dims:
    """Positions that a vector names."""
    place = dim % input.ndim
    dims = call.dims(input)
    dims[place : place + 1] = _pick(call, dims[place], index)
    return dims


@rule("gather", "take_along_dim")
def gather(call: Call, input: Tensor, dim: Any, index: Any, **_: Any) -> Dims:
    """At each place a position that a tensor names."""
    if not isinstance(index, Tensor):
        dim, index = index, dim
    place = int(dim) % input.ndim
    dims, given = call.dims(input), call.dims(index)
    whole, buffer = dims[place], call.trace.flow(index).values
    rows = index.movedim(place, 0).flatten(1) if index.ndim > 1 else index[:, None]
    constant = bool((rows == rows[:, :1]).all() and (rows >= 0).all())
    if whole is not None and buffer is not None and constant:
        dims[place] = _named(call, whole, given[place], rows[:, 0].numpy(), buffer)
    else:
        call.fix(whole, "it is indexed by values that are computed")
        call.fix(given[place], "it is a table of positions")
        dims[place] = None
    for d in range(input.ndim):
        if d != place and index.shape[d] == input.shape[d]:
            call.tie(dims[d], given[d])
            dims[d] = None if given[d] is None else dims[d]
        elif d != place:
            call.fix(dims[d], "a part of it is picked")
            call.fix(given[d], "a part is picked by it")
            dims[d] = None
    return dims


@rule("unbind")
def unbind(call: Call, input: Tensor, dim: int = 0) -> list[Dims]:
    """Every position for itself."""
    place = dim % input.ndim
    dims = call.dims(input)
    call.fix(dims.pop(place), "its positions are taken apart")
    return [list(dims) for _ in call.out]


@rule("chunk", "tensor_split")
def chunk(call: Call, input: Tensor, chunks: Any, dim: int = 0, **_: Any) -> list[Dims]:
    """Parts of the same size."""
    if not isinstance(chunks, int):
        raise UnknownUse("is split at given places")
    return _parts(call, input, dim)


@rule("split", "split_with_sizes")
def split(call: Call, input: Tensor, sizes: Any, dim: int = 0) -> list[Dims]:
    """Parts of one size, or of given sizes."""
    if isinstance(sizes, int):
        dims = call.dims(input)[dim % input.ndim]
        if dims is not None and len(call.out) == 1:
            call.fix(dims, "it is split into parts of a given size")
        result = _parts(call, input, dim)
        if len(result) > 1:
            place = dim % input.ndim
            call.require(sizes, result[0][place], int(call.out[0].shape[place]))
        return result
    place = dim % input.ndim
    before = call.dims(input)
    result, start = [], 0
    for size, part in zip(sizes, call.out, strict=True):
        whole = before[place]
        count = part.shape[place]
        labels = None if whole is None else whole[start : start + count]
        call.require(size, labels, count)
        start += count
        result.append([*before[:place], labels, *before[place + 1 :]])
    return result


def _parts(call: Call, input: Tensor, dim: int) -> list[Dims]:
    place = dim % input.ndim
    before = call.dims(input)
    count = len(call.out)
    whole = before[place]
    if whole is not None and len({part.shape[place] for part in call.out}) > 1:
        call.fix(whole, "it is split into parts of different sizes")
        before[place] = None
    elif whole is not None:
        call.together(whole, count)
    result, start = [], 0
    for part in call.out:
        labels = before[place]
        size = part.shape[place]
        piece = None if labels is None else labels[start : start + size]
        start += size
        result.append([*before[:place], piece, *before[place + 1 :]])
    return result


@rule("embedding")
def embedding(call: Call, input: Tensor, weight: Tensor, *_: Any, **__: Any) -> Dims:
    """Rows of a table, by their number."""
    rows, width = call.dims(weight)
    call.reads(weight, 0)
    call.fix(rows, "its rows are looked up by number")
    return [*call.dims(input), width]


@rule("embedding_bag")
def embedding_bag(call: Call, input: Tensor, weight: Tensor, *args: Any, **_: Any) -> Dims:
    """Sums or means of rows of a table."""
    rows, width = call.dims(weight)
    call.reads(weight, 0)
    call.fix(rows, "its rows are looked up by number")
    for tensor in (input, *(arg for arg in args if isinstance(arg, Tensor))):
        for dim in call.dims(tensor):
            call.fix(dim, "it is a list of row numbers")
    return [None, width]


@rule("one_hot")
def one_hot(call: Call, tensor: Tensor, num_classes: int = -1) -> Dims:
    """A vector of zeros with a single one."""
    return [*call.dims(tensor), None]


@rule("masked_scatter", "index_fill", "index_add", "scatter", "scatter_add", "index_copy")
def scattered(call: Call, input: Tensor, *_: Any, **__: Any) -> Dims:
    """Values go to places that are computed."""
    raise UnknownUse("puts values at places that are computed")
