"""The engine `onnxruntime`: ONNX Runtime on the CPU, on an `.onnx` file."""

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.export import ExportedProgram

from overhaul.core import ArtifactError, load_optional
from overhaul.deploy._engine import Engine, Runner
from overhaul.deploy._onnx_export import export_onnx
from overhaul.deploy._quiet import quiet
from overhaul.deploy._signature import Signature

_TO_WRITE, _TO_RUN = "to export a model to ONNX", "to run a model that was deployed to ONNX"
_ERRORS_ONLY = 3


class OnnxRuntime(Engine):
    """Run the model in ONNX Runtime on the CPU.

    Weights of more than 2 GB go into a file beside `model.onnx`, which the manifest lists.

    Example:
        >>> OnnxRuntime()
        OnnxRuntime()
        >>> OnnxRuntime().to_data()
        'onnxruntime'
    """

    file_name: ClassVar[str] = "model.onnx"

    @classmethod
    def spec_name(cls) -> str:
        """Return the name of the package."""
        return "onnxruntime"

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
        with quiet():
            exported.save(folder / self.file_name)

    def open(self, path: Path, signature: Signature, threads: int | None) -> Runner:
        """Open `model.onnx`.

        Raises:
            ArtifactError: this version of ONNX Runtime cannot read it.
        """
        runtime = load_optional("onnxruntime", extra="onnx", why=_TO_RUN)
        options = runtime.SessionOptions()
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = _ERRORS_ONLY
        try:
            session = runtime.InferenceSession(
                str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # onnxruntime's own errors share no documented base
            made_for = signature.versions.get("onnxruntime", "of unknown version")
            raise ArtifactError(
                f"onnxruntime {runtime.__version__} cannot open '{path.name}': {error}. It was "
                f"written for onnxruntime {made_for}: use that, or deploy the model again."
            ) from error
        names = [info.name for info in signature.inputs]
        taken = {node.name for node in session.get_inputs()}

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            feed = {
                name: tensor.numpy()
                for name, tensor in zip(names, inputs, strict=True)
                if name in taken
            }
            return [torch.from_numpy(output) for output in session.run(None, feed)]

        return run
