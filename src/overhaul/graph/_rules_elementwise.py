"""Rules of operations that treat every element for itself, and of those that make tensors."""

from typing import Any

from torch import Tensor

from overhaul.graph._call import Call, Dims, UnknownUse, rule
from overhaul.graph._labels import Dim
from overhaul.graph._sizes import Combined, Extent, expression_of, leaves
from overhaul.graph._trace import is_size

_ARITHMETIC = [
    "add",
    "sub",
    "mul",
    "div",
    "true_divide",
    "floor_divide",
    "fmod",
    "remainder",
    "pow",
    "float_power",
    "rsub",
    "maximum",
    "minimum",
    "fmax",
    "fmin",
    "atan2",
    "hypot",
    "logaddexp",
    "logaddexp2",
    "copysign",
    "xlogy",
    "lerp",
    "addcmul",
    "addcdiv",
    "where",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
    "greater",
    "less",
    "greater_equal",
    "less_equal",
    "not_equal",
    "isclose",
    "logical_and",
    "logical_or",
    "logical_xor",
    "logical_not",
    "bitwise_and",
    "bitwise_or",
    "bitwise_xor",
    "bitwise_not",
    "heaviside",
    "masked_fill",
    "clamp",
    "clamp_min",
    "clamp_max",
    "clip",
]
_ALONE = [
    "abs",
    "absolute",
    "neg",
    "negative",
    "positive",
    "sign",
    "sgn",
    "exp",
    "exp2",
    "expm1",
    "log",
    "log2",
    "log10",
    "log1p",
    "sqrt",
    "rsqrt",
    "square",
    "reciprocal",
    "sin",
    "cos",
    "tan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "tanh",
    "asinh",
    "acosh",
    "atanh",
    "sigmoid",
    "erf",
    "erfc",
    "erfinv",
    "floor",
    "ceil",
    "round",
    "trunc",
    "frac",
    "nan_to_num",
    "isnan",
    "isinf",
    "isfinite",
    "sinc",
    "softplus",
    "relu",
    "relu6",
    "leaky_relu",
    "rrelu",
    "elu",
    "selu",
    "celu",
    "gelu",
    "silu",
    "mish",
    "hardtanh",
    "hardswish",
    "hardsigmoid",
    "hardshrink",
    "softshrink",
    "tanhshrink",
    "softsign",
    "logsigmoid",
    "threshold",
    "dropout",
    "feature_dropout",
    "alpha_dropout",
    "feature_alpha_dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "clone",
    "contiguous",
    "detach",
    "alias",
    "to",
    "type",
    "type_as",
    "float",
    "double",
    "half",
    "bfloat16",
    "int",
    "long",
    "bool",
    "cpu",
    "cuda",
    "requires_grad_",
    "data",
    "real",
    "zeros_like",
    "ones_like",
    "full_like",
    "empty_like",
    "rand_like",
    "randn_like",
    "bernoulli",
    "logit",
    "deg2rad",
    "rad2deg",
    "lgamma",
    "digamma",
    "zero_",
    "fill_",
    "normal_",
    "uniform_",
]
_DUNDER = [
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "and",
    "or",
    "xor",
    "eq",
    "ne",
    "lt",
    "le",
    "gt",
    "ge",
]


@rule(
    *_ARITHMETIC,
    *(f"{name}_" for name in _ARITHMETIC if not name.endswith("_")),
    *(f"__{side}{name}__" for name in _DUNDER for side in ("", "r", "i")),
    *("__neg__", "__abs__", "__invert__", "__pos__"),
)
def arithmetic(call: Call, *args: Any, **options: Any) -> Dims:
    """Elements at the same place are computed with each other."""
    operands = [value for value in (*args, *options.values()) if isinstance(value, Tensor)]
    for value in (*args, *options.values()):
        if is_size(value):
            call.trace.number(expression_of(value), call.where)
    return call.broadcast(*operands)


@rule(*_ALONE, *(f"{name}_" for name in _ALONE if not name.endswith("_")))
def alone(call: Call, first: Tensor, *args: Any, **options: Any) -> Dims:
    """Each element is computed from itself."""
    if list(call.out.shape) != list(first.shape):
        raise UnknownUse("changes the shape")
    for value in (*args, *options.values()):
        if is_size(value):
            call.trace.number(expression_of(value), call.where)
        elif isinstance(value, Tensor) and call.name not in ("to", "type_as"):
            raise UnknownUse("takes a second tensor")
    return call.dims(first)


@rule("copy_")
def copied(call: Call, first: Tensor, source: Tensor, *_: Any) -> Dims:
    """The elements are replaced by others."""
    return call.broadcast(first, source)


@rule("prelu")
def prelu(call: Call, input: Tensor, weight: Tensor) -> Dims:
    """The slope is one number, or one for each channel."""
    dims = call.dims(input)
    if weight.numel() > 1:
        call.tie(dims[1], call.dims(weight)[0])
    return dims


def created(call: Call, *sizes: Any, size: Any = None, **_: Any) -> Dims:
    """A tensor of a given size, of which each position is like any other."""
    if sizes and isinstance(sizes[0], Tensor):
        sizes = sizes[1:]
    if size is None:
        size = sizes[0] if sizes and isinstance(sizes[0], tuple | list) else sizes
    given = list(size)[: call.out.ndim]
    return [_size_of_its_own(call, value) for value in given]


rule(*["zeros", "ones", "empty", "rand", "randn", "new_zeros", "new_ones", "new_empty"])(created)


@rule("full", "new_full")
def filled(call: Call, first: Any, *args: Any, size: Any = None, **options: Any) -> Dims:
    """A tensor of a given size and value."""
    values = (*args, *options.values())
    if isinstance(first, Tensor):
        size, values = (args[0], values[1:]) if size is None else (size, values)
    else:
        size = first
    for value in values:
        if is_size(value):
            call.trace.number(expression_of(value), call.where)
    return [_size_of_its_own(call, value) for value in size]


@rule("meshgrid", "arange", "linspace", "eye", "tensor", "as_tensor")
def positions(call: Call, *args: Any, **options: Any) -> Any:
    """Values that depend on the size: it must stay."""
    for value in (*args, *options.values()):
        if isinstance(value, int) and not isinstance(value, bool):
            call.trace.number(expression_of(value), call.where)
    if isinstance(call.out, Tensor):
        return [None] * call.out.ndim
    return [[None] * tensor.ndim for tensor in call.out]


def _size_of_its_own(call: Call, size: int) -> Dim:
    expression = expression_of(size)
    if isinstance(expression, Extent):
        return expression.dim
    if isinstance(expression, int) or int(size) <= 1:
        return None
    if isinstance(expression, Combined) and all(
        isinstance(leaf, int) or (isinstance(leaf, Extent) and leaf.dim is None)
        for leaf in leaves(expression)
    ):
        return None
    labels = call.fresh(int(size))
    call.require(size, labels, int(size))
    return labels
