"""`export_onnx`: from a graph of torch to one of ONNX."""

import re
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.export import ExportedProgram

from overhaul.core import ArtifactError
from overhaul.deploy._capture import has_integers, short_reason
from overhaul.deploy._onnx_attention import transpose_keys_directly_
from overhaul.deploy._onnx_integers import OPSET, integer_translations, store_four_bits_
from overhaul.deploy._onnx_recurrent import simplify_recurrent_
from overhaul.deploy._quiet import quiet
from overhaul.deploy._recurrent import has_recurrent, recurrent_translations
from overhaul.runtime import Signature

_NO_FUNCTION = re.compile(r"No ONNX function found for <OpOverload\(op='([^']+)'")


def export_onnx(program: ExportedProgram, signature: Signature) -> Any:
    """Return the ONNX program of a graph: `.model` is an `onnxscript.ir.Model`, `.save` writes it.

    Integers stay integers: `QuantizeLinear` and `DequantizeLinear` stand where the model has them,
    and weights of four bits take half a byte each. A graph is converted once, which takes longer
    than all that follows; each engine gets a copy that it may edit, with the same weights.

    Args:
        program: What the model computes; it is not changed.
        signature: Names of inputs and outputs.

    Raises:
        ArtifactError: an operation has no counterpart in ONNX; it is named.
    """
    asked = (*(str(info) for info in signature.inputs), *(info.name for info in signature.outputs))
    known = _CONVERTED.setdefault(program, {})
    if asked not in known:
        known[asked] = _converted(program, signature)
    return torch.onnx.ONNXProgram(known[asked].clone(), None)


_CONVERTED: WeakKeyDictionary[ExportedProgram, dict[tuple[str, ...], Any]] = WeakKeyDictionary()
"""The ONNX models of each graph that is still there, by what was asked of it."""


def _converted(program: ExportedProgram, signature: Signature) -> Any:
    """Return the ONNX model of a graph."""
    inputs = [info.name for info in signature.inputs]
    outputs = [info.name for info in signature.outputs]
    dynamic = tuple(
        {i: size for i, size in enumerate(info.shape) if isinstance(size, str)}
        for info in signature.inputs
    )
    table: dict[Any, Any] = {}
    options: dict[str, Any] = {"custom_translation_table": table}
    if has_integers(program):
        table.update(integer_translations())
        options["opset_version"] = OPSET
    if has_recurrent(program):
        table.update(recurrent_translations())
    try:
        with quiet():
            exported: Any = torch.onnx.export(
                program,
                dynamo=True,
                input_names=inputs,
                # In ONNX an output must not be called like an input.
                output_names=[f"output_{n}" if n in inputs else n for n in outputs],
                dynamic_shapes=(dynamic,),
                verbose=False,
                **options,
            )
            _drop_metadata_(exported.model)
            store_four_bits_(exported.model)
            simplify_recurrent_(exported.model)
            transpose_keys_directly_(exported.model)
    except Exception as error:  # torch.onnx documents no type for what it raises
        raise ArtifactError(_explain(error)) from error
    return exported.model


def _drop_metadata_(model: Any) -> None:
    """Drop what the exporter notes for debugging: paths and lines of the user's sources."""
    graphs = [model.graph, *model.functions.values()]
    model.metadata_props.clear()
    for graph in graphs:
        graph.metadata_props.clear()
        for value in (*graph.inputs, *graph.outputs):
            value.metadata_props.clear()
        for node in graph.all_nodes():
            node.metadata_props.clear()
            for value in node.outputs:
                value.metadata_props.clear()
    for value in model.graph.initializers.values():
        value.metadata_props.clear()


def _explain(error: BaseException) -> str:
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__) is not None:
        chain.append(cause)
    for link in chain:
        found = _NO_FUNCTION.search(str(link))
        if found:
            return f"ONNX has no counterpart of the operation `{found[1]}`"
    return f"torch.onnx cannot convert the model: {short_reason(str(chain[-1]))}"
