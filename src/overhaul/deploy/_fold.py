"""`folded`: a program whose weights are worked out once, and not at each call."""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind


def folded(
    program: ExportedProgram, keep: Callable[[fx.Node], bool] = lambda node: False
) -> fx.GraphModule:
    """Return a module that takes the inputs only, with what depends on nothing but weights in it.

    So integer weights are dequantized once, on opening. Random operations stay where they are, and
    so does everything in a program that changes tensors in place, where a constant might be what is
    changed.

    Args:
        program: Its graph is used up.
        keep: Tells which operations stay although their inputs are known.
    """
    module: fx.GraphModule = program.graph_module
    known: dict[fx.Node, Any] = _lifted(program)
    if not any(_is_mutable(node) for graph in _graphs(module) for node in graph.nodes):
        with torch.no_grad():
            for node in module.graph.nodes:
                if _depends_on_known_only(node, known) and not keep(node):
                    args, kwargs = fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
                    value = node.target(*args, **kwargs)
                    if isinstance(value, Tensor | list | tuple):
                        known[node] = value
                        _let_go_(known, node.all_input_nodes)
    for i, (node, value) in enumerate(known.items()):
        if all(user in known for user in node.users):
            continue
        module.register_buffer(f"constant_{i}", value)
        with module.graph.inserting_before(node):
            constant = module.graph.get_attr(f"constant_{i}")
        for user in [user for user in node.users if user not in known]:
            user.replace_input_with(node, constant)
    for node in reversed(known):
        module.graph.erase_node(node)
    module.recompile()
    return module


def _lifted(program: ExportedProgram) -> dict[fx.Node, Any]:
    """Return the parameters, buffers and constants that the graph takes before its inputs."""
    values = {**program.constants, **program.state_dict}
    specs = program.graph_signature.input_specs
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder"]
    return {
        node: values[str(spec.target)].detach()
        for node, spec in zip(placeholders, specs, strict=True)
        if spec.kind is not InputKind.USER_INPUT
    }


def _let_go_(known: dict[fx.Node, Any], nodes: list[fx.Node]) -> None:
    """Free the values that nobody reads any more."""
    for node in nodes:
        if all(user in known for user in node.users):
            known[node] = None


def _depends_on_known_only(node: fx.Node, known: dict[fx.Node, Any]) -> bool:
    inputs = node.all_input_nodes
    if node.op != "call_function" or not inputs or not all(each in known for each in inputs):
        return False
    if node.target is operator.getitem:
        return True
    return (
        isinstance(node.target, torch._ops.OpOverload)
        and torch.Tag.nondeterministic_seeded not in node.target.tags
    )


def _is_mutable(node: fx.Node) -> bool:
    return isinstance(node.target, torch._ops.OpOverload) and node.target._schema.is_mutable


def _graphs(module: fx.GraphModule) -> list[fx.Graph]:
    return [each.graph for each in module.modules() if isinstance(each, fx.GraphModule)]
