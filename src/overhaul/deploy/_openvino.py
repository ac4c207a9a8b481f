"""The engine `openvino`: OpenVINO on the CPU, on its own `.xml` and `.bin`."""

from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch.export import ExportedProgram

from overhaul.core import ArtifactError, load_optional
from overhaul.deploy._engine import Engine, Runner
from overhaul.deploy._onnx_export import export_onnx
from overhaul.deploy._onnx_half import store_scales_in_half_
from overhaul.deploy._onnx_moves import center_zero_points_, round_before_pooling_
from overhaul.deploy._onnx_weights import drop_unused_, regularize_blocks_, weights_of
from overhaul.deploy._quiet import quiet
from overhaul.runtime import Signature, import_openvino, last_line, open_openvino, openvino_core

_TO_WRITE = "to write a model for OpenVINO"


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
        import_openvino(_TO_WRITE, extra="openvino")
        for module in ("onnx", "onnxscript"):
            load_optional(module, extra="openvino", why=_TO_WRITE)

    def versions(self) -> dict[str, str]:
        """Return the versions of torch and openvino."""
        openvino = import_openvino(_TO_WRITE, extra="openvino")
        return {"torch": torch.__version__, "openvino": str(openvino.__version__)}

    def write(self, program: ExportedProgram, signature: Signature, folder: Path) -> None:
        """Write `model.xml` and `model.bin`.

        Raises:
            ArtifactError: an operation has no counterpart in ONNX, or OpenVINO cannot read it.
        """
        openvino = import_openvino(_TO_WRITE, extra="openvino")
        exported = export_onnx(program, signature)
        for weight in weights_of(exported.model):
            regularize_blocks_(exported.model, weight)
        drop_unused_(exported.model)
        round_before_pooling_(exported.model)
        center_zero_points_(exported.model)
        store_scales_in_half_(exported.model)
        try:
            with quiet(), TemporaryDirectory() as temporary:
                path = Path(temporary) / "model.onnx"
                exported.save(path)
                model = openvino_core(openvino).read_model(path)
                openvino.save_model(
                    model, folder / self.file_name, compress_to_fp16=self.half_weights
                )
        except Exception as error:  # openvino raises RuntimeError for everything
            raise ArtifactError(f"OpenVINO cannot convert the model: {last_line(error)}") from error

    def open(self, path: Path, signature: Signature, threads: int | None) -> Runner:
        """Open `model.xml` and `model.bin`.

        Raises:
            ArtifactError: this version of OpenVINO cannot read them.
        """
        own = replace(signature, options={"hint": self.hint, "precision": self.precision})
        run = open_openvino(path, own, threads)
        return lambda inputs: [
            torch.from_numpy(output) for output in run([tensor.numpy() for tensor in inputs])
        ]
