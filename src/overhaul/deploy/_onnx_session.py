"""`open_session`: ONNX Runtime, set so that it computes what the file says."""

from pathlib import Path
from typing import Any

from overhaul.core import load_optional

_ERRORS_ONLY = 3
# It rounds real weights to int8 where the inputs of a layer are integers.
_INEXACT = ["WeightBiasQuantization"]


def open_session(path: Path, threads: int | None, optimized: Path | None = None) -> Any:
    """Open a file with every optimization that does not change the results.

    Args:
        path: An `.onnx` file.
        threads: How many threads one call may use; None for ONNX Runtime's own choice.
        optimized: Where to write what it makes of the file.
    """
    runtime = load_optional(
        "onnxruntime", extra="onnx", why="to run a model that was deployed to ONNX"
    )
    options = runtime.SessionOptions()
    options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = _ERRORS_ONLY
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return runtime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=_INEXACT
    )
