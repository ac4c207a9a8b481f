"""Integer weights in ONNX Runtime: each in the form that it runs fastest.

Measured on one thread of a CPU with AVX-512, a Linear of 1024 to 1024, batch 1, over float32:
`DequantizeLinear` at each call 2.2 (int8) and 6.7 (int4); folded at load 1.0; `MatMulNBits` 5.8 for
int8 and 0.5 for int4; with inputs rounded as well (`round_inputs`) 0.4 and 0.3. With 128 rows that
is 0.9 for int8, and `DynamicQuantizeMatMul`, which is as fast for one, 0.3.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from overhaul.core import load_optional, pack4
from overhaul.deploy._onnx_integers import MICROSOFT, add_initializer_, four_bits
from overhaul.deploy._onnx_recurrent import round_recurrent_inputs_
from overhaul.deploy._quiet import quiet
from overhaul.runtime import int8_instructions, open_session

_WHY = "to export a model to ONNX"
_MOVES = ("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "MaxPool")
_BLOCKS = (16, 32, 64, 128, 256)
_BLOCK_OF_CHANNELS = 128
INTEGERS_TO_INTEGERS = 4
"""MatMulNBits' `accuracy_level` that rounds the inputs."""


def choose_kernels_(model: Any, *, round_inputs: bool) -> None:
    """Give linear layers and embeddings with integer weights the kernels made for them.

    Args:
        model: An ONNX model as `onnxscript.ir` holds it.
        round_inputs: Whether linear layers and LSTMs may round their inputs to int8.
    """
    if round_inputs:
        round_recurrent_inputs_(model)
    for weight in weights_of(model):
        for reader, position in list(weight.outputs[0].uses()):
            linear = _linear(reader, position)
            if linear is not None and (_bits(weight) == 4 or _rounds(linear[0], round_inputs)):
                if not _multiply_rounded_(model, weight, *linear):
                    _multiply_in_blocks_(model, weight, *linear, round_inputs=round_inputs)
            elif reader.op_type == "Gather" and position == 0 and _axis(reader) == 0:
                _gather_integers_(model, weight, reader)
        if not weight.outputs[0].uses():
            model.graph.remove(weight, safe=True)
        elif not _meets_integers(weight):
            # ONNX Runtime would round the inputs of a MatMul, or dequantize at each call.
            write_out_(model, weight)
    for node in list(model.graph):
        # ONNX Runtime rounds some biases itself, but none of a convolution before a shortcut's sum.
        if node.op_type in ("Conv", "Gemm"):
            _round_bias_(model, node)
    drop_unused_(model)


def write_out_unfused_(exported: Any) -> None:
    """Write out each weight that ONNX Runtime would dequantize at each call.

    It is asked which these are: it optimizes the model, and what of `DequantizeLinear` of a
    constant is left after that runs at each call. In basic operations it is computed at load.
    """
    model = exported.model
    while weights_of(model):
        with quiet(), TemporaryDirectory() as folder:
            written = Path(folder) / "model.onnx"
            exported.save(written)
            nodes = optimized_nodes(written)
        left = {node.input[0] for node in nodes if node.op_type == "DequantizeLinear"}
        unfused = [node for node in weights_of(model) if node.inputs[0].name in left]
        if not unfused:
            return
        for node in unfused:
            write_out_(model, node)
        drop_unused_(model)


def optimized_nodes(path: Path) -> Any:
    """Return the nodes of the graph that ONNX Runtime makes of a model."""
    onnx = load_optional("onnx", extra="onnx", why=_WHY)
    with TemporaryDirectory() as folder:
        optimized = Path(folder) / "optimized.onnx"
        open_session(path, threads=1, optimized=optimized)
        return onnx.load(optimized, load_external_data=False).graph.node


def weights_of(model: Any) -> list[Any]:
    """Return the nodes that dequantize a constant."""
    return [
        node
        for node in model.graph
        if node.op_type == "DequantizeLinear" and node.inputs[0].const_value is not None
    ]


def regularize_blocks_(model: Any, node: Any) -> None:
    """Give blocks of weights a form that OpenVINO reads rightly.

    It refuses a last block that is shorter than the others, so that is filled up and cut off again.
    Blocks of an odd number of four bits it takes, and computes nonsense: they get eight bits.
    """
    axis, block = _axis(node), _attribute(node, "block_size", 0)
    size = node.inputs[0].shape[axis] if block else 0
    if not block or (size % block == 0 and (block % 2 == 0 or _bits(node) == 8)):
        return
    q, _, zero = _parts(node)
    filled = np.pad(q, [(0, -size % block if dim == axis else 0) for dim in range(q.ndim)])

    def stored(values: Any) -> Any:
        if _bits(node) == 4 and block % 2 == 0:
            return add_initializer_(model, "weight", four_bits(torch.from_numpy(values)))
        return _constant_(model, "weight", values)

    inputs = [stored(filled), node.inputs[1], stored(zero.astype(q.dtype))]
    whole = _insert_(model, node, "DequantizeLinear", inputs, axis=axis, block_size=block)
    limits = [_constant_(model, "limit", np.array([limit])) for limit in (0, size, axis)]
    _replace_(model, node, _insert_(model, node, "Slice", [whole, *limits]))
    drop_unused_(model)


def write_out_(model: Any, node: Any) -> None:
    """Write a `DequantizeLinear` of weights in basic operations."""
    q, scale, zero = _parts(node)
    axis, block = _axis(node) % q.ndim, _attribute(node, "block_size", 0)
    shape = [-1 if dim == axis and scale.ndim else 1 for dim in range(q.ndim)]

    def beside(name: str, values: Any) -> Any:
        if not block:
            return _constant_(model, name, values.reshape(shape))
        positions = _constant_(model, "positions", np.arange(q.shape[axis]) // block)
        return _insert_(
            model, node, "Gather", [_constant_(model, name, values), positions], axis=axis
        )

    weight = _insert_(model, node, "Cast", [node.inputs[0]], to=int(node.inputs[1].dtype))
    if zero.any():
        shift = beside("zero_point", zero.astype(scale.dtype))
        weight = _insert_(model, node, "Sub", [weight, shift])
    _replace_(model, node, _insert_(model, node, "Mul", [weight, beside("scale", scale)]))


def _round_bias_(model: Any, node: Any) -> None:
    """Make the bias of a layer of integers one of 32 bits, as the integer kernels want it.

    Its step is that of the products, so this changes the sum by less than half a product of the
    smallest input and weight.
    """
    x, w = (_integer_source(each) for each in node.inputs[:2])
    if len(node.inputs) < 3 or node.inputs[2] is None or node.inputs[2].const_value is None:
        return
    if x is None or w is None:
        return
    x_scale, w_scale = (each.inputs[1].const_value for each in (x, w))
    if x_scale is None or w_scale is None or x_scale.size != 1 or len(w_scale.shape) > 1:
        return
    bias = node.inputs[2].const_value.numpy()
    step = np.broadcast_to(x_scale.numpy() * w_scale.numpy(), bias.shape)
    rounded = np.rint(bias.astype(np.float64) / step)
    if bias.ndim != 1 or not (np.abs(rounded) < 2**31).all():
        return
    inputs = [
        _constant_(model, "bias", rounded.astype(np.int32)),
        _constant_(model, "bias_scale", step),
        _constant_(model, "bias_zero_point", np.zeros(bias.shape, np.int32)),
    ]
    node.replace_input_with(2, _insert_(model, node, "DequantizeLinear", inputs, axis=0))


def _multiply_rounded_(model: Any, weight: Any, reader: Any, transpose: Any | None) -> bool:
    """Replace a linear layer by `DynamicQuantizeMatMul`, if weight and CPU are made for it.

    It rounds all inputs of a call with one step, where `MatMulNBits` has one for each block of
    them. For one row both take the same time, for many rows it is 2 to 3 times as fast. Without
    exact sums of products its sums would saturate.
    """
    q, scale, zero = _parts(weight)
    by_output = not scale.ndim or _axis(weight) % q.ndim == 0
    if _bits(weight) == 4 or _attribute(weight, "block_size", 0) or not by_output:
        return False
    if not int8_instructions():
        return False
    inputs = [
        reader.inputs[0],
        _constant_(model, "weight", q.T),
        _constant_(model, "scale", scale),
        _constant_(model, "zero_point", zero.astype(q.dtype)) if zero.any() else None,
    ]
    bias, last = _bias(reader)
    inputs.append(bias)
    product = _insert_(model, last, "DynamicQuantizeMatMul", inputs, domain=MICROSOFT)
    _replace_(model, last, product)
    _drop_(model, reader, transpose)
    return True


def _bias(reader: Any) -> tuple[Any | None, Any]:
    """Return the constant that is added to each row of a product, and the node that does it."""
    if reader.op_type == "Gemm":
        return (reader.inputs[2] if len(reader.inputs) > 2 else None), reader
    uses = list(reader.outputs[0].uses())
    if len(uses) != 1 or uses[0][0].op_type != "Add" or reader.outputs[0].is_graph_output():
        return None, reader
    add, position = uses[0]
    other = add.inputs[1 - position]
    constant = other is not None and other.const_value is not None and len(other.shape) == 1
    return (other, add) if constant else (None, reader)


def _drop_(model: Any, *nodes: Any | None) -> None:
    """Drop nodes that are still there and that nothing reads."""
    for node in nodes:
        if node is not None and node.graph is not None and not node.outputs[0].uses():
            model.graph.remove(node, safe=True)


def _multiply_in_blocks_(
    model: Any, weight: Any, reader: Any, transpose: Any | None, *, round_inputs: bool
) -> None:
    """Replace a linear layer by `MatMulNBits`, if the kernel has its form."""
    q, scale, zero = _parts(weight)
    axis, block = _axis(weight) % q.ndim, _attribute(weight, "block_size", 0)
    if (block and (axis != 1 or block not in _BLOCKS)) or (not block and axis != 0 and scale.ndim):
        return
    (n, k), bits = q.shape, _bits(weight)
    block = block or _BLOCK_OF_CHANNELS
    count = -(-k // block)
    if scale.shape != (n, count):
        scale, zero = (np.broadcast_to(each.reshape(-1, 1), (n, count)) for each in (scale, zero))
    offset = 1 << (bits - 1)
    shifted = np.pad(q.astype(np.int16), ((0, 0), (0, count * block - k))) + offset
    blocks = _packed(shifted.reshape(n, count, block), bits)
    inputs = [
        reader.inputs[0],
        _constant_(model, "weight", blocks),
        _constant_(model, "scale", np.ascontiguousarray(scale).reshape(-1)),
    ]
    if zero.any():
        inputs.append(
            _constant_(model, "zero_point", _packed(zero.astype(np.int16) + offset, bits))
        )
    product = _insert_(
        model,
        reader,
        "MatMulNBits",
        inputs,
        domain=MICROSOFT,
        K=k,
        N=n,
        bits=bits,
        block_size=block,
        accuracy_level=INTEGERS_TO_INTEGERS if round_inputs else 0,
    )
    if reader.op_type == "Gemm" and len(reader.inputs) > 2 and reader.inputs[2] is not None:
        product = _insert_(model, reader, "Add", [product, reader.inputs[2]])
    _replace_(model, reader, product)
    _drop_(model, transpose)


def _gather_integers_(model: Any, weight: Any, reader: Any) -> None:
    """Look up integers, and dequantize only the rows that were looked up."""
    q, scale, zero = _parts(weight)
    axis, block = _axis(weight) % q.ndim, _attribute(weight, "block_size", 0)
    index = reader.inputs[1]
    if _bits(weight) == 4:
        if not block or axis != q.ndim - 1 or block not in _BLOCKS:
            return
        rows = _insert_(
            model,
            reader,
            "GatherBlockQuantized",
            [weight.inputs[0], index, *weight.inputs[1 : 3 if zero.any() else 2]],
            domain=MICROSOFT,
            block_size=block,
            gather_axis=0,
            quantize_axis=axis,
        )
        _replace_(model, reader, rows)
        return
    if block or (axis != 0 and scale.ndim):
        return
    shape = [-1 if scale.ndim else 1, *[1] * (q.ndim - 1)]
    kind = int(weight.inputs[1].dtype)

    def rows_of(value: Any) -> Any:
        return _insert_(model, reader, "Gather", [value, index], axis=0)

    def beside(name: str, values: Any) -> Any:
        constant = _constant_(model, name, values.reshape(shape))
        return rows_of(constant) if scale.ndim else constant

    if scale.ndim and index.shape is not None and len(index.shape) == 1:
        # One row for each scale, which `DequantizeLinear` knows: up to 1.6 times as fast.
        parts = [rows_of(weight.inputs[0]), rows_of(weight.inputs[1])]
        if zero.any():
            parts.append(rows_of(weight.inputs[2]))
        _replace_(model, reader, _insert_(model, reader, "DequantizeLinear", parts, axis=0))
        return
    rows = _insert_(model, reader, "Cast", [rows_of(weight.inputs[0])], to=kind)
    if zero.any():
        rows = _insert_(
            model, reader, "Sub", [rows, beside("zero_point", zero.astype(scale.dtype))]
        )
    _replace_(model, reader, _insert_(model, reader, "Mul", [rows, beside("scale", scale)]))


def _linear(reader: Any, position: int) -> tuple[Any, Any | None] | None:
    """Return the node that multiplies by a weight `[out, in]`, and the transposition before it."""
    if reader.op_type == "Gemm" and position == 1:
        plain = all(_attribute(reader, name, 1.0) == 1 for name in ("alpha", "beta"))
        layout = (_attribute(reader, "transA", 0), _attribute(reader, "transB", 0))
        return (reader, None) if plain and layout == (0, 1) else None
    if reader.op_type == "Transpose" and list(_attribute(reader, "perm", ())) == [1, 0]:
        uses = list(reader.outputs[0].uses())
        if len(uses) == 1 and uses[0][0].op_type == "MatMul" and uses[0][1] == 1:
            return uses[0][0], reader
    return None


def _rounds(reader: Any, round_inputs: bool) -> bool:
    """Tell whether a layer is to round its inputs itself."""
    return round_inputs and _integer_source(reader.inputs[0]) is None


def _meets_integers(node: Any) -> bool:
    """Tell whether all that a weight is multiplied with has been rounded to integers."""
    for reader, position in node.outputs[0].uses():
        if reader.op_type == "Transpose":
            if not _meets_integers(reader):
                return False
            continue
        others = [each for i, each in enumerate(reader.inputs[:2]) if i != position]
        if not others or _integer_source(others[0]) is None:
            return False
    return True


def _integer_source(value: Any) -> Any | None:
    """Return the `DequantizeLinear` that a value comes from, seen through moves of values."""
    producer = None if value is None else value.producer()
    while producer is not None and producer.op_type in _MOVES:
        value = producer.inputs[0]
        producer = None if value is None else value.producer()
    return producer if producer is not None and producer.op_type == "DequantizeLinear" else None


def _parts(node: Any) -> tuple[Any, Any, Any]:
    """Return the integers, scales and zero points of a `DequantizeLinear` of weights."""
    q, scale, zero = (each.const_value.numpy() for each in node.inputs)
    return q.astype(np.int8) if _bits(node) == 4 else q, scale, zero.astype(np.int16)


def _bits(node: Any) -> int:
    return int(node.inputs[0].dtype.bitwidth)


def _packed(values: Any, bits: int) -> Any:
    if bits == 8:
        return values.astype(np.uint8)
    return pack4(torch.from_numpy(values.astype(np.int8))).numpy()


def _axis(node: Any) -> int:
    return int(_attribute(node, "axis", 0 if node.op_type == "Gather" else 1))


def _attribute(node: Any, name: str, default: Any) -> Any:
    attribute = node.attributes.get(name)
    return default if attribute is None else attribute.value


def _constant_(model: Any, name: str, values: Any) -> Any:
    return add_initializer_(model, name, _ir().tensor(np.ascontiguousarray(values)))


def _insert_(
    model: Any,
    before: Any,
    operation: str,
    inputs: list[Any],
    *,
    domain: str = "",
    **attributes: Any,
) -> Any:
    """Insert a node and return its output."""
    node = _ir().node(operation, inputs, attributes=attributes, domain=domain)
    model.graph.insert_before(before, node)
    if domain:
        model.opset_imports[domain] = 1
    return node.outputs[0]


def _replace_(model: Any, node: Any, value: Any) -> None:
    """Let another value stand for the only output of a node, and drop the node."""
    _ir().convenience.replace_nodes_and_values(
        model.graph, node, [node], [], [node.outputs[0]], [value]
    )


def _ir() -> Any:
    return load_optional("onnxscript", extra="onnx", why=_WHY).ir


def drop_unused_(model: Any) -> None:
    """Drop the constants that nothing reads any more."""
    outputs = set(model.graph.outputs)
    for name, value in list(model.graph.initializers.items()):
        if not value.uses() and value not in outputs:
            del model.graph.initializers[name]
