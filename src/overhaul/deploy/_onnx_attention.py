"""`transpose_keys_directly_`: attention without the working out of shapes around its keys."""

from typing import Any

from overhaul.core import load_optional
from overhaul.deploy._onnx_recurrent import drop_idle_

_WHY = "to export a model to ONNX"


def transpose_keys_directly_(model: Any) -> None:
    r"""Swap the last two dimensions of keys with one operation, and not with ten.

    For :math:`Q K^\top` the exporter makes `[B, H, T, E]` to `[B * H, T, E]`, swaps two dimensions
    and makes it `[B, H, E, T]` again, with shapes that are worked out at each call. An engine can
    fuse one `Transpose` into the product, and with those in between it cannot.

    Args:
        model: An ONNX model as `onnxscript.ir` holds it.
    """
    ir = load_optional("onnxscript", extra="onnx", why=_WHY).ir
    for swap in list(model.graph):
        if swap.op_type != "Transpose" or list(swap.attributes["perm"].value) != [0, 2, 1]:
            continue
        flat, uses = swap.inputs[0].producer(), list(swap.outputs[0].uses())
        if flat is None or flat.op_type != "Reshape" or len(uses) != 1:
            continue
        ((back, position),) = uses
        keys = flat.inputs[0]
        if back.op_type != "Reshape" or position != 0 or keys.shape is None:
            continue
        rank = len(keys.shape)
        swapped = [*range(rank - 2), rank - 1, rank - 2]
        if _dims(flat.inputs[1], keys) != [None, rank - 2, rank - 1]:
            continue
        if _dims(back.inputs[1], keys) != swapped:
            continue
        direct = ir.node("Transpose", [keys], attributes={"perm": swapped})
        ir.convenience.replace_nodes_and_values(
            model.graph, back, [back], [direct], back.outputs, direct.outputs
        )
    drop_idle_(model)


def _dims(shape: Any, of: Any) -> list[int | None] | None:
    """Return which dimensions of a value a shape names, in order, with None for one of -1.

    None as a whole: it is not made of them alone.
    """
    if shape is None:
        return None
    if shape.const_value is not None:
        rest = shape.const_value.numpy().reshape(-1).tolist()
        return [None] if rest == [-1] else None
    node = shape.producer()
    if node is None:
        return None
    if node.op_type == "Concat":
        found: list[int | None] = []
        for part in node.inputs:
            dims = _dims(part, of)
            if dims is None:
                return None
            found += dims
        return found
    if node.op_type != "Slice" or len(node.inputs) > 3:
        return None
    whole = node.inputs[0].producer()
    if whole is None or whole.op_type != "Shape" or whole.inputs[0] is not of:
        return None
    limits = [each.const_value for each in node.inputs[1:]]
    if any(each is None or each.size != 1 for each in limits) or len(limits) != 2:
        return None
    if {name: each.value for name, each in whole.attributes.items()} not in ({}, {"start": 0}):
        return None
    begin, end = (int(each.numpy().item()) for each in limits)
    return [*range(len(of.shape))[begin:end]]
