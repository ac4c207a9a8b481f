"""`Criterion`: how much a unit is worth."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from overhaul.core import Batch, Context, ModelError, Spec, evaluating
from overhaul.graph import Graph, Group, Place

Scores = NDArray[np.float64]
"""`[units]`: a higher score is kept."""


class Criterion(Spec, ABC):
    """How much each unit of a group is worth; the units worth least are removed.

    Subclass it for a criterion of your own: one file.
    """

    @abstractmethod
    def scores(self, graph: Graph, model: nn.Module, ctx: Context) -> dict[str, Scores]:
        """Return the scores of the units of each group, by its name.

        A group that is left out has nothing that the criterion can judge by; it is not pruned, and
        a fact says so.

        Args:
            graph: The groups of the model.
            model: As it stands. It is to be left as it is.
            ctx: Data, loss and randomness.
        """


def per_unit(values: Tensor, place: Place) -> Scores:
    """Return the sum of a tensor's values over each unit's positions at a place."""
    sums = values.detach().double().movedim(place.dim, 0).reshape(values.shape[place.dim], -1)
    by_position = sums.sum(1).numpy(force=True)
    return np.asarray(by_position[place.positions].sum(axis=1))


def weights_of(group: Group, tensors: Mapping[str, Tensor]) -> list[Place]:
    """Return the places of a group in matrices and kernels."""
    return [p for p in group.places if p.tensor in tensors and tensors[p.tensor].ndim > 1]


def readers_of(group: Group, tensors: Mapping[str, Tensor]) -> list[Place]:
    """Return the places where weights take the units in; where there is none, all weights."""
    places = weights_of(group, tensors)
    return [place for place in places if place.reads] or places


def training_batches(ctx: Context, count: int, batch_size: int) -> Iterator[Batch]:
    """Yield random batches of the training split, the same ones for the same seed."""
    size = len(ctx.data.train)
    order = torch.randperm(size, generator=ctx.generator("criterion"))
    chosen = [part for part in order.split(batch_size)[:count] if len(part)]
    return ctx.data.train.batches(chosen)


def loss_changes(
    graph: Graph, model: nn.Module, ctx: Context, batches: int, batch_size: int
) -> Iterator[dict[str, Scores]]:
    r"""Yield :math:`\sum w \, \partial L / \partial w` of each unit, batch by batch, by group.

    It goes over the weights that take a unit in: zeroing them is zeroing the unit, and to first
    order it takes this from the loss.

    Raises:
        ModelError: no parameter has a gradient.
    """
    tensors = dict(model.named_parameters())
    for found in _gradients(model, ctx, batches, batch_size):
        changes: dict[str, Scores] = {}
        for group in graph.groups:
            places = [p for p in readers_of(group, tensors) if p.tensor in found]
            if places:
                each = [per_unit(tensors[p.tensor] * found[p.tensor], p) for p in places]
                changes[group.name] = np.sum(each, axis=0)
        yield changes


def _gradients(
    model: nn.Module, ctx: Context, batches: int, batch_size: int
) -> Iterator[dict[str, Tensor]]:
    """Yield the gradient of the loss by each parameter, batch by batch, in evaluation mode.

    Raises:
        ModelError: no parameter has a gradient.
    """
    own = dict(model.named_parameters())
    flags = {name: parameter.requires_grad for name, parameter in own.items()}
    device = next(iter(own.values())).device
    try:
        for parameter in own.values():
            parameter.requires_grad_(parameter.is_floating_point())
        for batch in training_batches(ctx, batches, batch_size):
            moved = batch.to(device)
            with evaluating(model), torch.enable_grad():
                loss = ctx.task.loss(moved.forward(model), moved.targets)
                if not loss.requires_grad:
                    raise ModelError("the loss has no gradient by any parameter of the model.")
                found: Sequence[Tensor | None] = torch.autograd.grad(
                    loss, list(own.values()), allow_unused=True
                )
            yield {
                name: gradient
                for name, gradient in zip(own, found, strict=True)
                if gradient is not None
            }
    finally:
        for name, parameter in own.items():
            parameter.requires_grad_(flags[name])
