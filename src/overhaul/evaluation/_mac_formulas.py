"""What each operator costs that torch's own table of formulas lacks or has only for a GPU."""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, TypeAlias

import torch

Shape: TypeAlias = Sequence[int]

# Each formula gets the arguments of its operator with the shape of a tensor in its place, and
# returns twice the number of multiply-accumulates, which is how torch's own formulas count.


def _dot(a: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(a)


def _matrix_vector(matrix: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(matrix)


def _add_matrix_vector(_: Shape, matrix: Shape, *__: Any, **___: Any) -> int:
    return 2 * prod(matrix)


def _matrix_matrix(a: Shape, b: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(a) * b[-1]


def _add_matrix_matrix(_: Shape, a: Shape, b: Shape, *__: Any, **___: Any) -> int:
    return 2 * prod(a) * b[-1]


def _linear(x: Shape, weight: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(x) * weight[0]


def _trilinear(
    a: Shape,
    b: Shape,
    c: Shape,
    expand_a: Sequence[int],
    expand_b: Sequence[int],
    expand_c: Sequence[int],
    *_: Any,
    **__: Any,
) -> int:
    expanded: list[list[int]] = []
    for shape, dims in ((a, expand_a), (b, expand_b), (c, expand_c)):
        sizes = list(shape)
        for dim in dims:
            sizes.insert(dim, 1)
        expanded.append(sizes)
    terms: int = prod(max(sizes) for sizes in zip(*expanded, strict=True))
    return 2 * terms


def _attention(query: Shape, key: Shape, value: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(query[:-1]) * key[-2] * (query[-1] + value[-1])


def _multi_head_attention(
    query: Shape, key: Shape, value: Shape, width: int, *_: Any, **__: Any
) -> int:
    batch, queries, _width = query
    keys = key[1]
    projections = (2 * queries + 2 * keys) * width * width
    return 2 * batch * (projections + 2 * queries * keys * width)


def _encoder_layer(x: Shape, width: int, *arguments: Any, **__: Any) -> int:
    feed_forward: int = prod(arguments[12]) + prod(arguments[14])
    return _multi_head_attention(x, x, x, width) + 2 * prod(x[:-1]) * feed_forward


def _recurrent_layer(x: Shape, of_input: Shape, of_state: Shape, *_: Any, **__: Any) -> int:
    return 2 * prod(x[:-1]) * (prod(of_input) + prod(of_state))


def _recurrent_stack(x: Shape, weights: Sequence[Shape], *_: Any, **__: Any) -> int:
    # [steps, batch, features], or [all steps of all sequences, features] when packed; every matrix
    # is applied once at each step, whatever its layer and direction.
    return 2 * prod(x[:-1]) * sum(prod(weight) for weight in weights if len(weight) == 2)


def _mps_recurrent_stack(x: Shape, _: Any, weights: Sequence[Shape], *__: Any, **___: Any) -> int:
    return _recurrent_stack(x, weights)


def _convolution(
    x: Shape,
    weight: Shape,
    *_: Any,
    out_shape: Shape,
    **__: Any,
) -> int:
    return 2 * prod(out_shape) * prod(weight[1:])


_BY_NAME: dict[str, Callable[..., int]] = {
    "dot": _dot,
    "vdot": _dot,
    "mv": _matrix_vector,
    "addmv": _add_matrix_vector,
    "addbmm": _add_matrix_matrix,
    "_addmm_activation": _add_matrix_matrix,
    "_int_mm": _matrix_matrix,
    "_sparse_addmm": _add_matrix_matrix,
    "_weight_int8pack_mm": _linear,
    "mkldnn_linear": _linear,
    "mkldnn_convolution": _convolution,
    "_trilinear": _trilinear,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "_scaled_dot_product_attention_math_for_mps": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    "_scaled_dot_product_cudnn_attention": _attention,
    "_native_multi_head_attention": _multi_head_attention,
    "_transformer_encoder_layer_fwd": _encoder_layer,
    "mkldnn_rnn_layer": _recurrent_layer,
    "_cudnn_rnn": _recurrent_stack,
    "miopen_rnn": _recurrent_stack,
    "_lstm_mps": _mps_recurrent_stack,
}

FORMULAS: dict[Any, Callable[..., int]] = {
    getattr(torch.ops.aten, name): formula
    for name, formula in _BY_NAME.items()
    if hasattr(torch.ops.aten, name)
}
