"""`Normalize`: the fixed change of the inputs that a model expects."""

import torch
from pydantic import Field, field_validator
from torch import Tensor

from overhaul.core import Batch, DataError, Spec, SpecError


class Normalize(Spec):
    r"""Subtract a mean and divide by a standard deviation, for each channel or feature.

    .. math:: x' = (x - \mu) / \sigma

    Inputs of type uint8 (pixels) are first divided by 255, so `mean` and `std` are in units of
    [0, 1]. It is a part of the task, applied to every batch of every split and written into the
    signature of a deployed model; inputs of whole numbers (token ids) stay as they are.

    Args:
        mean: One number, or one for each channel (or feature). Default 0.
        std: The same; above zero. Default 1, so that `Normalize()` only scales pixels to [0, 1].

    Shapes: `[B, C, ...]` or `[B, F]` -> the same.

    Raises:
        DataError: `mean` or `std` has another number of entries than the inputs have channels.

    Example:
        >>> Normalize(mean=0.5, std=0.5)
        Normalize(mean=0.5, std=0.5)
        >>> Normalize(mean=0.5, std=0.5)(torch.tensor([[0.0, 1.0]]))
        tensor([[-1.,  1.]])
    """

    mean: float | tuple[float, ...] = Field(
        default=0.0, description="One number, or one for each channel."
    )
    std: float | tuple[float, ...] = Field(
        default=1.0, description="One number, or one for each channel; above zero."
    )

    @field_validator("std")
    @classmethod
    def _above_zero(cls, value: float | tuple[float, ...]) -> float | tuple[float, ...]:
        if min(_numbers(value), default=0.0) <= 0:
            raise SpecError(f"`std` must be above 0, got {value}.")
        return value

    def __call__(self, inputs: Tensor) -> Tensor:
        """Return the normalized inputs."""
        inputs = pixels_as_floats(inputs)
        if not inputs.is_floating_point():
            return inputs
        return (inputs - self._along("mean", inputs)) / self._along("std", inputs)

    def apply(self, batch: Batch) -> Batch:
        """Return the batch with every floating-point or uint8 input normalized."""
        return batch.map_inputs(self)

    def _along(self, field: str, inputs: Tensor) -> Tensor:
        values = _numbers(getattr(self, field))
        shape = [1] * inputs.ndim
        if len(values) > 1:
            if inputs.ndim < 2 or inputs.shape[1] != len(values):
                raise DataError(
                    f"`{field}` of normalize has {len(values)} numbers, and the inputs have the "
                    f"shape [B, {', '.join(map(str, inputs.shape[1:]))}]. Give one number, or one "
                    "for each channel (the dimension after the batch)."
                )
            shape[1] = len(values)
        return torch.tensor(values, dtype=inputs.dtype, device=inputs.device).reshape(shape)


def pixels_as_floats(inputs: Tensor) -> Tensor:
    """Return uint8 inputs as floats in [0, 1], and others as they are.

    Example:
        >>> pixels_as_floats(torch.tensor([0, 51, 255], dtype=torch.uint8))
        tensor([0.0000, 0.2000, 1.0000])
    """
    return inputs.float() / 255 if inputs.dtype == torch.uint8 else inputs


def _numbers(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)
