"""In which precision losses are computed: single at least, whatever the networks run in."""

import torch
from torch import Tensor

_NEARLY_ZERO = 1e-7


def single(tensor: Tensor) -> Tensor:
    """Return a tensor in single precision, or in its own if that is higher."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def without_autocast(tensor: Tensor) -> torch.autocast:
    """Return a context in which products are computed in the precision of what is multiplied."""
    return torch.autocast(tensor.device.type, enabled=False)


def unit(tensor: Tensor) -> Tensor:
    """Return vectors along the last dimension at length one.

    The direction of a vector that is nearly zero is noise, and its gradient would be without bound:
    it becomes zero, without a gradient.
    """
    length = torch.linalg.vector_norm(tensor, dim=-1, keepdim=True)
    scaled = tensor / length.clamp(min=_NEARLY_ZERO)
    return torch.where(length > _NEARLY_ZERO, scaled, torch.zeros_like(scaled))
