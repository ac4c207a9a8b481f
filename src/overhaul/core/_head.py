"""`find_head`: the layer that makes a model's outputs."""

import torch
from torch import Tensor, nn

from overhaul.core._batch import Batch
from overhaul.core._errors import ModelError
from overhaul.core._model_state import evaluating


def find_head(model: nn.Module, batch: Batch, *, remedy: str = "Name it with `head`") -> str:
    """Return the path of the Linear or Conv2d that makes the model's outputs.

    Args:
        model: Its flags are restored.
        batch: Real inputs, on the model's device.
        remedy: What to do if it cannot be found, for the error.

    Raises:
        ModelError: the outputs are not, up to reshaping, what one such layer returns.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
        >>> find_head(model, Batch((torch.rand(5, 3),), torch.zeros(5), torch.arange(5)))
        '2'
    """
    latest: dict[str, Tensor] = {}

    def remember(path: str) -> object:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            latest.pop(path, None)
            latest[path] = output

        return hook

    layers = {
        path: module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | nn.Conv2d)
    }
    handles = [
        module.register_forward_hook(remember(path))  # type: ignore[arg-type]
        for path, module in layers.items()
    ]
    try:
        with evaluating(model):
            outputs = batch.forward(model)
    finally:
        for handle in handles:
            handle.remove()
    if isinstance(outputs, Tensor):
        for path, output in reversed(latest.items()):
            if output.numel() == outputs.numel() and torch.equal(
                output.flatten(), outputs.flatten()
            ):
                return path
    candidates = ", ".join(list(latest)[-3:]) or "none"
    raise ModelError(
        "the head could not be found: the model's outputs are not what one Linear or Conv2d "
        f"returns. {remedy}; the last layers that ran are: {candidates}."
    )
