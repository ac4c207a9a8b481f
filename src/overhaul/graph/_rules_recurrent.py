"""Rules of recurrent layers: the rows of each gate go together with the state."""

import operator
from typing import Any

import numpy as np
from torch import Tensor

from overhaul.graph._call import Call, Dims, UnknownUse, rule
from overhaul.graph._labels import Dim, Positions
from overhaul.graph._sizes import Combined, Extent
from overhaul.graph._trace import Equation

_GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@rule(*_GATES)
def recurrent(
    call: Call,
    input: Tensor,
    hidden: Any,
    weights: Any,
    has_biases: bool,
    num_layers: int,
    dropout: float,
    training: bool,
    bidirectional: bool,
    batch_first: bool = False,
) -> list[Dims]:
    """Several layers, one or both directions, with or without a projection of the state."""
    if not isinstance(weights, list | tuple):
        raise UnknownUse("is given a packed sequence")
    gates = _GATES[call.name]
    directions = 1 + bool(bidirectional)
    layers = int(num_layers)
    dims = call.dims(input)
    for dim in dims[:-1]:
        call.fix(dim, "time and batch are computed together")
    states = list(hidden) if isinstance(hidden, tuple | list) else [hidden]
    hidden_dims = [call.dims(state) for state in states]
    for each in hidden_dims:
        for dim in each[:-1]:
            call.fix(dim, "it counts layers or samples")
    each_layer = len(weights) // (layers * directions)
    projected = call.name == "lstm" and each_layer == 2 + 2 * bool(has_biases) + 1
    steps = input.numel() // input.shape[-1]
    inputs: Dim = dims[-1]
    width = input.shape[-1]
    outputs: list[tuple[Dim, int]] = []
    queue = list(weights)
    for _ in range(layers):
        outputs = []
        for _ in range(directions):
            own, queue = queue[:each_layer], queue[each_layer:]
            rows, columns = call.dims(own[0])
            call.reads(own[0], 1)
            call.reads(own[1], 1)
            call.trace.recurrent |= {s for w in own if (s := call.trace.flow(w).state)}
            cell, before = _gate(call, own[0], rows, gates)
            if width > 1:
                call.tie(columns, inputs)
            own_rows, own_columns = call.dims(own[1])
            call.tie(_gate(call, own[1], own_rows, gates)[0], cell)
            if has_biases:
                for bias in own[2:4]:
                    call.tie(_gate(call, bias, call.dims(bias)[0], gates)[0], cell)
            state: Dim = cell
            if projected:
                state, inner = call.dims(own[-1])
                _more(call, cell, state, before, own[-1].shape[0])
                call.tie(inner, cell)
                call.macs(steps, [state, inner], list(own[-1].shape))
            call.tie(own_columns, state)
            call.tie(state, hidden_dims[0][-1])
            if call.name == "lstm":
                call.tie(cell, hidden_dims[1][-1])
            call.macs(steps * gates, [cell, inputs], [before, width])
            call.macs(steps * gates, [cell, own_columns], [before, own[1].shape[1]])
            outputs.append((state, own[1].shape[1]))
        width = sum(size for _, size in outputs)
        parts = [call.concrete(state, size) for state, size in outputs]
        inputs = np.concatenate(parts)
    result: list[Dims] = [[*([None] * (call.out[0].ndim - 1)), inputs]]
    for each in hidden_dims:
        result.append([*([None] * (len(each) - 1)), each[-1]])
    return result


def _more(call: Call, cell: Dim, state: Dim, cells: int, states: int) -> None:
    """A projection is told from none by its being smaller."""
    larger = Combined(operator.gt, Extent(cell, cells), Extent(state, states))
    text = "a projection of a recurrent layer has to stay smaller than its state"
    call.trace.equations.append(Equation(larger, 1, call.where, text))


def _gate(call: Call, weight: Tensor, rows: Dim, gates: int) -> tuple[Positions, int]:
    """Tie the rows of all gates, and return the labels of one of them."""
    size = weight.shape[0] // gates
    one = call.together(call.concrete(rows, weight.shape[0]), gates)
    assert one is not None
    return one, size


@rule("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
def cell(
    call: Call,
    input: Tensor,
    hidden: Any,
    w_ih: Tensor,
    w_hh: Tensor,
    b_ih: Tensor | None = None,
    b_hh: Tensor | None = None,
) -> Any:
    """One step of a recurrent layer."""
    gates = _GATES[call.name.removesuffix("_cell")]
    dims = call.dims(input)
    states = list(hidden) if isinstance(hidden, tuple | list) else [hidden]
    rows, columns = call.dims(w_ih)
    call.reads(w_ih, 1)
    call.reads(w_hh, 1)
    call.trace.recurrent |= {s for w in (w_ih, w_hh) if (s := call.trace.flow(w).state)}
    one, size = _gate(call, w_ih, rows, gates)
    call.tie(columns, dims[-1])
    own_rows, own_columns = call.dims(w_hh)
    call.tie(_gate(call, w_hh, own_rows, gates)[0], one)
    call.tie(own_columns, one)
    for bias in (b_ih, b_hh):
        if bias is not None:
            call.tie(_gate(call, bias, call.dims(bias)[0], gates)[0], one)
    for state in states:
        call.tie(call.dims(state)[-1], one)
    steps = input.numel() // input.shape[-1]
    call.macs(steps * gates, [one, dims[-1]], [size, input.shape[-1]])
    call.macs(steps * gates, [one, own_columns], [size, size])
    result = [*dims[:-1], one]
    return result if isinstance(call.out, Tensor) else [list(result) for _ in call.out]
