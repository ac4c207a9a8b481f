"""`first_difference`: the first operation that an engine computes otherwise, by bisection."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram

from overhaul.core import OverhaulError
from overhaul.deploy._capture import keep_computation_only_
from overhaul.deploy._difference import difference
from overhaul.deploy._engine import Engine
from overhaul.deploy._fold import folded
from overhaul.deploy._quiet import quiet
from overhaul.deploy._signature import dynamic_shapes
from overhaul.runtime import Signature, TensorInfo

_OUTPUT = "value"


def first_difference(
    engine: Engine,
    program: ExportedProgram,
    signature: Signature,
    inputs: Sequence[Tensor],
    tolerance: float,
) -> str:
    """Say in a sentence which operation's result is the first that differs too much.

    The program is cut after an operation in the middle, and written and run again; then in the
    middle of the half in which the difference begins; and so on. If a difference vanishes later,
    another operation than the first may be found.

    Args:
        engine: Which differs.
        program: What the model computes; it is not changed.
        signature: Of the whole program.
        inputs: Of one batch.
        tolerance: Largest error of a value, as a part of its largest.
    """
    module = folded(copy.deepcopy(program))
    names = [
        node.name
        for node in module.graph.nodes
        if node.op == "call_function" and _is_real(node.meta.get("val"))
    ]
    found, low, high = "", 0, len(names) - 1
    with torch.no_grad():
        while low <= high:
            middle = (low + high) // 2
            cut = _until(module, names[middle])
            try:
                error = _error(engine, cut, signature, inputs)
            except (OverhaulError, RuntimeError, ValueError):
                return ""  # a part of the program may be what an engine or torch.export cannot do
            if error <= tolerance:
                low = middle + 1
            else:
                high, found = middle - 1, names[middle]
                size = error
    if not found:
        return ""
    node = next(node for node in module.graph.nodes if node.name == found)
    return f"The first operation that differs is `{node.target}` ('{found}'), by {size:.2g}."


def _is_real(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0


def _until(module: fx.GraphModule, name: str) -> fx.GraphModule:
    """Return a copy that returns the value of one operation."""
    cut = copy.deepcopy(module)
    nodes = list(cut.graph.nodes)
    last = next(node for node in nodes if node.name == name)
    for node in reversed(nodes):
        if node is last:
            break
        cut.graph.erase_node(node)
    cut.graph.output((last,))
    cut.graph.eliminate_dead_code()
    cut.recompile()
    return cut


def _error(
    engine: Engine, module: fx.GraphModule, signature: Signature, inputs: Sequence[Tensor]
) -> float:
    dynamic = dynamic_shapes(signature.inputs, signature.length)
    with quiet():
        program = torch.export.export(module, tuple(inputs), dynamic_shapes=dynamic)
    keep_computation_only_(program)
    (wanted,) = module(*inputs)
    dtype = str(wanted.dtype).removeprefix("torch.")
    output = TensorInfo(name=_OUTPUT, dtype=dtype, shape=tuple(wanted.shape))
    part = replace(signature, outputs=(output,))
    with TemporaryDirectory() as folder:
        engine.write(program, part, Path(folder))
        (found,) = engine.open(Path(folder) / engine.file_name, part, 1)(inputs)
        return difference([(found, wanted)]).max_relative
