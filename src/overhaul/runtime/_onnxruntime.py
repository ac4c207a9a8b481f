"""The engine `onnxruntime`: ONNX Runtime, set so that it computes what the file says."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from numpy.typing import NDArray

from overhaul.runtime._errors import ArtifactError
from overhaul.runtime._optional import load_optional
from overhaul.runtime._signature import Signature

ArrayRunner: TypeAlias = Callable[[Sequence[NDArray[Any]]], list[NDArray[Any]]]
"""Takes arrays in the order of the signature and returns the outputs in its order."""

_ERRORS_ONLY = 3
# It rounds real weights to int8 where the inputs of a layer are integers.
_INEXACT = ["WeightBiasQuantization"]


def open_onnxruntime(path: Path, signature: Signature, threads: int | None) -> ArrayRunner:
    """Open an `.onnx` file in ONNX Runtime.

    Args:
        path: The file.
        signature: What it takes and returns.
        threads: How many threads one call may use; None for ONNX Runtime's own choice.

    Raises:
        ArtifactError: this version of ONNX Runtime cannot read it.
        MissingExtraError: onnxruntime is not installed.
    """
    runtime = _import()
    try:
        session = open_session(path, threads)
    except Exception as error:  # onnxruntime's own errors share no documented base
        made_for = signature.versions.get("onnxruntime", "of unknown version")
        raise ArtifactError(
            f"onnxruntime {runtime.__version__} cannot open '{path.name}': {error}. It was "
            f"written for onnxruntime {made_for}: use that, or deploy the model again."
        ) from error
    taken = {node.name for node in session.get_inputs()}
    names = [info.name for info in signature.inputs]
    unused = [name for name in names if name not in taken]
    outputs = [node.name for node in session.get_outputs()]
    options = runtime.RunOptions()  # made anew, they are a twentieth of a small call

    def run(inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        feed = dict(zip(names, inputs, strict=True))
        for name in unused:
            del feed[name]
        found: list[NDArray[Any]] = session.run(outputs, feed, options)
        return found

    return run


def open_session(path: Path, threads: int | None, optimized: Path | None = None) -> Any:
    """Open a file with every optimization that does not change the results.

    Args:
        path: An `.onnx` file.
        threads: How many threads one call may use; None for ONNX Runtime's own choice.
        optimized: Where to write what it makes of the file.
    """
    runtime = _import()
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = _ERRORS_ONLY
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return runtime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=_INEXACT
    )


def _import() -> Any:
    return load_optional("onnxruntime", why="to run a model that was deployed to ONNX")
