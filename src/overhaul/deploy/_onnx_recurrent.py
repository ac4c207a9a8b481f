"""LSTMs and GRUs in ONNX: without the small nodes around them, and with rounded inputs."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from overhaul.core import load_optional
from overhaul.deploy._onnx_integers import MICROSOFT, add_initializer_

_WHY = "to export a model to ONNX"
_Array = NDArray[Any]


def simplify_recurrent_(model: Any) -> None:
    """Leave out what the exporter writes around recurrent layers and ONNX has no need of.

    States that are zero, which is what a layer without them begins with; and the shape of the
    outputs, which it works out in eight nodes at each call. On a small LSTM these took a tenth of
    the time.

    Args:
        model: An ONNX model as `onnxscript.ir` holds it.
    """
    ir = load_optional("onnxscript", extra="onnx", why=_WHY).ir
    for layer in list(model.graph):
        if layer.op_type not in ("LSTM", "GRU"):
            continue
        for position in (5, 6):
            if position < len(layer.inputs) and _is_zero(layer.inputs[position]):
                layer.replace_input_with(position, None)
        for transpose in [reader for reader, _ in layer.outputs[0].uses()]:
            for reshape in [reader for reader, _ in transpose.outputs[0].uses()]:
                if transpose.op_type != "Transpose" or reshape.op_type != "Reshape":
                    continue
                # From [steps, directions, samples, units] to [steps, samples, all units].
                if layer.attributes["direction"].value == "bidirectional":
                    shape = add_initializer_(model, "shape", ir.tensor(np.array([0, 0, -1])))
                    reshape.replace_input_with(1, shape)
                    continue
                axis = add_initializer_(model, "axis", ir.tensor(np.array([1])))
                squeezed = ir.node("Squeeze", [layer.outputs[0], axis])
                ir.convenience.replace_nodes_and_values(
                    model.graph, reshape, [reshape], [squeezed], reshape.outputs, squeezed.outputs
                )
    drop_idle_(model)


def round_recurrent_inputs_(model: Any) -> None:
    """Give LSTMs with integer weights ONNX Runtime's kernel that rounds inputs and states too.

    The exporter cuts the weights into gates and puts them together in ONNX's order; the same is
    done here with integers and scales. GRUs have no such kernel.

    Args:
        model: An ONNX model as `onnxscript.ir` holds it.
    """
    ir = load_optional("onnxscript", extra="onnx", why=_WHY).ir
    for lstm in list(model.graph):
        if lstm.op_type != "LSTM" or len(lstm.inputs) < 3:
            continue
        found = [_integers_behind(value) for value in lstm.inputs[1:3]]
        if any(each is None or each[0].ndim != 3 for each in found):
            continue
        inputs = [*lstm.inputs, *[None] * (8 - len(lstm.inputs))]
        for position, each in enumerate(found, start=1):
            assert each is not None
            q, scale = each
            zero = np.zeros(scale.shape, np.int8)
            stored = (np.ascontiguousarray(q.transpose(0, 2, 1)), scale, zero)
            names = ("weight", "scale", "zero_point")
            made = [
                add_initializer_(model, f"lstm_{name}", ir.tensor(part))
                for name, part in zip(names, stored, strict=True)
            ]
            inputs[position] = made[0]
            inputs += made[1:]
        kept = {
            name: attribute
            for name, attribute in lstm.attributes.items()
            if name in ("hidden_size", "direction", "input_forget", "activations", "clip")
        }
        rounded = ir.Node(
            MICROSOFT,
            "DynamicQuantizeLSTM",
            inputs,
            list(kept.values()),
            num_outputs=len(lstm.outputs),
        )
        model.opset_imports[MICROSOFT] = 1
        ir.convenience.replace_nodes_and_values(
            model.graph, lstm, [lstm], [rounded], list(lstm.outputs), list(rounded.outputs)
        )
    drop_idle_(model)


def _is_zero(value: Any) -> bool:
    """Tell whether all of a value is zero, whatever its shape."""
    if value is None:
        return False
    if value.const_value is not None:
        return not value.const_value.numpy().any()
    node = value.producer()
    if node is None:
        return False
    if node.op_type == "ConstantOfShape":
        filled = node.attributes.get("value")
        return filled is None or not filled.value.numpy().any()
    moves = ("Expand", "Slice", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Cast")
    return node.op_type in moves and _is_zero(node.inputs[0])


def _integers_behind(value: Any) -> tuple[_Array, _Array] | None:
    """Return integers and scales of a weight that was cut and put together along its outputs."""
    node = None if value is None else value.producer()
    if node is None:
        return None
    if node.op_type == "DequantizeLinear":
        return _by_channel(node)
    if node.op_type == "Concat" and node.attributes["axis"].value == 0:
        parts = [_integers_behind(each) for each in node.inputs]
        known = [each for each in parts if each is not None]
        if len(known) < len(parts):
            return None
        q, scale = (np.concatenate(each) for each in zip(*known, strict=True))
        return q, scale
    found = _integers_behind(node.inputs[0]) if node.op_type in ("Slice", "Unsqueeze") else None
    settings = [_constant(each) for each in node.inputs[1:]]
    if found is None or None in settings:
        return None
    if node.op_type == "Unsqueeze":
        return (found[0][None], found[1][None]) if settings == [0] else None
    begin, end, axis, *step = settings
    if axis != 0 or step not in ([], [1]):
        return None
    return found[0][begin:end], found[1][begin:end]


def _by_channel(node: Any) -> tuple[_Array, _Array] | None:
    """Return integers of eight bits with a scale for each output and no zero points."""
    blocks = node.attributes.get("block_size")
    if (blocks is not None and blocks.value) or any(x.const_value is None for x in node.inputs):
        return None
    q, scale, *zero = (each.const_value.numpy() for each in node.inputs)
    if q.dtype != np.int8 or scale.ndim != 1 or any(each.any() for each in zero):
        return None
    return q, scale


def _constant(value: Any) -> int | None:
    known = None if value is None else value.const_value
    return int(known.numpy().item()) if known is not None and known.size == 1 else None


def drop_idle_(model: Any) -> None:
    """Drop nodes that nothing reads any more."""
    outputs = set(model.graph.outputs)
    for node in reversed(list(model.graph)):
        if not any(value.uses() or value in outputs for value in node.outputs):
            model.graph.remove(node, safe=True)
