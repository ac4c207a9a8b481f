"""The integers of `overhaul.core` as ExecuTorch knows them, so that XNNPACK computes with them."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from overhaul.deploy._fold import folded
from overhaul.deploy._recurrent import unrolled

_QUANTIZE = torch.ops.overhaul.quantize.default
_DEQUANTIZE = torch.ops.overhaul.dequantize.default
_LAYERS = (
    torch.ops.aten.linear.default,
    torch.ops.aten.conv1d.default,
    torch.ops.aten.conv2d.default,
)
_CUT_OFFS = (
    torch.ops.aten.relu.default,
    torch.ops.aten.relu6.default,
    torch.ops.aten.hardtanh.default,
    torch.ops.aten.clamp.default,
)
_LOWEST, _HIGHEST = -128, 127


def with_executorch_integers(program: ExportedProgram) -> fx.GraphModule:
    """Return a module with ExecuTorch's integer operations in place of ours.

    XNNPACK computes with integers where inputs and weights of a layer are integers, of 8 bits and
    with a sign. Weights of other layers become real numbers, since ExecuTorch would work them out
    at each call.
    """
    module = folded(unrolled(program), keep=_is_integer_weight)
    for node in list(module.graph.nodes):
        if node.target is _QUANTIZE:
            with module.graph.inserting_before(node):
                node.replace_all_uses_with(_translated(module, node))
            module.graph.erase_node(node)
        elif node.target is _DEQUANTIZE:
            # One for each reader: XNNPACK fails on integers that two layers read together.
            for reader in list(node.users):
                with module.graph.inserting_before(reader):
                    reader.replace_input_with(node, _translated(module, node))
            module.graph.erase_node(node)
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _is_integer_weight(node: fx.Node) -> bool:
    """Tell whether a layer multiplies these integers with other integers."""
    if node.target is not _DEQUANTIZE or node.args[4] != 0:
        return False
    return all(_multiplies_integers(user, node) for user in node.users)


def _multiplies_integers(layer: fx.Node, weight: fx.Node) -> bool:
    x = layer.args[0]
    return (
        layer.target in _LAYERS
        and layer.args[1] is weight
        and isinstance(x, fx.Node)
        and x.target is _DEQUANTIZE
        and _is_rounded(layer)
    )


def _is_rounded(node: fx.Node) -> bool:
    """Tell whether what a layer returns becomes integers at once, or after a cut-off."""
    if len(node.users) != 1:
        return False
    (user,) = node.users
    return user.target is _QUANTIZE or (user.target in _CUT_OFFS and _is_rounded(user))


def _translated(module: fx.GraphModule, node: fx.Node) -> fx.Node:
    ours, theirs = node.args, torch.ops.quantized_decomposed
    scale, zero = (_value(module, each) for each in ours[1:3])
    if scale is None or zero is None:
        raise ValueError("scales that are computed at each call have no counterpart in ExecuTorch")
    # XNNPACK's integers have a sign; moved by 128 the others are the same numbers.
    shift = 128 if zero.dtype == torch.uint8 else 0
    limits = (_LOWEST, _HIGHEST, torch.int8)
    is_quantize = node.target is _QUANTIZE
    if scale.ndim == 0:
        operation = theirs.quantize_per_tensor if is_quantize else theirs.dequantize_per_tensor
        arguments: tuple[Any, ...] = (ours[0], float(scale), int(zero) - shift, *limits)
    else:
        operation = theirs.quantize_per_channel if is_quantize else theirs.dequantize_per_channel
        name = f"{node.name}_zero_point"
        module.register_buffer(name, zero.to(torch.int64) - shift)
        arguments = (ours[0], ours[1], module.graph.get_attr(name), ours[3], *limits)
    return module.graph.call_function(operation.default, arguments)


def _value(module: fx.GraphModule, node: Any) -> Tensor | None:
    return module.get_buffer(str(node.target)) if node.op == "get_attr" else None
