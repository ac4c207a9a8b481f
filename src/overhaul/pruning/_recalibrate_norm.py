"""`RecalibrateNorm`: BatchNorm learns anew what it sees after a change."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn

from overhaul.core import Context, ModelError, Step, Trait, Traits
from overhaul.pruning._criterion import training_batches

_BATCH_NORM = nn.modules.batchnorm._BatchNorm


class RecalibrateNorm(Step):
    r"""Estimate the running mean and variance of every BatchNorm again, on training data.

    After a removal the layers before a BatchNorm give other values than those that its statistics
    were taken of. With :math:`\mu_b, \sigma_b^2` those of batch :math:`b`, the new ones are

    .. math:: \mu = \frac{1}{B}\sum_b \mu_b, \qquad \sigma^2 = \frac{1}{B}\sum_b \sigma_b^2

    Nothing else changes: no weight moves, dropout is off.

    The control does without it: a model that nothing was removed from has statistics that fit.

    Args:
        batches: How many training batches. Default 32.
        batch_size: Samples of a batch; at least 2. Default 64.

    Raises:
        ModelError: the model has no BatchNorm with running statistics.

    Example:
        >>> RecalibrateNorm(batches=8)
        RecalibrateNorm(batches=8)

    Paper: Li et al., EagleEye, ECCV 2020 (adaptive BatchNorm).
    """

    needs: ClassVar[Traits] = frozenset({Trait.EDITABLE})

    batches: int = Field(default=32, ge=1, description="Training batches.")
    batch_size: int = Field(default=64, ge=2, description="Samples of a batch.")

    @torch.no_grad()
    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Run batches with only the norms in training mode, averaging all alike."""
        norms = [
            module
            for module in model.modules()
            if isinstance(module, _BATCH_NORM) and module.running_mean is not None
        ]
        if not norms:
            raise ModelError(
                "RecalibrateNorm found no BatchNorm with running statistics. Leave it out: other "
                "normalizations keep none."
            )
        flags = [(module, module.training) for module in model.modules()]
        momenta = [norm.momentum for norm in norms]
        device = next(model.parameters()).device
        model.eval()
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # a plain average over the batches
            norm.train()
        try:
            for batch in training_batches(ctx, self.batches, self.batch_size):
                if len(batch) > 1:
                    batch.to(device).forward(model)
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
            for module, flag in flags:
                module.training = flag
        ctx.log("recalibrated_norms", len(norms))
        return model
