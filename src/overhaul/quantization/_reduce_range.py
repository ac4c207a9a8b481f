"""`seven_bits_needed`: whether a CPU that saturates would lose more with 8 bits than with 7."""

from typing import Any

from torch import nn

from overhaul.core import Batch, Context, evaluating
from overhaul.evaluation import model_device
from overhaul.quantization._plan import Plan, computes
from overhaul.quantization._saturating import Saturation, saturating
from overhaul.quantization._trials import Trials

_LISTED = 5
_AT_ONCE = 2
"""Samples simulated at once: all activations of a pass are kept until its end."""


def seven_bits_needed(eight_bits: Trials, seven_bits: Trials, before: float) -> bool:
    """Return whether weights of 7 bits are better on a CPU without VNNI, by a simulation on val.

    With 7 bits no sum of two products saturates, so what they lose is known exactly. They are
    tried only if saturation costs quality: else they could win by chance alone.

    Args:
        eight_bits: Makes the model with weights of 8 bits.
        seven_bits: The same with 7.
        before: The quality of the model in real numbers.
    """
    judge, ctx, eight = eight_bits.judge, eight_bits.ctx, eight_bits.build({})
    exact = judge.quality(eight)
    with saturating(eight):
        saturated = judge.quality(eight)
    drop = judge.drop(before, saturated)
    detail: dict[str, Any] = {"metric": judge.metric, "exact": exact, "saturated": saturated}
    needed = False
    if drop > judge.drop(before, exact):
        detail["seven_bits"] = judge.quality(seven_bits.build({}))
        needed = drop > judge.drop(before, detail["seven_bits"])
    ctx.log("saturation_drop", drop, split="val", n=len(judge.val), detail=detail)
    ctx.log(
        "reduce_range",
        needed,
        reason="on a CPU without VNNI sums saturate with 8 bits, and 7 lose less on val"
        if needed
        else "where sums saturate, 8 bits lose no more on val than with exact sums, or than 7 bits",
    )
    return needed


def log_saturation(model: nn.Module, plan: Plan, batch: Batch, ctx: Context) -> None:
    """Log what a CPU without VNNI would change in the outputs of layers, for one batch.

    Args:
        model: In integers.
        plan: What of it is.
        batch: Training samples.
        ctx: For the fact.
    """
    with evaluating(model), saturating(model) as found:
        for indices in batch.indices.split(_AT_ONCE):
            ctx.data.train.read(indices).to(model_device(model)).forward(model)
    ctx.log(
        "saturation",
        found.part if found.numbers else None,
        reason=None if found.numbers else "no layer that is simulated computes in integers",
        split="train",
        n=len(batch),
        detail={"worst": _worst(found), "not_simulated": _left_out(model, plan, found)},
    )


def _left_out(model: nn.Module, plan: Plan, found: Saturation) -> list[str]:
    """Return the layers that compute in integers and are simulated as if sums were exact."""
    return [
        path
        for path, form in plan.layers.items()
        if any(each.type == "int8" for each in form.weights.values())
        if path not in {*plan.skipped, *found.numbers} and computes(model.get_submodule(path))
    ]


def _worst(found: Saturation) -> dict[str, float]:
    errors = sorted(found.errors.items(), key=lambda item: -item[1])
    return {path: error for path, error in errors[:_LISTED] if error}
