"""`RecalibrateNorm`: BatchNorm learns anew what it sees after a change."""

from typing import ClassVar

import torch
from pydantic import Field
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from overhaul.core import Context, ModelError, Step, Trait, Traits, evaluating
from overhaul.evaluation import model_device
from overhaul.pruning._criterion import training_batches
from overhaul.training import Constraint


class RecalibrateNorm(Step):
    r"""Estimate the running mean and variance of every BatchNorm again, on training data.

    After a removal the layers before a BatchNorm give other values than those that its statistics
    were taken of. With :math:`\mu_b, \sigma_b^2` those of batch :math:`b`, the new ones are

    .. math:: \mu = \frac{1}{B}\sum_b \mu_b, \qquad \sigma^2 = \frac{1}{B}\sum_b \sigma_b^2

    Nothing else changes: no weight moves, dropout is off, and a norm that is frozen, or that the
    model itself holds in evaluation mode, keeps its statistics.

    The control does without it: a model that nothing was removed from has statistics that fit.

    Args:
        batches: How many training batches. Default 32.
        batch_size: Samples of a batch; at least 2. Default 64.

    Raises:
        ModelError: the model has no BatchNorm with running statistics, or all are frozen.

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
        with evaluating(model):
            norms = _norms_in_training(model, ctx)
            momenta = [norm.momentum for norm in norms]
            model.eval()
            for norm in norms:
                norm.reset_running_stats()
                norm.momentum = None  # a plain average over the batches
                norm.training = True
            try:
                for batch in training_batches(ctx, self.batches, self.batch_size):
                    if len(batch) > 1:
                        batch.to(model_device(model)).forward(model)
            finally:
                for norm, momentum in zip(norms, momenta, strict=True):
                    norm.momentum = momentum
        ctx.log("recalibrated_norms", len(norms))
        return model


def _norms_in_training(model: nn.Module, ctx: Context) -> list[_BatchNorm]:
    """Return the norms whose statistics a training would move: not those that are held."""
    found = [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    if not found:
        raise ModelError(
            "RecalibrateNorm found no BatchNorm with running statistics. Leave it out: other "
            "normalizations keep none."
        )
    constraints = [item.bind(model, ctx) for item in ctx.carried if isinstance(item, Constraint)]
    model.train()
    for constraint in constraints:
        constraint.set_mode_()
    norms = [norm for norm in found if norm.training]
    for constraint in constraints:
        constraint.release_()
    if not norms:
        raise ModelError(
            f"RecalibrateNorm found {len(found)} BatchNorms, all of them frozen. Put Unfreeze "
            "before it, or leave it out."
        )
    return norms
