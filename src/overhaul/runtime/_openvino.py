"""The engine `openvino`: OpenVINO on the CPU, set so that it computes what the file says."""

import sys
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from threading import Lock
from typing import Any

from numpy.typing import NDArray

from overhaul.runtime._errors import ArtifactError
from overhaul.runtime._onnxruntime import ArrayRunner
from overhaul.runtime._optional import load_optional
from overhaul.runtime._signature import Signature


def open_openvino(path: Path, signature: Signature, threads: int | None) -> ArrayRunner:
    """Open an `.xml` file and the `.bin` beside it in OpenVINO.

    Where only the number of samples may change, calls of one sample go to a program that is made
    for one: with sizes that may change OpenVINO works out those of every layer at each call, which
    is much of the time of a small network with many layers. The program for other numbers is made
    when the first of them comes.

    Args:
        path: The `.xml` file.
        signature: What it takes and returns; its options `hint` and `precision` are `latency` and
            `f32` unless it says otherwise.
        threads: How many threads one call may use; None for OpenVINO's own choice.

    Raises:
        ArtifactError: this version of OpenVINO cannot read them.
        MissingExtraError: openvino is not installed.
    """
    openvino = import_openvino("to run a model that was deployed to OpenVINO")
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": str(signature.options.get("hint", "latency")).upper(),
        "INFERENCE_PRECISION_HINT": str(signature.options.get("precision", "f32")),
        # Otherwise the inputs of a layer with integer weights may be rounded to integers too.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
    }
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    try:
        core = openvino_core(openvino)
        model = core.read_model(path, path.with_suffix(".bin"))
        if signature.length is not None:
            return _one_at_a_time(_of_any_sizes(core, model, options))
        one = _for_one_sample(model)
        sizes = [tuple(port.shape) for port in one.inputs]
        run_one = _of_fixed_sizes(core, one, options)
    except Exception as error:  # openvino raises RuntimeError for everything
        raise ArtifactError(
            f"openvino {openvino.__version__} cannot open '{path.name}': {last_line(error)}. It "
            f"was written by openvino {signature.versions.get('openvino', 'of unknown')}: use "
            "that, or deploy the model again."
        ) from error
    run_any = cache(lambda: _of_any_sizes(core, model, options))

    def run(inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        is_one = [array.shape for array in inputs] == sizes
        return (run_one if is_one else run_any())(inputs)

    return _one_at_a_time(run)


def _one_at_a_time(run: ArrayRunner) -> ArrayRunner:
    """Let calls from other threads wait: they write into the same arrays."""
    lock = Lock()

    def run_alone(inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        with lock:
            return run(inputs)

    return run_alone


def _for_one_sample(model: Any) -> Any:
    one = model.clone()
    ports = {port: port.partial_shape for port in one.inputs}
    one.reshape({p: [1 if size.is_dynamic else size for size in s] for p, s in ports.items()})
    return one


def _of_fixed_sizes(core: Any, model: Any, options: dict[str, Any]) -> ArrayRunner:
    request = core.compile_model(model, "CPU", options).create_infer_request()
    # Copying into the request's own arrays takes a tenth less than handing over others did on a
    # call of half a millisecond.
    own = [tensor.data for tensor in request.input_tensors]

    def run(inputs: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
        for array, given in zip(own, inputs, strict=True):
            array[...] = given
        return [output.copy() for output in request.infer(share_outputs=True).to_tuple()]

    return run


def _of_any_sizes(core: Any, model: Any, options: dict[str, Any]) -> ArrayRunner:
    request = core.compile_model(model, "CPU", options).create_infer_request()
    return lambda inputs: list(request.infer(list(inputs)).to_tuple())


@cache
def openvino_core(openvino: Any) -> Any:
    """Return the one `Core` of this process: with its last one OpenVINO unloads its libraries."""
    return openvino.Core()


def import_openvino(why: str, extra: str | None = None) -> Any:
    """Import openvino, and keep it from reporting that to its maker, which it does unasked.

    Args:
        why: What it is needed for, as the end of a sentence.
        extra: The extra of Overhaul that installs what is needed; see `load_optional`.

    Raises:
        MissingExtraError: it is not installed.
    """
    reporter = "openvino_telemetry"
    if "openvino" in sys.modules or reporter in sys.modules:
        return load_optional("openvino", extra=extra, why=why)
    sys.modules[reporter] = None  # type: ignore[assignment]
    try:
        return load_optional("openvino", extra=extra, why=why)
    finally:
        del sys.modules[reporter]


def last_line(error: Exception) -> str:
    """Return the last line of an error of OpenVINO that says something; the first are its files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
