"""`activation_facts`: how exact the integers of each activation are."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from overhaul.core import Batch, Fact, dequantize, evaluating, quantize
from overhaul.quantization._plan import Plan
from overhaul.quantization._ranges import Ranges, watched_activations


def activation_facts(
    model: nn.Module, plan: Plan, ranges: Ranges, batch: Batch, label: str
) -> Iterator[Fact]:
    r"""Yield the ratio of signal to noise of each activation, in decibels.

    .. math:: 10 \log_{10} \frac{\sum x^2}{\sum (x - \hat x)^2}

    Args:
        model: With real numbers; it is left as it was.
        plan: Where activations become integers.
        ranges: Scale and zero point of each.
        batch: Training samples.
        label: Of the step.
    """
    signal: dict[str, float] = {}
    noise: dict[str, float] = {}
    cut: dict[str, int] = {}

    def note(name: str, x: Tensor) -> None:
        step, zero = ranges[name]
        scale = torch.tensor(step, device=x.device)
        zero_point = torch.tensor(zero, dtype=torch.uint8, device=x.device)
        q = quantize(x, scale, zero_point)
        error = x - dequantize(q, scale, zero_point)
        signal[name] = signal.get(name, 0.0) + float(x.square().sum())
        noise[name] = noise.get(name, 0.0) + float(error.square().sum())
        cut[name] = cut.get(name, 0) + int((error.abs() > 0.51 * scale).sum())

    with watched_activations(model, plan, note), evaluating(model):
        batch.forward(model)
    for name, power in signal.items():
        ratio = torch.tensor(max(power, 1e-30) / max(noise[name], 1e-30), dtype=torch.float64)
        yield Fact(
            name="activation_sqnr_db",
            value=float(10 * ratio.log10()),
            unit="dB",
            subject=label,
            n=len(batch),
            split="train",
            detail={"activation": name, "cut_off": cut[name]},
        )
