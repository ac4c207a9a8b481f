"""Golden inputs and outputs: what a deployed model once computed, to be computed again."""

from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from overhaul.core import ArtifactError
from overhaul.deploy._signature import Signature

GOLDEN = "golden.safetensors"


def write_golden(
    folder: Path, signature: Signature, inputs: Sequence[Tensor], outputs: Sequence[Tensor]
) -> None:
    """Write inputs, and what the engine made of them."""
    named = {
        **{f"input.{info.name}": x for info, x in zip(signature.inputs, inputs, strict=True)},
        **{f"output.{info.name}": y for info, y in zip(signature.outputs, outputs, strict=True)},
    }
    copies = {name: tensor.contiguous().clone() for name, tensor in named.items()}
    save_file(copies, folder / GOLDEN)


def read_golden(folder: Path, signature: Signature) -> tuple[list[Tensor], list[Tensor]]:
    """Return inputs and outputs in the order of the signature.

    Raises:
        ArtifactError: they are not there or not readable.
    """
    try:
        tensors = load_file(folder / GOLDEN)
        inputs = [tensors[f"input.{info.name}"] for info in signature.inputs]
        outputs = [tensors[f"output.{info.name}"] for info in signature.outputs]
    except (OSError, SafetensorError, KeyError) as error:
        raise ArtifactError(
            f"'{folder / GOLDEN}' does not hold the golden inputs and outputs: {error}. Deploy the "
            "model again."
        ) from error
    return inputs, outputs
