"""How exact activations are, and which layers the simulation of saturation leaves out."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import Context
from overhaul.quantization import MinMax, Percentile, Quantize
from overhaul.tasks import Classification

MakeContext = Callable[..., Context]


def rows(*shape: int) -> Classification:
    generator = torch.Generator().manual_seed(0)
    return Classification(train=(torch.rand(64, *shape, generator=generator), torch.arange(64) % 3))


def test_uniform_values_in_eight_bits_are_exact_to_what_theory_says(
    make_context: MakeContext,
) -> None:
    model = nn.Sequential(nn.Linear(50, 3))
    ctx = make_context(model, task=rows(50))
    Quantize(calibration=MinMax()).apply(model, ctx)
    (fact,) = [fact for fact in ctx.facts if fact.name == "activation_sqnr_db"]
    # The square of a uniform value is 1/3, that of the error 1/12 of a step of 1/255.
    assert fact.value == pytest.approx(10 * torch.tensor(4.0 * 255**2).log10().item(), abs=0.5)
    assert fact.detail == {"activation": "0.input", "cut_off": 0}
    assert (fact.n, fact.split) == (8, "train")


def test_values_beyond_the_range_are_counted(make_context: MakeContext) -> None:
    model = nn.Sequential(nn.Linear(50, 3))
    ctx = make_context(model, task=rows(50))
    Quantize(calibration=Percentile(part=0.8)).apply(model, ctx)
    (fact,) = [fact for fact in ctx.facts if fact.name == "activation_sqnr_db"]
    assert fact.detail["cut_off"] == pytest.approx(0.1 * 8 * 50, rel=0.5)  # zero is in the range


def test_attention_is_named_as_not_simulated_and_weights_alone_are_not(
    make_context: MakeContext,
) -> None:
    class Attending(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.attention(x, x, x, need_weights=False)[0].mean(1))
            return out

    for exclude, simulated in (((), True), (("head",), False)):
        model = Attending()
        ctx = make_context(model, task=rows(4, 8))
        Quantize(exclude=exclude).apply(model, ctx)
        (fact,) = [fact for fact in ctx.facts if fact.name == "saturation"]
        assert fact.detail["not_simulated"] == ["attention"]
        assert (fact.value is not None) is simulated
        assert (fact.reason is None) is simulated
