"""`log_spread`: how much the quality depends on the calibration samples."""

from collections.abc import Iterable

from torch import nn

from overhaul.core import Context
from overhaul.quantization._judge import Judge


def log_spread(models: Iterable[nn.Module], judge: Judge, ctx: Context) -> None:
    """Log the quality on val of models that were made with different training samples.

    Args:
        models: The first is the one that is kept.
        judge: Measures.
        ctx: For the fact.
    """
    values = [judge.quality(model) for model in models]
    ctx.log(
        "calibration_spread",
        max(values) - min(values),
        split="val",
        n=len(judge.val),
        detail={
            "metric": judge.metric,
            "values": values,
            "min": min(values),
            "max": max(values),
        },
    )
