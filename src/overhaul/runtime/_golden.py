"""Golden inputs and outputs: what a deployed model once computed, to be computed again."""

from pathlib import Path
from typing import Any, Literal

from overhaul.runtime._errors import ArtifactError
from overhaul.runtime._optional import load_optional
from overhaul.runtime._signature import Signature

GOLDEN = "golden.safetensors"
"""The file of an artifact with golden inputs and outputs."""


def read_golden(
    folder: Path, signature: Signature, kind: Literal["numpy", "pt"]
) -> tuple[list[Any], list[Any]]:
    """Return inputs and outputs in the order of the signature.

    Args:
        folder: Of the artifact.
        signature: Of the artifact.
        kind: Whether as NumPy arrays or as torch tensors.

    Raises:
        ArtifactError: they are not there or not readable.
        MissingExtraError: safetensors is not installed.
    """
    safetensors = load_optional("safetensors", why="to read the golden samples of an artifact")
    try:
        with safetensors.safe_open(folder / GOLDEN, framework=kind) as file:
            names = set(file.keys())
            return (
                [_read(file, names, f"input.{info.name}") for info in signature.inputs],
                [_read(file, names, f"output.{info.name}") for info in signature.outputs],
            )
    except (OSError, safetensors.SafetensorError, KeyError) as error:
        raise ArtifactError(
            f"'{folder / GOLDEN}' does not hold the golden inputs and outputs: {error}. Deploy the "
            "model again."
        ) from error


def _read(file: Any, names: set[str], name: str) -> Any:
    if name not in names:
        raise KeyError(name)
    return file.get_tensor(name)
