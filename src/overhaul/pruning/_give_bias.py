"""`GiveBias`: a layer without a bias gets one."""

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd

from overhaul.core import Edit, ModelError


class GiveBias(Edit):
    """A linear or convolutional layer gets a bias of zeros.

    Args:
        layer: Its path.

    Raises:
        ModelError: it is another kind of layer, or has a bias.

    Example:
        >>> GiveBias(layer="0").apply(nn.Sequential(nn.Linear(3, 2, bias=False)))
        Sequential(
          (0): Linear(in_features=3, out_features=2, bias=True)
        )
    """

    layer: str

    def apply(self, model: nn.Module) -> nn.Module:
        """Make the bias, of the weight's type and on its device."""
        layer: object = model.get_submodule(self.layer)
        if not isinstance(layer, nn.Linear | _ConvNd) or "bias" in dict(layer.named_parameters()):
            raise ModelError(
                f"a bias can be given to a linear or convolutional layer without one, and "
                f"'{self.layer}' is {layer}."
            )
        size = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        bias = torch.zeros(size, dtype=layer.weight.dtype, device=layer.weight.device)
        layer.bias = nn.Parameter(bias, requires_grad=layer.weight.requires_grad)
        return model
