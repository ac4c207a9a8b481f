"""`Signature`: what a deployed model takes, what it returns, and what runs it."""

from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

FORMAT_VERSION = 1


class TensorInfo(BaseModel):
    """One input or output of a deployed model.

    Attributes:
        name: Its name.
        dtype: Its type in torch's terms: `float32`.
        shape: A number for each fixed dimension, `batch` for the one that may change.

    Example:
        >>> info = TensorInfo(name="x", dtype="float32", shape=("batch", 3))
        >>> info.problem_with(torch.zeros(5, 4))
        'must have the shape [batch, 3], got [5, 4]'
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def problem_with(self, tensor: Tensor) -> str | None:
        """Return which rule a tensor breaks, with its value, or None."""
        dtype = str(tensor.dtype).removeprefix("torch.")
        if dtype != self.dtype:
            return f"must be {self.dtype}, got {dtype}"
        fits = tensor.ndim == len(self.shape) and all(
            isinstance(wanted, str) or size == wanted
            for size, wanted in zip(tensor.shape, self.shape, strict=True)
        )
        return None if fits else f"must have the shape {self._shape}, got {list(tensor.shape)}"

    def batch_sizes(self, tensor: Tensor) -> set[int]:
        """Return the sizes of the dimensions of a tensor that may change."""
        pairs = zip(tensor.shape, self.shape, strict=True)
        return {size for size, wanted in pairs if isinstance(wanted, str)}

    @property
    def _shape(self) -> str:
        return f"[{', '.join(map(str, self.shape))}]"

    def __str__(self) -> str:
        """Return name, type and shape."""
        return f"{self.name} {self.dtype} {self._shape}"


class Signature(BaseModel):
    """What a deployed model takes, what it returns, and what runs it.

    Attributes:
        format_version: Of the folder's layout.
        engine: Short name of the engine.
        options: How the engine was set.
        file: The engine's own file.
        versions: Versions of the packages that wrote it.
        task: Short name of the task.
        inputs: In the order of positional arguments.
        outputs: One, or one for each named task.
        named_outputs: Whether calling returns a dict of tensors by name instead of one tensor.
        class_names: What the outputs mean, in order.
        preprocessing: What the data went through before it came to the model, as data: the caller
            has to do the same. None if nothing.
        tolerance: The largest error that the golden check allows, relative to the largest output.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format_version: int = FORMAT_VERSION
    # A short name only: an import path here would let a file decide what is imported.
    engine: str = Field(pattern=r"^[a-z0-9_]+$")
    options: dict[str, str | int | float | bool | None] = {}
    file: str
    versions: dict[str, str]
    task: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    named_outputs: bool
    class_names: tuple[str, ...] | None = None
    preprocessing: Any = None
    tolerance: float


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
