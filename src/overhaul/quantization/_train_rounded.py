"""`train_rounded`: a model is trained under its rounding, and then written in integers."""

from copy import deepcopy
from dataclasses import replace

import torch
from torch import nn

from overhaul.core import Context, derived_seed
from overhaul.quantization._fake_quantization import FakeQuantization
from overhaul.quantization._judge import Judge
from overhaul.quantization._plan import Plan
from overhaul.quantization._ranges import buffer_name
from overhaul.quantization._write import round_weight_
from overhaul.training import Train


def train_rounded(
    model: nn.Module,
    rounded: nn.Module,
    plan: Plan,
    training: Train,
    rate: float,
    judge: Judge,
    ctx: Context,
) -> tuple[nn.Module, nn.Module]:
    """Return a model that was trained under its rounding, and the same in integers.

    Where the training gained nothing on `val`, both are returned as they came, unless it is to
    keep its last weights.

    Args:
        model: With the real numbers; it is left as it was.
        rounded: The same in integers, whose scales the training begins with.
        plan: What is integers.
        training: How to train.
        rate: By how much faster scales learn than weights.
        judge: Measures both.
        ctx: For data, facts and checkpoints.
    """
    start = constraint_of(rounded, plan, rate)
    inner = replace(
        ctx,
        seed=derived_seed(ctx.seed, "training"),
        label=f"{ctx.label}, training",
        facts=[],
        checkpoints=ctx.checkpoints.part("training"),
        # The last to be bound: other constraints see the model without the rounding.
        carried=[*ctx.carried, *training.constraints, start],
    )
    real = training.model_copy(update={"constraints": ()}).apply(deepcopy(model), inner)
    learned = inner.carried[-1]
    assert isinstance(learned, FakeQuantization)
    trained = in_integers(real, plan, learned)
    ctx.facts += inner.facts
    before, after = (judge.quality(each) for each in (rounded, trained))
    detail = {"metric": judge.metric}
    ctx.log("before_training", before, split="val", detail=detail)
    ctx.log("after_training", after, split="val", detail=detail)
    for kind, change in _changes(start, learned).items():
        ctx.log("scale_change", change, detail={"of": kind})
    better = judge.drop(before, after) < 0
    return (real, trained) if better or training.keep == "last" else (model, rounded)


def constraint_of(rounded: nn.Module, plan: Plan, rate: float) -> FakeQuantization:
    """Return the constraint under which a model computes as this one does in integers."""
    buffers = dict(rounded.named_buffers(remove_duplicate=False))
    scales, zero_points = {}, {}
    for path, form in plan.layers.items():
        for name in form.scaled:
            own = buffer_name(path, name)
            scales[own] = tuple(buffers[f"{own}_scale"].flatten().tolist())
            if name not in form.weights:
                zero_points[own] = int(buffers[f"{own}_zero_point"])
    return FakeQuantization(layers=plan.layers, scales=scales, zero_points=zero_points, rate=rate)


@torch.no_grad()
def in_integers(model: nn.Module, plan: Plan, learned: FakeQuantization) -> nn.Module:
    """Return a copy of a model in integers, with the scales that were learned."""
    smaller = plan.edit.apply(deepcopy(model))
    buffers = dict(smaller.named_buffers(remove_duplicate=False))
    for name, values in learned.scales.items():
        scale = buffers[f"{name}_scale"]
        scale.copy_(scale.new_tensor(values).view(scale.shape))
    for name, zero_point in learned.zero_points.items():
        buffers[f"{name}_zero_point"].fill_(zero_point)
    for path, form in plan.layers.items():
        for name, own in form.weights.items():
            if own.is_integer:
                stored = buffer_name(path, name)
                weight = getattr(model.get_submodule(path), name)
                round_weight_(buffers, stored, weight, own, buffers[f"{stored}_scale"])
    return smaller


def _changes(start: FakeQuantization, learned: FakeQuantization) -> dict[str, float]:
    """Return by which part scales of weights and of activations changed, in the mean."""
    parts: dict[str, list[float]] = {}
    for name, values in learned.scales.items():
        kind = "activations" if name in learned.zero_points else "weights"
        pairs = zip(values, start.scales[name], strict=True)
        parts.setdefault(kind, []).extend(abs(now / before - 1) for now, before in pairs)
    return {kind: sum(each) / len(each) for kind, each in parts.items()}
