"""`capture`: from a module to a graph that does not need its class."""

import re
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from overhaul.core import PLAIN, ArtifactError, Batch, unwrap_outputs
from overhaul.deploy._interface import Interface, flat_inputs, named
from overhaul.deploy._quiet import quiet
from overhaul.deploy._recurrent import whole_recurrent_layers
from overhaul.deploy._signature import dynamic_shapes

_FRAME = re.compile(r'File "([^"]+)", line (\d+), in (\S+)\n\s+(.+)')
_LONGEST = 400
_HERE = str(Path(__file__).parent)


def capture(model: nn.Module, batch: Batch, interface: Interface) -> ExportedProgram:
    """Trace one forward pass with a batch dimension, and a length, that may change.

    The program takes the inputs in order and returns a tuple of the outputs in order, whatever the
    model's own conventions are.

    Args:
        model: In evaluation mode, on the CPU; a copy of it is traced.
        batch: Real inputs, at least two samples: torch takes a size of 1 for a constant.
        interface: What may change.

    Raises:
        ArtifactError: the forward pass cannot be traced; the message quotes the reason and, where
            known, the line of the model's source.
    """
    names = tuple(info.name for info in interface.inputs)
    exportable = _Exportable(deepcopy(model), names if interface.named_inputs else None)
    dynamic = dynamic_shapes(interface.inputs, interface.length)
    try:
        with quiet(), torch.no_grad():
            program = torch.export.export(
                exportable.eval(), tuple(flat_inputs(batch)), dynamic_shapes=(dynamic,)
            )
    except Exception as error:  # torch.export documents no type for what it raises
        raise ArtifactError(_explain(error)) from error
    keep_computation_only_(program)
    return program


def has_integers(program: ExportedProgram) -> bool:
    """Tell whether a graph has operations of `overhaul.core` in it."""
    return any(node.target in PLAIN for node in program.graph.nodes)


def rounds_activations(program: ExportedProgram) -> bool:
    """Tell whether values that depend on the inputs pass through integers in it."""
    return any(node.target is torch.ops.overhaul.quantize.default for node in program.graph.nodes)


def without_integers(program: ExportedProgram) -> ExportedProgram:
    """Return the program with the operations of `overhaul.core` written in torch's own."""
    if not has_integers(program):
        return program
    plain: ExportedProgram = program.run_decompositions(dict(PLAIN))
    keep_computation_only_(plain)
    return plain


class _Exportable(nn.Module):
    """The model with its inputs in order and its outputs as a tuple."""

    def __init__(self, model: nn.Module, keywords: tuple[str, ...] | None) -> None:
        super().__init__()
        self.model: Callable[..., Any] = model
        self.keywords = keywords

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        with whole_recurrent_layers():
            if self.keywords is None:
                outputs = self.model(*inputs)
            else:
                outputs = self.model(**dict(zip(self.keywords, inputs, strict=True)))
        return tuple(named(unwrap_outputs(outputs)).values())


def keep_computation_only_(program: ExportedProgram) -> None:
    """Drop what torch would unpickle or evaluate on loading, and the paths of the user's sources.

    The guards only say what the signature says too.
    """
    program.example_inputs = None
    program._guards_code = []
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta = {key: node.meta[key] for key in ("val",) if key in node.meta}


def _explain(error: Exception) -> str:
    text = str(error)
    if "You marked length" in text or "Not all values of length" in text:
        return (
            "the length of a sequence must be free to change, and the forward pass fixes it. Look "
            "for a `reshape`, `view`, `expand` or `arange` with a written length, for a loop over "
            "the steps, and for recurrent layers other than nn.LSTM and nn.GRU."
        )
    if "specialized it to be a constant" in text:
        return (
            "the batch size must be free to change, and the forward pass fixes it. Look for "
            "`len(x)`, and for a `reshape`, `view`, `expand` or `arange` with a written number of "
            "samples, and use `x.shape[0]` or -1 instead."
        )
    reason = f"torch.export cannot trace the forward pass: {short_reason(text)}"
    if "data-dependent" in text:
        reason += (
            " Which operations run must not depend on the values of the data: use `torch.where` "
            "instead of `if`."
        )
    return reason


def short_reason(text: str) -> str:
    r"""Return the first line of an exporter's message and the last line of user code that it names.

    Example:
        >>> short_reason("Could not guard.\n\nmore\n")
        'Could not guard.'
    """
    first = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    frames = [
        frame
        for frame in _FRAME.findall(text)
        if "/torch/" not in frame[0] and not frame[0].startswith(_HERE)
    ]
    where = ""
    if frames:
        file, line, function, code = frames[-1]
        where = f" (at {file}:{line} in {function}: `{code.strip()}`)"
    return first[:_LONGEST] + where
