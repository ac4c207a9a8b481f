"""`SmoothQuant`: outliers of activations become large weights."""

from collections.abc import Iterator, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from overhaul.core import Batch, Context
from overhaul.quantization._plan import Plan
from overhaul.quantization._rescaling import Channels, Rescaling


class SmoothQuant(Rescaling):
    r"""Move a part of the range of activations into the weights that read them.

    .. math:: s_j = \max |x_j|^{\alpha} \, / \, \max |W_j|^{1 - \alpha}

    The norm (LayerNorm, RMSNorm, BatchNorm, GroupNorm) or layer before is divided by s; all layers
    that read it get one s. Which these are is seen in one forward pass. Where the error on training
    samples would grow, the layers are left; errors and reasons are facts.

    Args:
        alpha: How much of the range moves, from 0 to 1. Default 0.5.
        rows: Rows of inputs drawn from each batch. Default 256.

    Example:
        >>> SmoothQuant(alpha=0.8)
        SmoothQuant(alpha=0.8)

    Paper: Xiao et al., ICML 2023.  Differs: s is divided by its geometric mean, so that channels as
    a whole keep their size; layers before it can take the scale, too; it is taken only where the
    error gets less.
    """

    alpha: float = Field(default=0.5, ge=0, le=1, description="How much of the range moves.")

    @torch.no_grad()
    def prepare_(
        self, model: nn.Module, plan: Plan, batches: Sequence[Batch], ctx: Context
    ) -> None:
        """Move scales where activations become integers and it helps."""
        if any(form.inputs or form.output for form in plan.layers.values()):
            super().prepare_(model, plan, batches, ctx)
            return
        reason = "no activation becomes an integer, so there are no outliers to smooth"
        ctx.log("skipped", "", reason=reason, detail={"repair": self.spec_name()})

    def candidates(self, channels: Channels) -> Iterator[Tensor]:
        """Yield the one s."""
        s = channels.largest**self.alpha / channels.weights ** (1 - self.alpha)
        some = s.isfinite() & (s > 0)
        yield s / s[some].log().mean().exp()
