"""`BiasCompensation`: the mean of what is removed goes into the bias."""

import torch
from pydantic import Field
from torch import nn

from overhaul.core import Context
from overhaul.pruning._criterion import training_batches
from overhaul.pruning._reader_inputs import mean_inputs
from overhaul.pruning._repair import Reader, Repair


class BiasCompensation(Repair):
    r"""Add to the bias of each layer what the removed inputs gave it on average.

    .. math:: b \leftarrow b + \sum_{c \in R} W_{:,c} \, \bar{a}_c

    with :math:`\bar a` the mean input on training data; of a convolution, the sum over its kernel.
    Layers without a bias are left as they are; where a BatchNorm follows, `RecalibrateNorm` does
    the same for them.

    Args:
        batches: How many training batches to take the mean over. Default 8.
        batch_size: Samples of a batch. Default 64.

    Example:
        >>> BiasCompensation()
        BiasCompensation()

    Paper: Ye et al., ICLR 2018, section 4.
    """

    batches: int = Field(default=8, ge=1, description="Training batches.")
    batch_size: int = Field(default=64, ge=1, description="Samples of a batch.")

    @torch.no_grad()
    def apply_(self, model: nn.Module, readers: list[Reader], ctx: Context) -> None:
        """Change the biases in place."""
        own = {reader.path: reader for reader in readers if reader.layer.bias is not None}
        batches = training_batches(ctx, self.batches, self.batch_size)
        for path, mean in mean_inputs(model, set(own), batches).items():
            layer, lost = own[path].layer, own[path].lost.to(mean.device)
            weight = layer.weight.detach().double()
            weight = weight.reshape(*weight.shape[:2], -1).sum(2)
            assert layer.bias is not None
            layer.bias += (weight[:, lost] @ mean[lost]).to(layer.bias.dtype)
