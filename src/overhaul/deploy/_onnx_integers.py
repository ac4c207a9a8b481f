"""The integers of `overhaul.core` in ONNX: QuantizeLinear, DequantizeLinear, and four bits."""

from collections.abc import Callable
from typing import Any

import torch

from overhaul.core import load_optional, pack4, unpack4

DOMAIN = "overhaul"
MICROSOFT = "com.microsoft"
"""Whose operations ONNX Runtime has besides the standard ones."""
OPSET = 21
"""The first that knows blocks and types of four bits."""

_WHY = "to export a model to ONNX"


def integer_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what each operation is in ONNX, as `torch.onnx.export` takes it.

    `unpack4` becomes a node of our own, which `store_four_bits_` takes out again.
    """
    onnxscript = load_optional("onnxscript", extra="onnx", why=_WHY)
    onnx, op = load_optional("onnx", extra="onnx", why=_WHY), onnxscript.opset21
    schema = onnx.defs.OpSchema
    unpack = onnxscript.values.Op(
        onnxscript.values.Opset(DOMAIN, 1),
        "Unpack4",
        schema(
            "Unpack4",
            DOMAIN,
            1,
            inputs=[schema.FormalParameter("packed", "tensor(uint8)")],
            outputs=[schema.FormalParameter("q", "tensor(int8)")],
            attributes=[schema.Attribute("size", schema.AttrType.INT)],
        ),
    )

    # The exporter tells tensors from attributes by these annotations.
    def quantized(x: Any, scale: Any, zero_point: Any, axis: int) -> Any:
        return op.QuantizeLinear(x, scale, zero_point, axis=axis)

    def dequantized(q: Any, scale: Any, zero_point: Any, axis: int, block: int) -> Any:
        return op.DequantizeLinear(q, scale, zero_point, axis=axis, block_size=block)

    def unpacked(packed: Any, size: int) -> Any:
        return unpack(packed, size=size)

    ours = torch.ops.overhaul
    return {
        ours.quantize.default: quantized,
        ours.dequantize.default: dequantized,
        ours.unpack4.default: unpacked,
    }


def store_four_bits_(model: Any) -> None:
    """Make packed weights initializers of the type INT4: half a byte for each.

    Args:
        model: An ONNX model as `onnxscript.ir` holds it.

    Raises:
        ValueError: something that is no weight is unpacked, or no `dequantize` follows.
    """
    for node in list(model.graph):
        if node.domain != DOMAIN:
            continue
        (packed,), (q,) = node.inputs, node.outputs
        size = node.attributes["size"].as_int()
        if packed.const_value is None:
            raise ValueError("`unpack4` takes packed weights, and got what is computed in a call")
        values = unpack4(torch.from_numpy(packed.const_value.numpy().copy()), size)
        weight = add_initializer_(model, q.name, four_bits(values))
        for reader, position in list(q.uses()):
            if reader.op_type != "DequantizeLinear" or position != 0:
                raise ValueError("`unpack4` must be followed by `dequantize`")
            reader.replace_input_with(0, weight)
            zero = torch.from_numpy(reader.inputs[2].const_value.numpy().copy())
            narrow = add_initializer_(model, f"{q.name}_zero_point", four_bits(zero))
            reader.replace_input_with(2, narrow)
        model.graph.remove(node, safe=True)
    model.opset_imports.pop(DOMAIN, None)


def four_bits(values: torch.Tensor) -> Any:
    """Return integers of -8 .. 7 as a tensor of the type INT4."""
    ir = load_optional("onnxscript", extra="onnx", why=_WHY).ir
    packed = pack4(values.reshape(-1)).numpy()
    return ir.PackedTensor(packed, ir.DataType.INT4, shape=ir.Shape(tuple(values.shape)))


def add_initializer_(model: Any, name: str, tensor: Any) -> Any:
    """Add a constant to a model, under a name that is not taken, and return its value."""
    ir = load_optional("onnxscript", extra="onnx", why=_WHY).ir
    taken = set(model.graph.initializers)
    free = next(each for i in range(len(taken) + 1) if (each := f"{name}_{i}") not in taken)
    tensor.name = free
    value = ir.Value(
        name=free, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    model.graph.register_initializer(value)
    return value
