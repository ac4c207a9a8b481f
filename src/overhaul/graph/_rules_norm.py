"""Rules of normalizations and of other operations over whole dimensions."""

import sys
from collections.abc import Sequence
from types import FrameType
from typing import Any

from torch import Tensor, nn

from overhaul.graph._call import Call, Dims, UnknownUse, rule


@rule("batch_norm", "instance_norm")
def batch_norm(
    call: Call,
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *_: Any,
    **__: Any,
) -> Dims:
    """Every channel for itself."""
    dims = call.dims(input)
    for tensor in (running_mean, running_var, weight, bias):
        if tensor is not None and len(tensor) > 1:
            call.tie(dims[1], call.dims(tensor)[0])
    if call.name == "instance_norm" or running_mean is None:
        # Also of a weight that is standardized: over the inputs that it has.
        call.mixes([dims])
    return dims


@rule("layer_norm", "rms_norm")
def layer_norm(
    call: Call,
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: Any = None,
) -> Dims:
    """The last dimensions are normalized together."""
    dims = call.dims(input)
    first = input.ndim - len(normalized_shape)
    for place, size in enumerate(normalized_shape):
        call.require(size, dims[first + place], int(size))
        for tensor in (weight, bias):
            if tensor is not None and int(size) > 1:
                call.tie(dims[first + place], call.dims(tensor)[place])
    call.mixes([dims])
    return dims


@rule("group_norm")
def group_norm(
    call: Call,
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *rest: Any,
    **__: Any,
) -> Dims:
    """The channels of a group are normalized together."""
    dims = call.dims(input)
    for dim in dims[2:]:
        call.fix(dim, "its positions are normalized together")
    for tensor in (weight, bias):
        if tensor is not None and len(tensor) > 1:
            call.tie(dims[1], call.dims(tensor)[0])
    count = int(num_groups)
    group, _within = call.cut(dims[1], [count, input.shape[1] // count])
    call.require(num_groups, group, count)
    call.mixes([dims], groups=group)
    return dims


@rule("softmax", "log_softmax", "softmin", "normalize", "cumsum", "logcumsumexp")
def along(call: Call, input: Tensor, *args: Any, **options: Any) -> Dims:
    """Positions of one dimension are computed with each other."""
    dims = call.dims(input)
    if call.name in ("cumsum", "logcumsumexp"):
        place = int(options.get("dim", args[0] if args else 0)) % max(input.ndim, 1)
        call.fix(dims[place], "its positions are summed up one after the other")
    else:
        call.mixes([dims])
    return dims


_REDUCTIONS = [
    "sum",
    "mean",
    "var",
    "std",
    "amax",
    "amin",
    "prod",
    "logsumexp",
    "norm",
    "vector_norm",
    "linalg_vector_norm",
    "nansum",
    "nanmean",
    "any",
    "all",
    "max",
    "min",
    "argmax",
    "argmin",
    "var_mean",
    "std_mean",
    "count_nonzero",
    "median",
]


@rule(*_REDUCTIONS)
def reduction(call: Call, input: Tensor, *args: Any, **options: Any) -> Any:
    """Dimensions disappear, or become of size one."""
    name = call.name
    first = args[0] if args else None
    if isinstance(first, Tensor):
        return call.broadcast(input, first)
    chosen = options.get("dim", options.get("axis"))
    keep = options.get("keepdim", options.get("keepdims", False))
    rest = list(args)
    if name in ("norm", "vector_norm", "linalg_vector_norm"):
        rest = rest[1:]
    if rest and chosen is None and not isinstance(rest[0], bool):
        chosen = rest.pop(0)
        if name in ("var", "std", "var_mean", "std_mean") and rest:
            rest.pop(0)
        if rest and isinstance(rest[0], bool):
            keep = rest[0]
    dims = call.dims(input)
    if chosen is None or (isinstance(chosen, tuple | list) and not chosen):
        places = set(range(input.ndim))
    else:
        listed = chosen if isinstance(chosen, tuple | list) else [chosen]
        places = {int(d) % max(input.ndim, 1) for d in listed}
    if name in ("argmax", "argmin", "median", "var_mean", "std_mean", "prod"):
        for place in places:
            call.fix(dims[place], f"`{name}` goes over its positions")
    if name in ("var", "std"):
        for place in places:
            text = f"`{name}` of a single position is not a number"
            call.more_than(dims[place], input.shape[place], 1, text)
    result: Dims = []
    for place, dim in enumerate(dims):
        if place not in places:
            result.append(dim)
        elif keep:
            result.append(None)
    outs = [call.out] if isinstance(call.out, Tensor) else list(call.out)
    if any(out.ndim != len(result) for out in outs):
        raise UnknownUse("reduces in a way that is not known")
    if any(dims[place] is not None for place in places):
        call.mixes([result] * len(outs))
    return result if isinstance(call.out, Tensor) else [list(result) for _ in outs]


@rule("glu")
def glu(call: Call, input: Tensor, dim: int = -1) -> Dims:
    """The first half, times the sigmoid of the second."""
    dims = call.dims(input)
    place = dim % input.ndim
    dims[place] = call.together(dims[place], 2)
    return dims


@rule("cosine_similarity", "pairwise_distance")
def similarity(call: Call, x1: Tensor, x2: Tensor, dim: int = 1, *_: Any, **__: Any) -> Dims:
    """Two tensors are compared along a dimension."""
    if call.name == "pairwise_distance":
        dim = -1
    dims = call.broadcast(x1, x2)
    del dims[dim % len(dims)]
    call.mixes([dims])
    return dims


@rule("_weight_norm")
def weight_norm(call: Call, v: Tensor, g: Tensor, dim: int = 0) -> Dims:
    r"""`w = g v / |v|`, where the norm goes over all dimensions but one."""
    dims = call.dims(v)
    if dim == -1 or g.numel() == 1:
        for each in dims:
            call.fix(each, "the norm of the whole weight is taken")
        return dims
    for place, each in enumerate(call.dims(g)):
        if g.shape[place] > 1:
            call.tie(dims[place], each)
    call.mixes([dims])
    return dims


@rule("multi_head_attention_forward")
def multi_head_attention(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> list[Dims]:
    """Heads go for themselves in `nn.MultiheadAttention`, which can be made a `NarrowAttention`.

    Whoever else calls the function meets its check that all heads are as wide as the input.
    """
    if static_k is not None or static_v is not None:
        raise UnknownUse("is given its keys")
    streams = [call.dims(tensor) for tensor in (query, key, value)]
    width, heads = query.shape[-1], int(num_heads)
    for dims in streams:
        for dim in dims[:-1]:
            call.fix(dim, "attention goes over it")
    if use_separate_proj_weight:
        assert q_proj_weight is not None
        assert k_proj_weight is not None
        assert v_proj_weight is not None
        projections = [call.dims(w) for w in (q_proj_weight, k_proj_weight, v_proj_weight)]
    else:
        assert in_proj_weight is not None
        rows, columns = call.dims(in_proj_weight)
        parts = [None] * 3 if rows is None else list(rows.reshape(3, -1))
        projections = [[part, columns] for part in parts]
    narrow = _may_be_narrow(out_proj_weight)
    inner = call.concrete(projections[0][0], width)
    group, _ = call.cut(inner, [heads, width // heads])
    for weight in (in_proj_weight, q_proj_weight, k_proj_weight, v_proj_weight, out_proj_weight):
        if weight is not None:
            call.reads(weight, 1)
    for (outputs, inputs), dims in zip(projections, streams, strict=True):
        call.tie(inputs, dims[-1])
        call.tie(outputs, inner)
    if not narrow:
        call.tie(inner, streams[0][-1])
    call.require(embed_dim_to_check, streams[0][-1], width)
    call.require(num_heads, group, heads)
    if attn_mask is not None and attn_mask.ndim == 3:
        call.fix(group, "a mask is given for each head")
    for mask in (attn_mask, key_padding_mask):
        for dim in call.dims(mask) if mask is not None else []:
            call.fix(dim, "attention goes over it")
    if group is not None:
        call.trace.heads.append(group)
    if inner is not None:
        call.trace.labels.tie(
            inner.reshape(heads, -1),
            inner.reshape(heads, -1)[:, :1].repeat(width // heads, axis=1),
        )
    if in_proj_bias is not None:
        for part in call.concrete(call.dims(in_proj_bias)[0], 3 * width).reshape(3, -1):
            call.tie(part, inner)
    for extra in (bias_k, bias_v):
        if extra is not None:
            call.tie(call.dims(extra)[-1], inner)
    outputs, columns = call.dims(out_proj_weight)
    call.tie(columns, inner)
    if not narrow:
        call.tie(outputs, streams[0][-1])
    if out_proj_bias is not None:
        call.tie(outputs, call.dims(out_proj_bias)[0])
    tokens = query.numel() // width
    sources = key.numel() // key.shape[-1]
    batch = query.shape[1] if query.ndim == 3 else 1
    call.macs(tokens, [inner, streams[0][-1]], [width, width])
    call.macs(2 * sources, [inner, streams[1][-1]], [width, width])
    call.macs(tokens, [columns, outputs], [width, width])
    call.macs(2 * tokens * (sources // batch), [inner], [width])
    results: list[Dims] = [[*streams[0][:-1], outputs]]
    weights = call.out[1]
    if weights is not None:
        results.append([None] * weights.ndim)
        if not average_attn_weights:
            results[1][-3] = group
    call.mixes(results, groups=group)
    return results


def _may_be_narrow(out_proj_weight: Tensor) -> bool:
    """Return whether the call is made by an `nn.MultiheadAttention` itself, on its own weights."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and frame.f_code is not nn.MultiheadAttention.forward.__code__:
        frame = frame.f_back
    if frame is None:
        return False
    module = frame.f_locals["self"]
    return type(module) is nn.MultiheadAttention and module.out_proj.weight is out_proj_weight


@rule("scaled_dot_product_attention")
def attention(
    call: Call,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: Any = None,
    enable_gqa: bool = False,
) -> Dims:
    """Softmax of query times key, times value."""
    q, k, v = (call.dims(tensor) for tensor in (query, key, value))
    for dim in (q[-2], k[-2], v[-2]):
        call.fix(dim, "attention goes over it")
    if scale is None:
        for dim in (q[-1], k[-1]):
            call.fix(dim, "attention scales by the square root of its size")
    call.tie(q[-1], k[-1])
    call.tie(k[-2], v[-2])
    shapes = [list(tensor.shape[:-2]) for tensor in (query, key, value)]
    batches = [q[:-2], k[:-2], v[:-2]]
    if enable_gqa:
        for index in (1, 2):
            times = shapes[0][-1] // shapes[index][-1]
            dim = batches[index][-1]
            batches[index] = [*batches[index][:-1], None if dim is None else dim.repeat(times)]
            shapes[index] = [*shapes[index][:-1], shapes[0][-1]]
    batch = call.broadcast_dims(list(zip(shapes, batches, strict=True)))
    call.trace.heads += [dim for dim in batch if dim is not None]
    if attn_mask is not None:
        mask, shape = call.dims(attn_mask), list(attn_mask.shape)
        scores: Dims = [*batch, None, None]
        size = [*shapes[0], query.shape[-2], key.shape[-2]]
        call.broadcast_dims([(size, scores), (shape, mask)])
    rows, columns = query.shape[-2], key.shape[-2]
    call.macs(rows * columns, [*batch, q[-1]], [*shapes[0], query.shape[-1]])
    call.macs(rows * columns, [*batch, v[-1]], [*shapes[0], value.shape[-1]])
    result: Dims = [*batch, None, v[-1]]
    call.mixes([result])
    return result
