"""Whether images and kernels are stored channels last."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from overhaul.core import ModelError, Splits, evaluating
from overhaul.training._hardware import Precision


def use_channels_last_(
    model: nn.Module, wish: bool | None, device: torch.device, precision: Precision, data: Splits
) -> bool:
    """Store kernels channels last if it was asked for, or helps and the model can do it."""
    if wish is False or (wish is None and not _helps(model, device, precision)):
        return False
    model.to(memory_format=torch.channels_last)
    return _takes_(model, model, wish, device, data)


def all_take_channels_last_(
    networks: Iterable[nn.Module],
    model: nn.Module,
    wish: bool | None,
    device: torch.device,
    data: Splits,
) -> bool:
    """Return whether other networks can do it too; if not, the model is as it was before."""
    return all(_takes_(network, model, wish, device, data) for network in networks)


def _takes_(
    network: nn.Module, model: nn.Module, wish: bool | None, device: torch.device, data: Splits
) -> bool:
    batch = next(data.train.in_order(2)).to(device)
    try:
        with evaluating(network):
            batch.map_inputs(channels_last).forward(network)
    except RuntimeError as error:
        # `view` in the user's forward pass fails on channels-last tensors; `reshape` would not.
        model.to(memory_format=torch.contiguous_format)
        if wish:
            who = "the model" if network is model else "a network that it learns from"
            raise ModelError(
                f"`channels_last` was asked for and {who} cannot do it: {error} Leave it out."
            ) from error
        return False
    return True


def channels_last(tensor: Tensor) -> Tensor:
    """Return images stored channels last, and anything else as it is."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor


def _helps(model: nn.Module, device: torch.device, precision: Precision) -> bool:
    """Decide by a rule and not by timing, so that two equal runs decide alike."""
    kinds = {type(module) for module in model.modules()}
    if device.type == "cpu":
        return nn.Conv2d in kinds and nn.BatchNorm2d in kinds
    return nn.Conv2d in kinds and precision != "fp32"
