"""Second derivatives are those of PyTorch's own layers; outputs and first ones are the same."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from overhaul.distillation._differentiable_twice import by_inputs_only, differentiable_twice
from tests.distillation.learning import random

Make = Callable[[], nn.Module]


class Stem(nn.Module):
    """A convolution, BatchNorm and ReLU with a shortcut, called by `torch.nn.functional`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = F.relu(self.bn(self.conv(x)))
        return F.relu(out + x)


class Dynamic(nn.Module):
    """A convolution and a BatchNorm whose weights are computed of the inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.kernel, self.vector = nn.Linear(3, 27), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        mean_C = x.mean((0, 2, 3))
        vector_C = self.vector(mean_C)
        out = F.conv2d(x, self.kernel(mean_C).view(3, 3, 3, 1), vector_C)
        return F.batch_norm(out, None, None, vector_C, vector_C.tanh(), training=True)


class Checkpointed(nn.Module):
    """A part whose activations are computed again in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.part = nn.Conv2d(3, 3, 3, padding=1), Stem()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = checkpoint(self.part, self.first(x), use_reentrant=False)
        return out


IMAGES = (4, 3, 6, 6)
NETWORKS: dict[str, tuple[Make, tuple[int, ...]]] = {
    "shortcut": (Stem, IMAGES),
    "stride and dilation": (
        lambda: nn.Conv2d(3, 4, 3, stride=2, padding=(1, 2), dilation=(1, 2)),
        IMAGES,
    ),
    "groups": (lambda: nn.Conv2d(3, 6, 3, groups=3), IMAGES),
    "padding by name": (lambda: nn.Conv2d(3, 4, 3, padding="same"), IMAGES),
    "circular": (lambda: nn.Conv2d(3, 4, 3, padding=1, padding_mode="circular"), IMAGES),
    "conv1d": (lambda: nn.Sequential(nn.Conv1d(3, 4, 3), nn.BatchNorm1d(4)), (4, 3, 7)),
    "conv3d": (lambda: nn.Sequential(nn.Conv3d(3, 4, 2), nn.BatchNorm3d(4)), (4, 3, 3, 3, 3)),
    "norm of vectors": (lambda: nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4)), (6, 5)),
    "norm without weights": (lambda: nn.BatchNorm2d(3, affine=False), IMAGES),
    "norm without running statistics": (
        lambda: nn.BatchNorm2d(3, track_running_stats=False),
        IMAGES,
    ),
    "cumulative norm, large eps": (lambda: nn.BatchNorm2d(3, eps=0.5, momentum=None), IMAGES),
    "norm in evaluation": (lambda: nn.BatchNorm2d(3).eval(), IMAGES),
    "weights computed of the inputs": (Dynamic, IMAGES),
    "checkpoint": (Checkpointed, IMAGES),
    "in place": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        IMAGES,
    ),
}


def input_of(*shape: int, seed: int = 0) -> Tensor:
    return random(*shape, seed=seed).double()


def derivatives(
    network: nn.Module, x: Tensor, way: AbstractContextManager[Any], *, inputs_only: bool = True
) -> dict[str, Tensor]:
    """Return outputs, gradient, and the derivatives of a loss of both, by name."""
    x = x.detach().requires_grad_()
    with way:
        out = network(x)
    direction = input_of(*out.shape, seed=1).to(out.dtype)
    with by_inputs_only() if inputs_only else nullcontext():
        (gradient,) = torch.autograd.grad(out, x, direction, create_graph=True)
    direction = input_of(*x.shape, seed=2).to(x.dtype)
    loss = (gradient * direction).sum() + gradient.pow(3).sum() + out.pow(2).sum()
    named = dict(network.named_parameters()) | {"x": x}
    found = torch.autograd.grad(loss, list(named.values()))
    return {"out": out, "gradient": gradient, **dict(zip(named, found, strict=True))} | {
        name: buffer.double() for name, buffer in network.named_buffers()
    }


def make_network(make: Make) -> nn.Module:
    torch.manual_seed(0)
    network = make().double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize(("make", "shape"), NETWORKS.values(), ids=NETWORKS)
@pytest.mark.parametrize("inputs_only", [True, False])
def test_derivatives_are_those_of_autograd(
    make: Make, shape: tuple[int, ...], inputs_only: bool
) -> None:
    network, x = make_network(make), input_of(*shape)
    own = derivatives(deepcopy(network), x, differentiable_twice(), inputs_only=inputs_only)
    wanted = derivatives(deepcopy(network), x, nullcontext())
    assert own.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(own[name], tensor, rtol=1e-9, atol=1e-9, msg=name)


def test_a_norm_whose_weights_are_zero_has_their_derivatives_too() -> None:
    network, x = nn.BatchNorm2d(3).double(), input_of(*IMAGES)
    nn.init.zeros_(network.weight)
    own = derivatives(deepcopy(network), x, differentiable_twice())
    wanted = derivatives(deepcopy(network), x, nullcontext())
    assert float(wanted["weight"].abs().max()) > 0.1
    torch.testing.assert_close(own["weight"], wanted["weight"], rtol=1e-9, atol=1e-9)


def test_images_channels_last_stay_so() -> None:
    network = make_network(Stem).to(memory_format=torch.channels_last)
    x = input_of(*IMAGES).contiguous(memory_format=torch.channels_last)
    own, wanted = (derivatives(network, x, way) for way in (differentiable_twice(), nullcontext()))
    assert own["gradient"].is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(own["conv.weight"], wanted["conv.weight"], rtol=1e-9, atol=1e-9)


def test_only_what_is_asked_for_is_computed() -> None:
    network, x = make_network(Stem), input_of(*IMAGES).requires_grad_()
    with differentiable_twice():
        out = network(x)

    def conv_backward_asks(allowed: AbstractContextManager[None]) -> int:
        with torch.profiler.profile() as profile, allowed:
            torch.autograd.grad(out.sum(), x, create_graph=True)
        return sum(
            each.count
            for each in profile.key_averages()
            if each.key == "aten::convolution_backward"
        )

    assert conv_backward_asks(by_inputs_only()) == 1
    assert conv_backward_asks(nullcontext()) == 2


def test_gradients_by_weights_can_be_differentiated_too() -> None:
    network, x = make_network(Stem), input_of(*IMAGES).requires_grad_()
    found = []
    for way in (differentiable_twice(), nullcontext()):
        with way:
            out = network(x)
        weights = list(network.parameters())
        first = torch.autograd.grad(out.pow(3).sum(), weights, create_graph=True)
        loss = torch.stack([each.pow(2).sum() for each in first]).sum()
        found.append(torch.autograd.grad(loss, [x, *weights]))
    for own, wanted in zip(*found, strict=True):
        torch.testing.assert_close(own, wanted, rtol=1e-9, atol=1e-9)


def test_a_single_value_for_each_channel_is_refused_as_ever() -> None:
    with differentiable_twice(), pytest.raises(ValueError, match=r"more than 1 value per channel"):
        nn.BatchNorm1d(3)(torch.ones(1, 3, requires_grad=True))


def test_under_autocast_they_are_as_exact_as_pytorchs_own() -> None:
    network, x = make_network(Stem).float(), input_of(16, 3, 12, 12).float()

    def found(way: AbstractContextManager[Any], *, half: bool) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            return derivatives(deepcopy(network), x, way)

    exact = found(nullcontext(), half=False)
    own, plain = (found(way, half=True) for way in (differentiable_twice(), nullcontext()))
    assert torch.equal(own["out"], plain["out"])
    assert torch.equal(own["gradient"], plain["gradient"])
    for name in ("conv.weight", "bn.weight", "bn.bias"):
        error, allowed = (float((each[name] - exact[name]).norm()) for each in (own, plain))
        assert 0 < error < 1.5 * allowed


def test_third_derivatives_of_a_norm_are_refused_and_not_wrong() -> None:
    x = input_of(6, 3).requires_grad_()
    with differentiable_twice():
        out = nn.BatchNorm1d(3).double()(x)
    (first,) = torch.autograd.grad(out.pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.pow(2).sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"differentiate twice"):
        second.sum().backward()
