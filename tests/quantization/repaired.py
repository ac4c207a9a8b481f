"""Networks that lose much by rounding, and what a repair makes of them."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from overhaul.core import Batch, Context
from overhaul.quantization import QuantizationRepair, Quantize
from overhaul.tasks import Classification

MakeContext = Callable[..., Context]


class Images(nn.Module):
    """Ordinary, depthwise, grouped and transposed convolutions, pooled into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, padding="same", padding_mode="zeros")
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.point = nn.Conv2d(8, 12, 1)
        self.grouped = nn.Conv2d(12, 12, 3, stride=2, groups=2, bias=False)
        self.up = nn.ConvTranspose2d(12, 6, 2, 2)
        self.hidden = nn.Linear(54, 16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.depthwise(torch.relu(self.first(x))))
        x = torch.relu(self.grouped(torch.relu(self.point(x))))
        x = torch.max_pool2d(torch.relu(self.up(x)), 2)
        out: Tensor = self.head(torch.relu(self.hidden(x.flatten(1))))
        return out


class Tokens(nn.Module):
    """A transformer with torch's own block, and a gated one written by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.norm = nn.RMSNorm(16)
        self.gate, self.up = nn.Linear(16, 24), nn.Linear(16, 24)
        self.down = nn.Linear(24, 16)
        self.last = nn.LayerNorm(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.block(self.embed(x.squeeze(1)))
        n = self.norm(h)
        h = h + self.down(torch.nn.functional.silu(self.gate(n)) * self.up(n))
        out: Tensor = self.head(self.last(h)[:, 0])
        return out


NETWORKS: dict[str, Callable[[], nn.Module]] = {"images": Images, "tokens": Tokens}


def network(name: str) -> nn.Module:
    """Return a network, always the same."""
    torch.manual_seed(3)
    return NETWORKS[name]().eval()


def task() -> Classification:
    """Return images whose pixels depend on each other, `[N, 1, 8, 8]`."""
    generator = torch.Generator().manual_seed(5)
    mix = torch.randn(6, 64, generator=generator)
    x = (torch.randn(160, 6, generator=generator) @ mix).view(-1, 1, 8, 8)
    x = x + 0.1 * torch.randn(x.shape, generator=generator)
    return Classification(train=(x, torch.arange(160) % 5))


def samples(ctx: Context) -> Batch:
    """Return all training samples."""
    return ctx.data.train.read(torch.arange(len(ctx.data.train)))


@torch.no_grad()
def output_of(model: nn.Module, batch: Batch) -> Tensor:
    """Return what a model computes, in double precision."""
    out = batch.forward(model.eval())
    assert isinstance(out, Tensor)
    return out.double()


def loss_by(
    model: nn.Module, repairs: tuple[QuantizationRepair, ...], make: MakeContext, **fields: Any
) -> tuple[float, Context]:
    """Return the relative error of the quantized model's output, and the context with facts."""
    ctx = make(model, task=task())
    batch = samples(ctx)
    right = output_of(model, batch)
    step = Quantize(repairs=repairs, batches=4, **fields)
    found = output_of(step.apply(deepcopy(model), ctx), batch)
    return float((found - right).norm() / right.norm()), ctx


def repair_errors(ctx: Context, repair: str) -> dict[str, tuple[float, float]]:
    """Return the error of each layer before and after a repair."""
    return {
        str(fact.detail["layer"]): (fact.detail["before"], float(fact.value))
        for fact in ctx.facts
        if fact.name == "repair_error"
        and fact.detail["repair"] == repair
        and isinstance(fact.value, float)
    }


def skipped(ctx: Context, repair: str) -> dict[str, str]:
    """Return why a repair left a layer as it was."""
    return {
        str(fact.value): str(fact.reason)
        for fact in ctx.facts
        if fact.name == "skipped" and fact.detail.get("repair") == repair
    }
