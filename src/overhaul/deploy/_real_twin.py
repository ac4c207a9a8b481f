"""`real_twin`: the same network in real numbers, to see whether integers pay."""

from copy import deepcopy

from torch import nn

from overhaul.core import StoresIntegers


def real_twin(model: nn.Module) -> nn.Module | None:
    """Return a copy of a quantized model in real numbers; None if it has no integers.

    Its weights are those that the integers stand for, and its activations are not rounded, so it
    is at least as exact.
    """
    if not any(isinstance(module, StoresIntegers) for module in model.modules()):
        return None
    twin = deepcopy(model)
    for module in list(twin.modules()):
        if isinstance(module, StoresIntegers):
            module.restore_()
    return twin.eval()
