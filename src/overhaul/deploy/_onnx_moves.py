"""Integers where values are only moved or compared, so that an engine need not change them."""

from typing import Any

import numpy as np

from overhaul.core import load_optional
from overhaul.deploy._onnx_integers import add_initializer_

_WHY = "to export a model to ONNX"
_ORDERED = ("MaxPool", "ReduceMax", "ReduceMin")
"""Operations that return one of the values that they compare."""


def round_before_pooling_(model: Any) -> None:
    r"""Let values become integers before a maximum or minimum and not after it, which is the same.

    Rounding keeps the order of values, so

    .. math:: \operatorname{round}(\max_i x_i) = \max_i \operatorname{round}(x_i)

    and with integers on both sides an engine pools integers and fuses the rounding into the layer
    before. Rounding once more after it changes nothing, and is how ONNX Runtime knows the pattern.
    OpenVINO takes a maximum of a layer's unrounded sums wrongly (errors of up to 0.85 were seen).

    Args:
        model: An ONNX model as `onnxscript.ir` holds it.
    """
    for pool in list(model.graph):
        if pool.op_type not in _ORDERED or len(pool.outputs) > 1:
            continue
        source, readers = pool.inputs[0], [reader for reader, _ in pool.outputs[0].uses()]
        if len(readers) != 1 or readers[0].op_type != "QuantizeLinear":
            continue
        if pool.outputs[0].is_graph_output():  # it is returned as it is, not rounded
            continue
        producer = source.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            continue
        _, scale, zero = readers[0].inputs
        if scale.const_value is None or scale.const_value.size > 1:
            continue
        pool.replace_input_with(0, _rounded_(model, pool, source, scale, zero))


def round_what_was_moved_(model: Any) -> None:
    """Round values again after they were cut or padded with zeros, which changes none of them.

    Then a sum has integers on both sides, and ONNX Runtime adds integers.

    Args:
        model: An ONNX model as `onnxscript.ir` holds it.
    """
    for node in list(model.graph):
        source = node.inputs[0].producer() if node.op_type in ("Slice", "Pad") else None
        if source is None or source.op_type != "DequantizeLinear" or not _pads_zeros(node):
            continue
        _, scale, zero = source.inputs
        if scale.const_value is None or scale.const_value.size > 1:
            continue
        readers = list(node.outputs[0].uses())
        if not readers or any(reader.op_type == "QuantizeLinear" for reader, _ in readers):
            continue
        real = _rounded_(model, readers[0][0], node.outputs[0], scale, zero)
        for reader, position in readers:
            reader.replace_input_with(position, real)


def center_zero_points_(model: Any) -> None:
    """Store integers of 0 to 255 around 128 as integers around zero, which are the same numbers.

    OpenVINO's convolutions take an eighth to a third more time for inputs with a zero point.

    Args:
        model: An ONNX model as `onnxscript.ir` holds it.
    """
    ir = load_optional("onnxscript", extra="onnx", why=_WHY).ir
    for node in list(model.graph):
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear") or len(node.inputs) < 3:
            continue
        zero = node.inputs[2].const_value
        if zero is None or zero.dtype != ir.DataType.UINT8 or not (zero.numpy() == 128).all():
            continue
        zeros = np.zeros(zero.shape.numpy(), np.int8)
        node.replace_input_with(2, add_initializer_(model, "zero_point", ir.tensor(zeros)))
        integers = node.outputs[0] if node.op_type == "QuantizeLinear" else node.inputs[0]
        integers.type = ir.TensorType(ir.DataType.INT8)


def _pads_zeros(node: Any) -> bool:
    if node.op_type == "Slice":
        return True
    mode, filled = node.attributes.get("mode"), node.inputs[2] if len(node.inputs) > 2 else None
    constant = mode is None or mode.value == "constant"
    known = filled is None or filled.const_value is not None
    return constant and known and (filled is None or not filled.const_value.numpy().any())


def _rounded_(model: Any, before: Any, value: Any, scale: Any, zero: Any) -> Any:
    """Insert nodes that make integers of a value and real numbers of these; return the latter."""
    ir = load_optional("onnxscript", extra="onnx", why=_WHY).ir
    q = ir.node("QuantizeLinear", [value, scale, zero])
    real = ir.node("DequantizeLinear", [q.outputs[0], scale, zero])
    for node in (q, real):
        model.graph.insert_before(before, node)
    return real.outputs[0]
