"""Sums that saturate: the simulation against a loop over single products."""

import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from overhaul.core import Context, evaluating
from overhaul.quantization import Quantize
from overhaul.quantization._saturating import saturating
from overhaul.quantization._saturation import conv_excess, linear_excess
from overhaul.tasks import Classification

MakeContext = Callable[..., Context]


def saturated_dot(x: list[int], w: list[int]) -> int:
    """Add products as `vpmaddubsw` does, one pair after the other."""
    total = 0
    for i in range(0, len(x), 2):
        pair = x[i] * w[i] + (x[i + 1] * w[i + 1] if i + 1 < len(x) else 0)
        total += max(-32768, min(32767, pair))
    return total


def random_integers(seed: int, *shape: int, low: int, high: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randint(low, high + 1, shape, generator=generator)
    extremes = torch.where(torch.rand(shape, generator=generator) < 0.5, low, high)
    return torch.where(torch.rand(shape, generator=generator) < 0.5, extremes, mixed)


@given(st.integers(1, 9), st.integers(1, 4), st.integers(0, 10**6))
def test_a_linear_layer_equals_a_loop(inputs: int, outputs: int, seed: int) -> None:
    x = random_integers(seed, 3, inputs, low=0, high=255)
    w = random_integers(seed + 1, outputs, inputs, low=-127, high=127)
    loop = torch.tensor([[saturated_dot(a, b) for b in w.tolist()] for a in x.tolist()])
    assert torch.equal(x @ w.mT - linear_excess(x.byte(), w.char()), loop)


@given(
    st.sampled_from([(1, 1), (2, 1), (3, 1), (4, 2), (3, 3)]),
    st.integers(1, 3),
    st.integers(1, 2),
    st.integers(1, 2),
    st.integers(0, 10**6),
)
def test_a_convolution_equals_a_loop(
    channels: tuple[int, int], kernel: int, stride: int, dilation: int, seed: int
) -> None:
    inputs, groups = channels
    each, outputs = inputs // groups, 2 * groups
    x = random_integers(seed, 2, inputs, 6, 5, low=0, high=255)
    w = random_integers(seed + 1, outputs, each, kernel, 2, low=-127, high=127)
    exact = F.conv2d(x.double(), w.double(), None, stride, 0, dilation, groups)
    loop = torch.zeros_like(exact)
    for n, o, i, j in torch.cartesian_prod(*(torch.arange(size) for size in exact.shape)).tolist():
        first = o // 2 * each
        for a in range(kernel):
            for b in range(2):
                row, column = i * stride + a * dilation, j * stride + b * dilation
                values = x[n, first : first + each, row, column].tolist()
                loop[n, o, i, j] += saturated_dot(values, w[o, :, a, b].tolist())
    sizes = {"stride": (stride, stride), "dilation": (dilation, dilation)}
    assert torch.equal(exact - conv_excess(x, w, **sizes, groups=groups), loop)


def test_the_largest_pair_saturates_and_half_the_range_does_not() -> None:
    x = torch.full((1, 4), 255)
    assert linear_excess(x, torch.full((1, 4), 127)).item() == 2 * (2 * 255 * 127 - 32767)
    assert linear_excess(x, torch.full((1, 4), -127)).item() == -2 * (2 * 255 * 127 - 32768)
    assert linear_excess(x, torch.full((1, 4), 63)).item() == 0


def test_a_convolution_of_one_channel_a_group_never_saturates() -> None:
    x, w = torch.full((1, 3, 5, 5), 255), torch.full((3, 1, 3, 3), 127)
    assert not conv_excess(x, w, stride=(1, 1), dilation=(1, 1), groups=3).any()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="these are x86 kernels")
def test_the_kernels_of_onednn_for_avx2_saturate_just_so() -> None:
    script = Path(__file__).with_name("kernels_without_vnni.py")
    done = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert [name for name, same in found.items() if not same["simulated"]] == []
    assert [name for name, same in found.items() if same["exact"]] == ["conv 16 3 16"]


class Net(nn.Module):
    """Layers that read each other's integers, at borders and in one dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, stride=2)
        self.act = nn.ReLU()
        self.mix = nn.Conv2d(4, 4, 3, padding="same", padding_mode="reflect")
        self.line = nn.Conv1d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4 * 16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.conv(x))
        x = self.mix(x).flatten(2)
        out: Tensor = self.fc(self.line(x).flatten(1))
        return out


def task() -> Classification:
    x = torch.rand(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    y = torch.arange(64) % 3
    return Classification(train=(x, y))


def quantized_net(make_context: MakeContext, step: Quantize, gain: float) -> tuple[Context, Net]:
    net = Net().eval()
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(gain + 0.01 * parameter if gain else parameter)
    ctx = make_context(net, task=task())
    made = step.apply(net, ctx)
    assert isinstance(made, Net)
    return ctx, made


def test_a_model_of_large_weights_loses_and_what_it_loses_is_that_of_a_loop(
    make_context: MakeContext,
) -> None:
    _, net = quantized_net(make_context, Quantize(batches=1), gain=0.1)
    x = torch.rand(2, 1, 8, 8)
    inputs: list[Tensor] = []
    hook = net.fc.register_forward_pre_hook(lambda module, args: inputs.append(args[0]))
    with evaluating(net):
        exact = net(x)
        with saturating(net) as found:
            lost = net(x)
    hook.remove()
    assert set(found.numbers) == {"conv", "mix", "line", "fc"}
    assert found.lost["conv"] == 0  # one input channel
    assert all(found.lost[path] > 0 for path in ("mix", "line", "fc"))
    assert float((exact - lost).abs().min()) > 0
    scale, zero = net.fc.get_buffer("input_scale"), net.fc.get_buffer("input_zero_point")
    q = ((inputs[-1] / scale).round() + zero).clamp(0, 255).int()
    w, steps = net.fc.get_buffer("weight_q"), net.fc.get_buffer("weight_scale")
    sums = torch.tensor([[saturated_dot(a, b) for b in w.tolist()] for a in q.tolist()])
    real = (sums - int(zero) * w.int().sum(1)) * scale * steps + net.fc.bias
    assert torch.allclose(real, lost, rtol=1e-4, atol=1e-4)


def test_seven_bits_lose_nothing(make_context: MakeContext) -> None:
    ctx, net = quantized_net(make_context, Quantize(batches=1, reduce_range=True), gain=0.1)
    with evaluating(net), saturating(net) as found:
        net(torch.rand(4, 1, 8, 8))
    assert found.part == 0
    assert set(found.lost.values()) == {0.0}
    (fact,) = [fact for fact in ctx.facts if fact.name == "saturation"]
    assert (fact.value, fact.detail["worst"]) == (0.0, {})


class Opposed(nn.Module):
    """Which of two sums is larger; neighbouring weights of the first one saturate."""

    def __init__(self, *, neighbours: bool) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 2, bias=False)
        first = [1.0, 1, 0, 0] if neighbours else [1.0, 0, 1, 0]
        with torch.no_grad():
            self.fc.weight.copy_(
                torch.tensor([[*first, 0, 0, 0, 0], [0, 0, 0, 0, 0.75, 0, 0.75, 0]])
            )

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(x)
        return out


@pytest.mark.parametrize(("saturates", "bits"), [(True, 7), (False, 8)])
def test_auto_takes_seven_bits_where_the_simulated_drop_is_larger(
    saturates: bool, bits: int, make_context: MakeContext
) -> None:
    model = Opposed(neighbours=saturates)
    labels = torch.arange(80) % 2
    x = 1 - 0.03 * torch.rand(80, 8)
    x[labels == 1, :4] *= 0.3  # sums of 0.6 against 1.5, else of 2 against 1.5
    ctx = make_context(model, task=Classification(train=(x, labels)))
    found = Quantize(reduce_range="auto", batches=1).apply(model, ctx)
    facts = {fact.name: fact for fact in ctx.facts}
    assert facts["reduce_range"].value is saturates
    assert int(found.get_buffer("fc.weight_q").abs().max()) == 2 ** (bits - 1) - 1
    drop = facts["saturation_drop"].value
    assert isinstance(drop, float)
    assert (drop > 0.2) is saturates
