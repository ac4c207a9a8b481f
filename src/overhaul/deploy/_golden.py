"""`write_golden`: inputs, and what the engine made of them when the artifact was made."""

from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from overhaul.runtime import GOLDEN, Signature


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
