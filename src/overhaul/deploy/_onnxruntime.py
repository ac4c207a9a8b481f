"""The engine `onnxruntime`: ONNX Runtime on the CPU, on an `.onnx` file."""

from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from torch.export import ExportedProgram

from overhaul.core import ArtifactError, load_optional
from overhaul.deploy._engine import Engine, Runner
from overhaul.deploy._onnx_export import export_onnx
from overhaul.deploy._onnx_half import store_scales_in_half_
from overhaul.deploy._onnx_moves import round_before_pooling_, round_what_was_moved_
from overhaul.deploy._onnx_weights import choose_kernels_, write_out_unfused_
from overhaul.deploy._quiet import quiet
from overhaul.runtime import Signature, open_onnxruntime

_TO_WRITE = "to export a model to ONNX"


class OnnxRuntime(Engine):
    """Run the model in ONNX Runtime on the CPU.

    Weights of more than 2 GB go into a file beside `model.onnx`, which the manifest lists.

    Weights stay integers in the file. Where ONNX Runtime would dequantize them at each call, they
    are written in another form: linear layers with four bits use its kernel for these, others are
    worked out when the file is opened.

    Args:
        round_inputs: Let linear layers with integer weights and real inputs round the inputs to
            int8 too, as they come. With weights of eight bits, on a CPU with AVX-512 and VNNI, that
            was 2 to 3 times faster than real numbers for 8 to 512 rows, and up to 9 times for one,
            at an error of about one percent of the largest output. With four bits, or where sums of
            products would saturate, inputs are rounded in blocks, which gains with few rows only.
            `Deploy` allows an error of five percent. LSTMs with integer weights round inputs and
            states. Default false.

    Example:
        >>> OnnxRuntime()
        OnnxRuntime()
        >>> OnnxRuntime().to_data()
        'onnxruntime'
    """

    file_name: ClassVar[str] = "model.onnx"

    round_inputs: bool = Field(
        default=False, description="Round the inputs of linear layers with integer weights to int8."
    )

    @classmethod
    def spec_name(cls) -> str:
        """Return the name of the package."""
        return "onnxruntime"

    @property
    def rounds_inputs(self) -> bool:
        """Whether it rounds what the model does not."""
        return self.round_inputs

    def check_installed(self) -> None:
        """Import onnx, onnxscript and onnxruntime."""
        for module in ("onnx", "onnxscript", "onnxruntime"):
            load_optional(module, extra="onnx", why=_TO_WRITE)

    def versions(self) -> dict[str, str]:
        """Return the versions of torch, onnx and onnxruntime."""
        modules = {
            name: load_optional(name, extra="onnx", why=_TO_WRITE)
            for name in ("onnx", "onnxruntime")
        }
        own = {name: str(module.__version__) for name, module in modules.items()}
        return {"torch": torch.__version__, **own}

    def write(self, program: ExportedProgram, signature: Signature, folder: Path) -> None:
        """Write `model.onnx`.

        Raises:
            ArtifactError: an operation has no counterpart in ONNX; it is named.
        """
        exported = export_onnx(program, signature)
        try:
            round_before_pooling_(exported.model)
            round_what_was_moved_(exported.model)
            choose_kernels_(exported.model, round_inputs=self.round_inputs)
            write_out_unfused_(exported)
            store_scales_in_half_(exported.model)
            with quiet():
                exported.save(folder / self.file_name)
        except Exception as error:  # onnx and onnxruntime document no type for what they raise
            raise ArtifactError(f"ONNX Runtime cannot run the model: {error}") from error

    def open(self, path: Path, signature: Signature, threads: int | None) -> Runner:
        """Open `model.onnx`.

        Raises:
            ArtifactError: this version of ONNX Runtime cannot read it.
        """
        run = open_onnxruntime(path, signature, threads)
        return lambda inputs: [
            torch.from_numpy(output) for output in run([tensor.numpy() for tensor in inputs])
        ]
