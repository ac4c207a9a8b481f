"""`round_before_pooling_`: a maximum of integers in place of a maximum of real numbers."""

from typing import Any

from overhaul.core import load_optional

_WHY = "to export a model to ONNX"


def round_before_pooling_(model: Any) -> None:
    r"""Let values become integers before a `MaxPool` and not after it, which is the same.

    Rounding keeps the order of values, so

    .. math:: \operatorname{round}(\max_i x_i) = \max_i \operatorname{round}(x_i)

    and with integers on both sides an engine pools integers and fuses the rounding into the layer
    before. Rounding once more after it changes nothing, and is how ONNX Runtime knows the pattern.

    Args:
        model: An ONNX model as `onnxscript.ir` holds it.
    """
    ir = load_optional("onnxscript", extra="onnx", why=_WHY).ir
    for pool in list(model.graph):
        if pool.op_type != "MaxPool" or len(pool.outputs) > 1:
            continue
        source, readers = pool.inputs[0], [reader for reader, _ in pool.outputs[0].uses()]
        if len(readers) != 1 or readers[0].op_type != "QuantizeLinear":
            continue
        producer = source.producer()
        if producer is not None and producer.op_type == "DequantizeLinear":
            continue
        _, scale, zero = readers[0].inputs
        if scale.const_value is None or scale.const_value.size > 1:
            continue
        q = ir.node("QuantizeLinear", [source, scale, zero])
        real = ir.node("DequantizeLinear", [q.outputs[0], scale, zero])
        for node in (q, real):
            model.graph.insert_before(pool, node)
        pool.replace_input_with(0, real.outputs[0])
