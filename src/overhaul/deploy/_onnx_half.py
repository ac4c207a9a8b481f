"""`store_scales_in_half_`: half the bytes for the scales of blocks, where that loses nothing."""

from typing import Any

import numpy as np

from overhaul.core import load_optional
from overhaul.deploy._onnx_integers import add_initializer_

_WHY = "to export a model to ONNX"
_LEAST = 1024
"""Numbers from which on the bytes count, and not what the additional node takes."""


def store_scales_in_half_(model: Any) -> None:
    """Store scales as float16 that are the same numbers in it, and cast them when opened.

    Scales of blocks are an eighth of a weight of four bits in blocks of 32, and they are rounded to
    float16 before the integers are chosen (`quantization`), so this changes no output. Zero points
    that are all zero are left out, as ONNX allows.

    Args:
        model: An ONNX model as `onnxscript.ir` holds it.
    """
    ir = load_optional("onnxscript", extra="onnx", why=_WHY).ir
    for node in list(model.graph):
        if node.op_type != "DequantizeLinear" or len(node.inputs) < 3:
            continue
        zero = node.inputs[2]
        constant = zero is not None and zero.const_value is not None
        if constant and zero.const_value.size >= _LEAST and not zero.const_value.numpy().any():
            node.resize_inputs(2)
    for name, value in list(model.graph.initializers.items()):
        tensor = value.const_value
        if tensor is None or tensor.dtype != ir.DataType.FLOAT or tensor.size < _LEAST:
            continue
        full = tensor.numpy()
        with np.errstate(over="ignore"):
            half = full.astype(np.float16)
        if not np.array_equal(half.astype(np.float32), full):
            continue
        stored = add_initializer_(model, f"{name}_half", ir.tensor(half))
        cast = ir.node("Cast", [stored], attributes={"to": int(ir.DataType.FLOAT)})
        model.graph.insert_before(model.graph[0], cast)
        value.replace_all_uses_with(cast.outputs[0])
        del model.graph.initializers[name]
