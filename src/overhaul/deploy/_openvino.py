"""The engine `openvino`: OpenVINO on the CPU, on its own `.xml` and `.bin`."""

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.export import ExportedProgram

from overhaul.core import ArtifactError, load_optional
from overhaul.deploy._engine import Engine, Runner
from overhaul.deploy._onnx_export import export_onnx
from overhaul.deploy._onnx_weights import regularize_blocks_, weights_of
from overhaul.deploy._quiet import quiet
from overhaul.deploy._signature import Signature

_TO_WRITE, _TO_RUN = "to write a model for OpenVINO", "to run a model that was deployed to OpenVINO"


class OpenVINO(Engine):
    """Run the model in OpenVINO on the CPU.

    Written through ONNX; running it needs the package `openvino` only. `model.bin` beside
    `model.xml` has the weights.

    Args:
        hint: `latency`, or `throughput`: how the threads of a machine with several sockets or many
            cores are shared among calls. Default `latency`.
        precision: The type that real numbers are computed in. OpenVINO's own choice would be
            `bf16` wherever the CPU has instructions for it, without a word; on two networks
            that was an error of half a percent of the largest output. Default `f32`.
        half_weights: Store real weights in 16 bits. Default false.

    Example:
        >>> OpenVINO(hint="throughput")
        OpenVINO(hint='throughput')
        >>> OpenVINO().to_data()
        'openvino'
    """

    file_name: ClassVar[str] = "model.xml"

    hint: Literal["latency", "throughput"] = Field(
        default="latency", description="What OpenVINO sets its threads for."
    )
    precision: Literal["f32", "bf16", "f16"] = Field(
        default="f32", description="The type that real numbers are computed in."
    )
    half_weights: bool = Field(default=False, description="Store real weights in 16 bits.")

    @classmethod
    def spec_name(cls) -> str:
        """Return the name of the package."""
        return "openvino"

    def check_installed(self) -> None:
        """Import openvino, and onnx and onnxscript, through which the file is written."""
        _import(_TO_WRITE)
        for module in ("onnx", "onnxscript"):
            load_optional(module, extra="openvino", why=_TO_WRITE)

    def versions(self) -> dict[str, str]:
        """Return the versions of torch and openvino."""
        openvino = _import(_TO_WRITE)
        return {"torch": torch.__version__, "openvino": str(openvino.__version__)}

    def write(self, program: ExportedProgram, signature: Signature, folder: Path) -> None:
        """Write `model.xml` and `model.bin`.

        Raises:
            ArtifactError: an operation has no counterpart in ONNX, or OpenVINO cannot read it.
        """
        openvino = _import(_TO_WRITE)
        exported = export_onnx(program, signature)
        for weight in weights_of(exported.model):
            regularize_blocks_(exported.model, weight)
        try:
            with quiet(), TemporaryDirectory() as temporary:
                path = Path(temporary) / "model.onnx"
                exported.save(path)
                model = openvino.Core().read_model(path)
                openvino.save_model(
                    model, folder / self.file_name, compress_to_fp16=self.half_weights
                )
        except Exception as error:  # openvino raises RuntimeError for everything
            raise ArtifactError(f"OpenVINO cannot convert the model: {_short(error)}") from error

    def open(self, path: Path, signature: Signature, threads: int | None) -> Runner:
        """Open `model.xml` and `model.bin`.

        Raises:
            ArtifactError: this version of OpenVINO cannot read them.
        """
        openvino = _import(_TO_RUN)
        options: dict[str, Any] = {
            "PERFORMANCE_HINT": self.hint.upper(),
            "INFERENCE_PRECISION_HINT": self.precision,
            # Otherwise the inputs of a layer with integer weights may be rounded to integers too.
            "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0,
        }
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        try:
            core = openvino.Core()
            model = core.read_model(path, path.with_suffix(".bin"))
            compiled = core.compile_model(model, "CPU", options)
        except Exception as error:  # openvino raises RuntimeError for everything
            raise ArtifactError(
                f"openvino {openvino.__version__} cannot open '{path.name}': {_short(error)}. It "
                f"was written by openvino {signature.versions.get('openvino', 'of unknown')}: use "
                "that, or deploy the model again."
            ) from error
        request, outputs = compiled.create_infer_request(), compiled.outputs

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            found = request.infer([tensor.numpy() for tensor in inputs])
            return [torch.from_numpy(found[output]) for output in outputs]

        return run


def _import(why: str) -> Any:
    """Import openvino, and keep it from reporting that to its maker, which it does unasked."""
    reporter = "openvino_telemetry"
    if "openvino" in sys.modules or reporter in sys.modules:
        return load_optional("openvino", extra="openvino", why=why)
    sys.modules[reporter] = None  # type: ignore[assignment]
    try:
        return load_optional("openvino", extra="openvino", why=why)
    finally:
        del sys.modules[reporter]


def _short(error: Exception) -> str:
    """Return the last line of an error of OpenVINO that says something; the first are its files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
