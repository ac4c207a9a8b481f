"""`FoldNorm`: a BatchNorm becomes part of the layer before it."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from overhaul.core import Edit, ModelError, owner_of, replace_module_
from overhaul.graph._layer_flow import watch_layers


class FoldNorm(Edit):
    r"""The scale and shift that a BatchNorm has in evaluation mode go into the layer before it.

    .. math:: W \leftarrow \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} W, \qquad
              b \leftarrow \frac{\gamma}{\sqrt{\sigma^2 + \epsilon}} (b - \mu) + \beta

    The norm becomes an `nn.Identity`; the layer gets a bias if it had none.

    Args:
        layer: Path of the linear or convolutional layer.
        norm: Path of the BatchNorm that alone gets its output.

    Raises:
        ModelError: the two are not of these kinds.

    Example:
        >>> model = nn.Sequential(nn.Linear(3, 2, bias=False), nn.BatchNorm1d(2))
        >>> FoldNorm(layer="0", norm="1").apply(model)
        Sequential(
          (0): Linear(in_features=3, out_features=2, bias=True)
          (1): Identity()
        )

    Paper: Jacob et al., CVPR 2018, section 3.2.
    """

    layer: str
    norm: str

    @torch.no_grad()
    def apply(self, model: nn.Module) -> nn.Module:
        """Compute the new weight and bias in double precision and replace the norm."""
        layer, norm = model.get_submodule(self.layer), model.get_submodule(self.norm)
        if not can_fold(layer, norm):
            raise ModelError(
                f"'{self.norm}' is a {type(norm).__name__} after a {type(layer).__name__}, which "
                "cannot be folded. A BatchNorm with running statistics after a linear or "
                "convolutional layer can."
            )
        assert isinstance(layer, nn.Linear | _ConvNd)
        assert isinstance(norm, _BatchNorm)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = (norm.running_var.double() + norm.eps).rsqrt()
        shift = -norm.running_mean.double()
        if layer.bias is not None:
            shift += layer.bias.double()
        if norm.affine:
            scale *= norm.weight.double()
        shift *= scale
        if norm.affine:
            shift += norm.bias.double()
        shape = [1] * layer.weight.ndim
        shape[1 if isinstance(layer, _ConvTransposeNd) else 0] = -1
        layer.weight.copy_(layer.weight.double() * scale.view(shape))
        give_bias_(layer, shift)
        replace_module_(model, self.norm, nn.Identity().train(norm.training))
        return model

    def rename(self, name: str) -> str | None:
        """Return None for the tensors of the norm, which are gone."""
        return None if name.startswith(f"{self.norm}.") else name


def foldable_norms(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[FoldNorm]:
    """Return the folding of each norm that alone gets what a layer computes, in a forward pass.

    Args:
        model: It is left as it was.
        run: Calls it on the inputs.
    """
    flow = watch_layers(model, run)
    found = []
    for layer in flow.layers.values():
        if layer.norm is None or flow.uses[layer.norm] != 1:
            continue
        own, norm = owner_of(layer.weight), owner_of(layer.norm)
        if can_fold(model.get_submodule(own), model.get_submodule(norm)):
            found.append(FoldNorm(layer=own, norm=norm))
    return found


def can_fold(layer: nn.Module, norm: nn.Module) -> bool:
    """Return whether a norm of this kind can become part of a layer of this kind."""
    return (
        # A subclass may do more than normalize, an activation for example.
        type(norm) in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
        and isinstance(norm, _BatchNorm)
        and norm.running_mean is not None
        and norm.running_var is not None
        and isinstance(layer, nn.Linear | _ConvNd)
        and not (isinstance(layer, _ConvTransposeNd) and layer.groups > 1)
    )


def give_bias_(layer: nn.Linear | _ConvNd, values: Tensor) -> None:
    """Set the bias of a layer, which may have had none."""
    if layer.bias is None:
        new = nn.Parameter(values.to(layer.weight), requires_grad=layer.weight.requires_grad)
        layer.bias = new
    else:
        layer.bias.copy_(values)


def can_take_bias(model: nn.Module, weight: str) -> bool:
    """Return whether the layer with this weight has none and can be given a bias."""
    layer = model.get_submodule(owner_of(weight))
    return isinstance(layer, nn.Linear | _ConvNd) and layer.bias is None
