"""The engine `aotinductor`: the model as compiled code."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.export import ExportedProgram

from overhaul.core import PLAIN, ArtifactError
from overhaul.deploy._capture import short_reason
from overhaul.deploy._compiler import check_compiler, cpu_capability
from overhaul.deploy._engine import Engine, Runner
from overhaul.deploy._quiet import quiet
from overhaul.deploy._recurrent import unrolled
from overhaul.deploy._signature import example_inputs
from overhaul.deploy._torch import torch_threads
from overhaul.runtime import Signature


class AOTInductor(Engine):
    """Compile the model when it is written, to a library that torch loads.

    Loading it executes what is in it, and no check can tell what that does: `load` opens it with
    `trust=True` only. It runs on CPUs with the vector instructions that it was compiled for, and on
    the version of torch that compiled it. Integer weights are dequantized before they are stored.

    Example:
        >>> AOTInductor()
        AOTInductor()
        >>> AOTInductor().to_data()
        'aotinductor'
    """

    file_name: ClassVar[str] = "compiled.pt2"
    executes_file: ClassVar[bool] = True

    @classmethod
    def spec_name(cls) -> str:
        """Return its name without underscores, as torch writes it."""
        return "aotinductor"

    def check_installed(self) -> None:
        """Look for a C++ compiler."""
        check_compiler()

    def versions(self) -> dict[str, str]:
        """Return the version of torch and the instructions that the code is compiled for."""
        return {"torch": torch.__version__, "cpu": cpu_capability()}

    def write(self, program: ExportedProgram, signature: Signature, folder: Path) -> None:
        """Compile `compiled.pt2`.

        Raises:
            ArtifactError: it cannot be compiled.
        """
        check_compiler()
        # Otherwise the number of threads of this machine would be in the code.
        options: dict[str, Any] = {"cpp.dynamic_threads": True, "freezing": True}
        try:
            with quiet(), torch.no_grad():
                plain = unrolled(program, PLAIN)
                plain.example_inputs = (example_inputs(signature, 2), {})
                torch._inductor.aoti_compile_and_package(
                    plain,
                    package_path=str(folder / self.file_name),
                    inductor_configs=options,
                )
        except Exception as error:  # torch documents no type for what it raises
            raise ArtifactError(f"AOTInductor fails: {short_reason(str(error))}") from error

    def open(self, path: Path, signature: Signature, threads: int | None) -> Runner:
        """Load `compiled.pt2`, which executes it.

        Raises:
            ArtifactError: it was compiled for another CPU, or cannot be loaded.
        """
        made_for = signature.versions.get("cpu")
        if made_for != cpu_capability():
            raise ArtifactError(
                f"'{path.name}' was compiled for a CPU with {made_for}, and this one has "
                f"{cpu_capability()}. Deploy the model again on this machine."
            )
        try:
            with quiet():
                compiled: Any = torch._inductor.aoti_load_package(str(path))
        except Exception as error:  # torch documents no type for what it raises
            made_by = signature.versions.get("torch", "of unknown version")
            raise ArtifactError(
                f"torch {torch.__version__} cannot load '{path.name}': {short_reason(str(error))}. "
                f"It was compiled by torch {made_by}: use that, or deploy the model again."
            ) from error

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            with torch_threads(threads), torch.no_grad():
                return list(compiled(*inputs))

        return run
