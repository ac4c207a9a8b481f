"""The engine `torch`: PyTorch itself, on a `.pt2` file."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torch.export import ExportedProgram

from overhaul.core import ArtifactError
from overhaul.deploy._capture import without_integers
from overhaul.deploy._engine import Engine, Runner
from overhaul.deploy._fold import folded
from overhaul.deploy._pt2_rules import check_pt2
from overhaul.deploy._quiet import quiet
from overhaul.deploy._recurrent import with_torch_layers
from overhaul.runtime import Signature


class Torch(Engine):
    """Run the model in PyTorch, from an exported program: its class is no longer needed.

    The file is a `.pt2` archive without what torch would unpickle or evaluate as code (example
    inputs, guards, stack traces); what is not so is refused before torch reads it.

    Example:
        >>> Torch()
        Torch()
    """

    file_name: ClassVar[str] = "model.pt2"

    def check_installed(self) -> None:
        """Nothing to do: torch is always there."""

    def versions(self) -> dict[str, str]:
        """Return the version of torch."""
        return {"torch": torch.__version__}

    def write(self, program: ExportedProgram, signature: Signature, folder: Path) -> None:
        """Write `model.pt2`.

        Raises:
            ArtifactError: the model uses operations that are not torch's own.
        """
        write_program(program, folder / self.file_name)

    def open(self, path: Path, signature: Signature, threads: int | None) -> Runner:
        """Open `model.pt2`.

        Raises:
            ArtifactError: it holds pickles, code or unknown operations, or this version of torch
                cannot read it.
        """
        # `program.module()` does the same, but spends a tenth of a millisecond a call on checks
        # that the artifact makes anyway.
        graph = folded(read_program(path, signature))

        def run(inputs: Sequence[Tensor]) -> list[Tensor]:
            with torch_threads(threads), torch.no_grad():
                return list(graph(*inputs))

        return run


def write_program(program: ExportedProgram, path: Path) -> None:
    """Write a `.pt2` archive of torch's own operations.

    Raises:
        ArtifactError: the model uses others.
    """
    try:
        with quiet():
            torch.export.save(with_torch_layers(without_integers(program)), path)
    except Exception as error:  # torch.export documents no type for what it raises
        raise ArtifactError(f"torch.export.save fails: {error}") from error
    check_pt2(path)


def read_program(path: Path, signature: Signature) -> ExportedProgram:
    """Read a `.pt2` archive.

    Raises:
        ArtifactError: it holds pickles, code or unknown operations, or this version of torch
            cannot read it.
    """
    check_pt2(path)
    try:
        with quiet():
            return torch.export.load(path)
    except Exception as error:  # torch.export documents no type for what it raises
        raise ArtifactError(
            f"torch {torch.__version__} cannot open '{path.name}': {error}. It was written by "
            f"torch {signature.versions.get('torch', 'of unknown version')}: use that, or "
            "deploy the model again."
        ) from error


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch use this many threads inside a block; None changes nothing."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
