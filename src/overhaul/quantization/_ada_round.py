"""`AdaRound`: whether a weight is rounded up or down is learned."""

import torch
from pydantic import Field
from torch import Tensor

from overhaul.core import Context
from overhaul.quantization._layer_inputs import LayerInputs
from overhaul.quantization._rounding_repair import RoundingRepair

_STRETCH = 0.1
"""How far beyond 0 and 1 the sigmoid reaches, so that it can be exactly either."""
_WARM = 0.2
"""For which part of the iterations weights may stay between two integers at no cost."""


class AdaRound(RoundingRepair):
    r"""Learn for each weight whether it is rounded up or down.

    With :math:`h = \operatorname{clip}(1.2\,\sigma(v) - 0.1, 0, 1)` and
    :math:`\hat w = s\,(\lfloor w / s \rfloor + h)`, gradient descent on :math:`v` minimizes

    .. math:: \lVert (W - \hat W)\,x \rVert^2 / E + \lambda \sum (1 - |2h - 1|^\beta)

    where :math:`E` is the error of rounding to the nearest, for each weight, and :math:`\beta`
    falls from 20 to 2, so that each :math:`h` ends at 0 or 1. For linear layers, convolutions and
    the projections of attention, one by one. The layer's error and what it was before are facts.

    Args:
        rows: Rows of inputs drawn from each batch. Default 512.
        iterations: Steps of gradient descent for each layer. Default 500.
        samples: Rows of inputs in each step. Default 256.
        lr: Of Adam. Default 0.05.
        weight: :math:`\lambda`. Default 10.

    Example:
        >>> AdaRound(iterations=1000)
        AdaRound(iterations=1000)

    Paper: Nagel et al., ICML 2020.  Differs: the error is divided by that of rounding to the
    nearest, so that one :math:`\lambda` fits all layers; fewer iterations with larger steps; the
    inputs are those of the real model and the activation behind is left out; an output channel that
    gets no better keeps its integers.
    """

    iterations: int = Field(default=500, ge=1, description="Steps of gradient descent.")
    samples: int = Field(default=256, ge=1, description="Rows of inputs in each step.")
    lr: float = Field(default=0.05, gt=0, description="Of Adam.")
    weight: float = Field(default=10.0, gt=0, description="How much it costs to be between.")

    def integers(
        self,
        weight: Tensor,
        step: Tensor,
        limits: tuple[int, int],
        inputs: LayerInputs,
        ctx: Context,
    ) -> Tensor:
        """Return the nearest integer or the one on the other side."""
        rows, draws = inputs.rows.float(), ctx.generator("ada_round", *weight.shape)
        low = (weight / step).floor().clamp(*limits)
        part = (weight / step - low).clamp(0, 1)
        v = _inverse(part).float()
        gaps, steps = (weight / step - low).float(), step.float()
        room = limits[1] - low
        nearest = ((part.round().float() - gaps) * steps) @ rows.mT
        scale = weight.numel() / nearest.square().sum().clamp(min=1e-30) * rows.shape[1]
        with torch.enable_grad():
            v.requires_grad_()
            optimizer = torch.optim.Adam([v], lr=self.lr)
            for iteration in range(self.iterations):
                chosen = torch.randint(rows.shape[1], (self.samples,), generator=draws)
                x = rows[:, chosen.to(rows.device)]
                h = (torch.sigmoid(v) * (1 + 2 * _STRETCH) - _STRETCH).clamp(0, 1)
                error = ((h - gaps) * steps) @ x.mT
                loss = error.square().sum() * scale / self.samples
                done = (iteration / self.iterations - _WARM) / (1 - _WARM)
                if done >= 0:
                    beta = 2 + 18 * 0.5 * (1 + torch.cos(torch.tensor(done * torch.pi)))
                    loss = loss + self.weight * (1 - (2 * h - 1).abs() ** beta).sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        up = (v.detach() >= 0).double()
        return low + torch.minimum(up, room)


def _inverse(part: Tensor) -> Tensor:
    """Return the v at which h is `part`."""
    return torch.logit((part + _STRETCH) / (1 + 2 * _STRETCH))
