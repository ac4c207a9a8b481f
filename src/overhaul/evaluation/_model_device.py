"""Where a model computes."""

from itertools import chain

import torch
from torch import nn


def model_device(model: nn.Module) -> torch.device:
    """Return the device of the model's first parameter or buffer; the CPU if it has none.

    Example:
        >>> model_device(nn.Linear(2, 1))
        device(type='cpu')
    """
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device
