"""Rules of layers with weights, and of products of tensors."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from overhaul.graph._call import Call, Dims, UnknownUse, rule
from overhaul.graph._labels import Dim


@rule("linear")
def linear(call: Call, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Dims:
    """`y = x W^T + b`."""
    dims, shape = call.dims(input), list(input.shape)
    if weight.ndim == 1:
        raise UnknownUse("has a weight without outputs")
    outputs, inputs = call.dims(weight)
    call.reads(weight, 1)
    call.tie(dims[-1], inputs) if shape[-1] > 1 else None
    if not _weights_only(call, weight):
        call.mixes([[*dims[:-1], outputs]])
    if bias is not None:
        call.tie(outputs, call.dims(bias)[0]) if len(bias) > 1 else None
    call.macs(1, [*dims[:-1], inputs, outputs], [*shape[:-1], *reversed(weight.shape)])
    return [*dims[:-1], outputs]


def _weights_only(call: Call, weight: Tensor) -> bool:
    return call.trace.flow(weight).state is not None


@rule("conv1d", "conv2d", "conv3d")
def conv(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Dims:
    """Each output channel of a group is computed from all input channels of that group."""
    return _convolved(call, input, weight, bias, groups, transposed=False)


@rule("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def conv_transpose(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    output_padding: Any = 0,
    groups: int = 1,
    dilation: Any = 1,
) -> Dims:
    """As a convolution, with the weight's first two dimensions exchanged."""
    return _convolved(call, input, weight, bias, groups, transposed=True)


def _convolved(
    call: Call,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    groups: int,
    *,
    transposed: bool,
) -> Dims:
    rank = weight.ndim - 2
    dims, kernel = call.dims(input), call.dims(weight)
    for dim in (*dims[input.ndim - rank :], *kernel[2:]):
        call.fix(dim, "neighbouring positions are computed together")
    channels = dims[input.ndim - rank - 1]
    first, second = kernel[:2]
    count, group = int(groups), None
    if count == 1:
        call.reads(weight, 0 if transposed else 1)
        inputs, outputs = (first, second) if transposed else (second, first)
        if input.shape[-rank - 1] > 1:
            call.tie(channels, inputs)
    else:
        group = call.fresh(count)
        within = call.trace.concrete(second, weight.shape[1], call.fixed_here)
        whole = call.concrete(channels, input.shape[-rank - 1])
        sizes = [count, input.shape[-rank - 1] // count]
        if transposed:
            call.tie(first, whole)
            inner = call.fresh(sizes[1]) if sizes[1] > 1 else None
            _relate(call, whole, [group, inner], sizes)
            sizes = [count, weight.shape[1]]
            outputs = call.fresh(math.prod(sizes))
            _relate(call, outputs, [group, second], sizes)
            inputs = first
        else:
            _relate(call, whole, [group, within if sizes[1] > 1 else None], sizes)
            sizes = [count, weight.shape[0] // count]
            outputs = first
            inner = call.fresh(sizes[1]) if sizes[1] > 1 else None
            _relate(call, call.concrete(outputs, weight.shape[0]), [group, inner], sizes)
            inputs = second
        call.require(groups, group, count)
    if call.trace.flow(weight).state is None:
        result = [*dims[: input.ndim - rank - 1], outputs, *[None] * rank]
        call.mixes([result], groups=group)
    if bias is not None and len(bias) > 1:
        call.tie(outputs, call.dims(bias)[0])
    pixels = math.prod((input if transposed else call.out).shape[-rank:])
    batch = math.prod(input.shape[: input.ndim - rank - 1])
    constant = batch * pixels * math.prod(weight.shape[2:])
    call.macs(constant, [first, second], list(weight.shape[:2]))
    return [*dims[: input.ndim - rank - 1], outputs, *[None] * rank]


def _relate(call: Call, whole: Dim, factors: Sequence[Dim], sizes: Sequence[int]) -> None:
    pairs = list(zip(sizes, factors, strict=True))
    call.trace.relate(whole, pairs, call.fixed_here)


@rule("bilinear")
def bilinear(
    call: Call, input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Dims:
    """`y_o = x_1^T W_o x_2 + b_o`."""
    first, second = call.dims(input1), call.dims(input2)
    outputs, one, other = call.dims(weight)
    call.reads(weight, 1)
    call.reads(weight, 2)
    call.tie(first[-1], one)
    call.tie(second[-1], other)
    for a, b in zip(first[:-1], second[:-1], strict=True):
        call.tie(a, b)
    if bias is not None:
        call.tie(outputs, call.dims(bias)[0])
    call.macs(1, [*first[:-1], outputs, one, other], [*input1.shape[:-1], *weight.shape])
    return [*first[:-1], outputs]


@rule("matmul", "__matmul__", "__rmatmul__", "bmm", "mm", "mv", "dot", "vdot")
def matmul(call: Call, input: Tensor, other: Tensor, **_: Any) -> Dims:
    """The last dimension of the first and the last but one of the second are summed over."""
    if call.name == "__rmatmul__":
        input, other = other, input
    a, b = call.dims(input), call.dims(other)
    a_shape, b_shape = list(input.shape), list(other.shape)
    if input.ndim == 1:
        a, a_shape = [None, *a], [1, *a_shape]
    if other.ndim == 1:
        b, b_shape = [*b, None], [*b_shape, 1]
    call.reads(input, input.ndim - 1)
    call.reads(other, max(other.ndim - 2, 0))
    if a_shape[-1] > 1:
        call.tie(a[-1], b[-2])
    batch = call.broadcast_dims([(a_shape[:-2], a[:-2]), (b_shape[:-2], b[:-2])])
    call.trace.heads += [dim for dim in batch if dim is not None]
    sizes = list(np.broadcast_shapes(tuple(a_shape[:-2]), tuple(b_shape[:-2])))
    call.macs(1, [*batch, a[-2], a[-1], b[-1]], [*sizes, a_shape[-2], a_shape[-1], b_shape[-1]])
    result = [*batch, a[-2], b[-1]]
    if input.ndim == 1:
        del result[-2]
    if other.ndim == 1:
        del result[-1]
    call.mixes([result])
    return result


@rule("addmm", "baddbmm", "addmv")
def addmm(call: Call, input: Tensor, first: Tensor, second: Tensor, **_: Any) -> Dims:
    """A product, and a tensor that is added."""
    product: Dims = list(matmul(call, first, second))  # type: ignore[arg-type]
    shape = [*first.shape[:-1], *second.shape[second.ndim - 1 :]][: call.out.ndim]
    return call.broadcast_dims([(shape, product), (list(input.shape), call.dims(input))])


@rule("outer", "ger")
def outer(call: Call, input: Tensor, other: Tensor) -> Dims:
    """Every element of one with every element of the other."""
    return [*call.dims(input), *call.dims(other)]


@rule("einsum")
def einsum(call: Call, equation: str, *tensors: Any) -> Dims:
    """Letters name dimensions: those that are the same go together."""
    if not isinstance(equation, str):
        raise UnknownUse("is called without an equation")
    operands = list(tensors[0]) if len(tensors) == 1 and not _tensor(tensors[0]) else list(tensors)
    left, _, right = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if "->" not in equation:
        letters = left.replace(",", "").replace("...", "")
        right = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
        right = ("..." if "..." in left else "") + right
    rest: list[tuple[list[int], Dims]] = []
    known: dict[str, Dim] = {}
    sizes: dict[str, int] = {}
    for term, tensor in zip(terms, operands, strict=True):
        dims, shape = call.dims(tensor), list(tensor.shape)
        before, dots, after = term.partition("...")
        width = tensor.ndim - len(before) - len(after)
        if dots:
            middle = slice(len(before), len(before) + width)
            rest.append((shape[middle], dims[middle]))
        for place, letter in enumerate(before):
            if letter not in right:
                call.reads(tensor, place)
        named = [*zip(before, dims, shape, strict=False)]
        named += zip(after, dims[tensor.ndim - len(after) :], shape[-len(after) :], strict=False)
        for letter, dim, size in named:
            if letter not in known or sizes[letter] == 1:
                known[letter], sizes[letter] = dim, size
            elif size > 1:
                call.tie(known[letter], dim)
                known[letter] = None if dim is None else known[letter]
    dots_dims = call.broadcast_dims(rest)
    before, _, after = right.partition("...")
    result = [known[c] for c in before] + (dots_dims if "..." in right else [])
    result += [known[c] for c in after]
    shared = [c for c in known if sum(c in term for term in terms) > 1 and c in right]
    call.trace.heads += [dim for c in shared if (dim := known[c]) is not None]
    if len(operands) > 1:
        dots_size = list(np.broadcast_shapes(*(tuple(shape) for shape, _ in rest)))
        call.macs(1, [*known.values(), *dots_dims], [*(sizes[c] for c in known), *dots_size])
    call.mixes([result])
    return result


def _tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


@rule("tensordot")
def tensordot(call: Call, a: Tensor, b: Tensor, dims: Any = 2, **_: Any) -> Dims:
    """Given dimensions of both are summed over."""
    if isinstance(dims, int):
        dims = (list(range(a.ndim - dims, a.ndim)), list(range(dims)))
    left = [int(d) % a.ndim for d in dims[0]]
    right = [int(d) % b.ndim for d in dims[1]]
    first, second = call.dims(a), call.dims(b)
    for i, j in zip(left, right, strict=True):
        call.tie(first[i], second[j])
    result = [dim for d, dim in enumerate(first) if d not in left]
    rest = [(dim, b.shape[d]) for d, dim in enumerate(second) if d not in right]
    call.macs(
        1,
        [*first, *(dim for dim, _ in rest)],
        [*a.shape, *(size for _, size in rest)],
    )
    result += [dim for dim, _ in rest]
    call.mixes([result])
    return result
