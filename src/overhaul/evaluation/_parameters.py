"""How many parameters a model has, and how many of them are not zero."""

import torch
from torch import Tensor, nn

from overhaul.core import StoresIntegers


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, each shared one counted once.

    Weights that are stored as integers, and so are buffers, count too.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    stored = sum(count for _, count in _stored(model))
    return stored + sum(parameter.numel() for parameter in model.parameters())


def count_nonzero_parameters(model: nn.Module) -> int:
    """Return the number of parameters that are not zero, each shared one counted once.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> _ = nn.init.zeros_(model.bias), nn.init.ones_(model.weight)
        >>> count_nonzero_parameters(model)
        6
    """
    counted = [tensor for tensor, _ in _stored(model)] + list(model.parameters())
    return sum(int(torch.count_nonzero(tensor)) for tensor in counted)


def _stored(model: nn.Module) -> list[tuple[Tensor, int]]:
    """Return each weight in integers once, unpacked or not, and how many numbers it is."""
    found = {
        id(tensor): (tensor, count)
        for module in model.modules()
        if isinstance(module, StoresIntegers)
        for tensor, count in module.stored_weights()
    }
    return list(found.values())
