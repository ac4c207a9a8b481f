"""The engine `torch_compile`: PyTorch's compiler, on the same `.pt2` file as the engine `torch`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from overhaul.core import ArtifactError
from overhaul.deploy._capture import short_reason
from overhaul.deploy._compiler import check_compiler
from overhaul.deploy._engine import Runner
from overhaul.deploy._fold import folded
from overhaul.deploy._quiet import quiet
from overhaul.deploy._signature import example_inputs
from overhaul.deploy._torch import Torch, read_program, torch_threads
from overhaul.runtime import Signature

_SIZES = (1, 2)
"""The sizes compiled for: torch takes one sample for a constant, and more for any number."""


class TorchCompile(Torch):
    """Compile the model with `torch.compile` when it is opened, and run that.

    The file is that of the engine `torch`, and as safe: what is compiled comes from this machine.
    Opening takes as long as compiling does, from seconds to minutes, once for batches of one and
    once for all others; `Deploy` reports it as `load_s`. It needs a C++ compiler where it runs.

    Example:
        >>> TorchCompile()
        TorchCompile()
        >>> TorchCompile().to_data()
        'torch_compile'
    """

    def check_installed(self) -> None:
        """Look for a C++ compiler."""
        check_compiler()

    def open(self, path: Path, signature: Signature, threads: int | None) -> Runner:
        """Open `model.pt2` and compile it.

        Raises:
            ArtifactError: it holds pickles, code or unknown operations, or cannot be compiled.
            MissingExtraError: there is no C++ compiler.
        """
        check_compiler()
        module = folded(read_program(path, signature))
        compiled: Any = torch.compile(module, fullgraph=True, options={"freezing": True})

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            with torch_threads(threads), torch.no_grad():
                return list(compiled(*inputs))

        try:
            for size in _SIZES:
                inputs = example_inputs(signature, size)
                for tensor, info in zip(inputs, signature.inputs, strict=True):
                    for dimension, wanted in enumerate(info.shape):
                        if wanted == "batch" and size > 1:
                            torch._dynamo.mark_dynamic(tensor, dimension)
                        if wanted == "length" and signature.length is not None:
                            shortest, longest = signature.length
                            torch._dynamo.mark_dynamic(
                                tensor, dimension, min=max(2, shortest), max=longest
                            )
                with quiet():
                    run(inputs)
        except Exception as error:  # torch documents no type for what it raises
            raise ArtifactError(f"torch.compile fails: {short_reason(str(error))}") from error
        return run
