"""What the tests of matches have in common: a loss of given features, and a short training."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from overhaul.core import Batch, Context
from overhaul.distillation import Distill, Layer, LayerMatch, Match, Pair, Seen
from overhaul.training import AdamW, Train

MakeContext = Callable[..., Context]

TRAININGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "bf16": {"precision": "bf16"},
    "accumulate": {"accumulate": 3},
}
"""Ways to train in which each match must work."""


def random(*shape: int, seed: int = 0) -> Tensor:
    """Return normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batch_of(labels_B: Tensor) -> Batch:
    """Return samples without inputs, since losses of outputs and features need none."""
    return Batch((torch.zeros(len(labels_B), 1),), labels_B, torch.arange(len(labels_B)))


def output_loss(
    plan: Match, ctx: Context, student_BC: Tensor, teacher_BC: Tensor, labels_B: Tensor
) -> Tensor:
    """Return the loss of a match of given outputs."""
    batch = batch_of(labels_B)
    bound = plan.bind(nn.Identity(), nn.Identity(), batch, ctx)
    losses: dict[str, Tensor] = bound(Seen(batch, student_BC, {}), Seen(batch, teacher_BC, {}))
    (loss,) = losses.values()
    return loss


def layer_loss(
    plan: LayerMatch, student: Tensor, teacher: Tensor, labels_B: Tensor | None = None
) -> Tensor:
    """Return the loss of a match of the given features of one pair of layers."""
    batch = batch_of(torch.arange(len(student)) if labels_B is None else labels_B)
    pairs = (Pair(_layer("own", student), _layer("theirs", teacher)),)
    bound = plan.bind_pairs(pairs, nn.Identity(), nn.Identity(), batch)
    outputs = torch.zeros(len(student), 1)
    losses: dict[str, Tensor] = bound(
        Seen(batch, outputs, {"own": student}), Seen(batch, outputs, {"theirs": teacher})
    )
    (loss,) = losses.values()
    return loss


def _layer(path: str, feature: Tensor) -> Layer:
    if feature.ndim == 3:
        return Layer(path, feature.shape[2], (feature.shape[1],), channels_last=True)
    return Layer(path, feature.shape[1], tuple(feature.shape[2:]), channels_last=False)


def losses_of_training(
    match: Match, student: nn.Module, ctx: Context, *, epochs: int = 6, **how: Any
) -> list[float]:
    """Train on this match alone and return the loss of each epoch."""
    objective = Distill(match=[match], weight=1.0)
    optimizer = AdamW(lr=1e-2)
    plan = Train(epochs=epochs, batch_size=16, optimizer=optimizer, objective=objective, **how)
    plan.apply(student, ctx)
    return [float(fact.value or 0) for fact in ctx.facts if fact.name == "train_loss"]
