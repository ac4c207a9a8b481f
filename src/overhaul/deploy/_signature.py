"""What `Signature` leaves to torch: writing one, and tensors of what it describes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from overhaul.runtime import SIGNATURE, Signature, TensorInfo, cpu_features


def write_signature(folder: Path, signature: Signature) -> None:
    """Write the signature of an artifact, with what matters of this machine's CPU."""
    text = replace(signature, cpu=cpu_features()).to_json()
    (folder / SIGNATURE).write_text(text, "utf-8")


def example_inputs(signature: Signature, batch_size: int) -> tuple[Tensor, ...]:
    """Return zeros of the types and shapes that a deployed model takes, of the longest length."""
    sizes = {"batch": batch_size, "length": signature.length[1] if signature.length else 0}
    return tuple(
        torch.zeros(
            [size if isinstance(size, int) else sizes[size] for size in info.shape],
            dtype=getattr(torch, info.dtype),
        )
        for info in signature.inputs
    )


def dynamic_shapes(
    inputs: Sequence[TensorInfo], length: tuple[int, int] | None, most: int | None = None
) -> tuple[dict[int, Any], ...]:
    """Return what may change of each input, as `torch.export` takes it.

    Args:
        inputs: Of the model.
        length: The shortest and the longest sequence.
        most: Samples in a call; None for any number.
    """
    sizes = {"batch": Dim("batch", min=1, max=most)}
    if length is not None:
        sizes["length"] = Dim("length", min=length[0], max=length[1])
    return tuple(
        {i: sizes[size] for i, size in enumerate(info.shape) if isinstance(size, str)}
        for info in inputs
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
