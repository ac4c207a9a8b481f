"""Recurrent layers that stay one operation in a graph, so that the length of sequences may change.

`torch.export` writes out their steps one by one, as many as the sequences it sees have. An engine
that has an operation for a whole layer is also faster with it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from overhaul.core import load_optional

_LIBRARY = torch.library.Library("overhaul", "FRAGMENT")
_REST = "Tensor[] weights, bool biases, int layers, bool bidirectional, bool batch_first"
_LIBRARY.define(f"lstm(Tensor x, Tensor h, Tensor c, {_REST}) -> (Tensor, Tensor, Tensor)")
_LIBRARY.define(f"gru(Tensor x, Tensor h, {_REST}) -> (Tensor, Tensor)")


@contextmanager
def whole_recurrent_layers() -> Iterator[None]:
    """Let `nn.LSTM` and `nn.GRU` put one operation into a graph that is traced, for inference.

    Not a `TorchFunctionMode`: torch would name its line where it means the user's.
    """
    ways: Any = torch._VF
    before = ways.lstm, ways.gru

    def lstm(x: Tensor, state: Any, *rest: Any) -> Any:
        # Those of packed sequences have other arguments; projections have no operation here.
        if len(rest) == 7 and isinstance(rest[1], bool) and state[0].shape == state[1].shape:
            weights, biases, layers, _, _, *ends = rest
            return torch.ops.overhaul.lstm(x, *state, weights, biases, layers, *ends)
        return before[0](x, state, *rest)

    def gru(x: Tensor, state: Tensor, *rest: Any) -> Any:
        if len(rest) == 7 and isinstance(rest[1], bool):
            weights, biases, layers, _, _, *ends = rest
            return torch.ops.overhaul.gru(x, state, weights, biases, layers, *ends)
        return before[1](x, state, *rest)

    ways.lstm, ways.gru = lstm, gru
    try:
        yield
    finally:
        ways.lstm, ways.gru = before


def has_recurrent(program: ExportedProgram) -> bool:
    """Tell whether a graph has such layers."""
    return any(node.target in _STEPS for node in program.graph.nodes)


def unrolled(
    program: ExportedProgram, more: Mapping[Any, Any] = MappingProxyType({})
) -> ExportedProgram:
    """Return the program decomposed, with each step of such a layer written out.

    Args:
        program: It is not changed.
        more: What else is decomposed.
    """
    plain: ExportedProgram = program.run_decompositions({**_STEPS, **more})
    return plain


def with_torch_layers(program: ExportedProgram) -> ExportedProgram:
    """Return the program with torch's own operation for each such layer."""
    if not has_recurrent(program):
        return program
    program = deepcopy(program)
    for node in program.graph.nodes:
        if node.target is torch.ops.overhaul.lstm.default:
            x, h, c, weights, biases, layers, *rest = node.args
            node.target = torch.ops.aten.lstm.input
            node.args = (x, [h, c], weights, biases, layers, 0.0, False, *rest)
        elif node.target is torch.ops.overhaul.gru.default:
            x, h, weights, biases, layers, *rest = node.args
            node.target = torch.ops.aten.gru.input
            node.args = (x, h, weights, biases, layers, 0.0, False, *rest)
    program.graph_module.recompile()
    return program


def recurrent_translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what each such layer is in ONNX, as `torch.onnx.export` takes it."""
    torchlib = load_optional(
        "onnxscript.function_libs.torch_lib.ops.core", extra="onnx", why="to export a model to ONNX"
    )

    # The exporter tells tensors from attributes by these annotations.
    def lstm(
        x: Any,
        h: Any,
        c: Any,
        weights: Any,
        biases: bool,
        layers: int,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        rest = (biases, layers, 0.0, False, bidirectional, batch_first)
        return torchlib.aten_lstm(x, [h, c], weights, *rest)

    def gru(
        x: Any,
        h: Any,
        weights: Any,
        biases: bool,
        layers: int,
        bidirectional: bool,
        batch_first: bool,
    ) -> Any:
        return torchlib.aten_gru(
            x, h, weights, biases, layers, 0.0, False, bidirectional, batch_first
        )

    ours = torch.ops.overhaul
    return {ours.lstm.default: lstm, ours.gru.default: gru}


def _lstm(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weights: list[Tensor],
    biases: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    rest = (biases, layers, 0.0, False, bidirectional, batch_first)
    return tuple(torch.ops.aten.lstm.input(x, [h, c], weights, *rest))


def _gru(
    x: Tensor,
    h: Tensor,
    weights: list[Tensor],
    biases: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Tensor, ...]:
    rest = (biases, layers, 0.0, False, bidirectional, batch_first)
    return tuple(torch.ops.aten.gru.input(x, h, weights, *rest))


def _shape(x: Tensor, h: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    bidirectional = rest[-2]
    out = x.new_empty((*x.shape[:2], h.shape[2] * (2 if bidirectional else 1)))
    return (out, torch.empty_like(h), *(torch.empty_like(each) for each in _states(rest)))


def _states(rest: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """Return the second state, which an LSTM has before its weights."""
    return (rest[0],) if isinstance(rest[0], Tensor) else ()


_STEPS: dict[Any, Callable[..., Any]] = {
    torch.ops.overhaul.lstm.default: _lstm,
    torch.ops.overhaul.gru.default: _gru,
}
for _operation, _whole in _STEPS.items():
    _LIBRARY.impl(_operation._opname, _whole, "CompositeExplicitAutograd")
    torch.library.register_fake(f"overhaul::{_operation._opname}", _shape, lib=_LIBRARY)
