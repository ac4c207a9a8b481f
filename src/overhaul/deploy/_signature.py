"""What `Signature` leaves to torch: writing one, and tensors of what it describes."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from overhaul.runtime import SIGNATURE, Signature, TensorInfo, cpu_features


def write_signature(folder: Path, signature: Signature) -> None:
    """Write the signature of an artifact, with what matters of this machine's CPU."""
    text = replace(signature, cpu=cpu_features()).to_json()
    (folder / SIGNATURE).write_text(text, "utf-8")


def example_inputs(signature: Signature, batch_size: int) -> tuple[Tensor, ...]:
    """Return zeros of the types and shapes that a deployed model takes."""
    return tuple(
        torch.zeros(
            [size if isinstance(size, int) else batch_size for size in info.shape],
            dtype=getattr(torch, info.dtype),
        )
        for info in signature.inputs
    )


def widest_tolerance(tolerance: float, outputs: tuple[TensorInfo, ...]) -> float:
    """Return the tolerance, or what the rounding of a 16-bit output makes of it.

    Example:
        >>> widest_tolerance(1e-3, (TensorInfo(name="y", dtype="bfloat16", shape=(1,)),))
        0.0625
    """
    types = [getattr(torch, info.dtype) for info in outputs]
    rounding = [torch.finfo(dtype).eps for dtype in types if dtype.is_floating_point]
    return max([tolerance, *(8 * eps for eps in rounding)])
