"""How many parameters a model has, and how many of them are not zero."""

import torch
from torch import nn


def count_parameters(model: nn.Module) -> int:
    """Return the number of parameters, each shared one counted once.

    Example:
        >>> count_parameters(nn.Linear(3, 2))
        8
    """
    return sum(parameter.numel() for parameter in model.parameters())


def count_nonzero_parameters(model: nn.Module) -> int:
    """Return the number of parameters that are not zero, each shared one counted once.

    Example:
        >>> model = nn.Linear(3, 2)
        >>> _ = nn.init.zeros_(model.bias), nn.init.ones_(model.weight)
        >>> count_nonzero_parameters(model)
        6
    """
    return sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())
