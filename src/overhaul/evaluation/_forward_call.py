"""`forward_call`: one forward pass as something to be timed."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import nn

from overhaul.core import Batch, Deployed
from overhaul.evaluation._model_device import model_device


def forward_call(predictor: nn.Module | Deployed, batch: Batch) -> Callable[[], Any]:
    """Return a function without arguments that runs one forward pass and waits for its end.

    A model is copied, so that the copy can stay in evaluation mode; it runs on its own device, with
    the inputs already there.

    Args:
        predictor: A model, or a deployed one that is called like it.
        batch: The inputs of each call.

    Example:
        >>> inputs = torch.zeros(4, 3)
        >>> call = forward_call(nn.Linear(3, 2), Batch((inputs,), torch.zeros(4), torch.arange(4)))
        >>> call().shape
        torch.Size([4, 2])
    """
    if not isinstance(predictor, nn.Module):
        return lambda: batch.forward(predictor)
    model = deepcopy(predictor).eval()
    device = model_device(model)
    on_device = batch.to(device)

    def call() -> Any:
        with torch.no_grad():
            outputs = on_device.forward(model)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)
        return outputs

    return call
