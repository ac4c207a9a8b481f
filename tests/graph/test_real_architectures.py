"""What real architectures do that small networks do not, each in the smallest form."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overhaul.core import ModelError
from overhaul.graph import Graph, check_removal


class SideHead(nn.Module):
    """As GoogLeNet: a classifier that only training uses."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.side, self.head = nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        return (self.head(x), self.side(x)) if self.training else self.head(x)


def test_what_only_training_uses_is_pruned_with_the_rest() -> None:
    model, inputs = SideHead().eval(), (torch.rand(6, 4),)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    graph = Graph(model, inputs)
    assert not model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    check_removal(model, graph, {"stem.0": [1, 2]}, inputs)
    smaller: Any = graph.remove({"stem.0": [1, 2]}).apply(model).train()
    assert smaller.side.in_features == 6
    sum(out.sum() for out in smaller(*inputs)).backward()
    assert smaller.side.weight.grad is not None


def test_the_passes_of_training_are_not_counted() -> None:
    assert Graph(SideHead(), (torch.rand(6, 4),)).macs() == 6 * (4 * 8 + 8 * 3)


def test_what_training_wants_besides_its_inputs_stays_unwatched() -> None:
    class Wants(SideHead):
        def forward(self, x: Tensor, labels: Tensor | None = None) -> Any:
            if self.training and labels is None:
                raise ValueError("labels")
            return self.head(self.stem(x))

    assert [group.name for group in Graph(Wants(), (torch.rand(6, 4),)).groups] == ["stem.0"]


class Caching(nn.Module):
    """As LeViT: a table is worked out once, and forgotten when training begins."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 6), nn.Linear(6, 2)
        self.scale = nn.Parameter(torch.rand(6))
        self.cache: dict[str, Tensor] = {}

    def train(self, mode: bool = True) -> "Caching":
        if mode:
            self.cache.clear()
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        if "scale" not in self.cache:
            self.cache["scale"] = self.scale.exp()
        out: Tensor = self.last(self.first(x) * self.cache["scale"])
        return out


def test_a_cache_of_weights_is_forgotten() -> None:
    model, inputs = Caching().eval(), (torch.rand(3, 4),)
    smaller = Graph(model, inputs).remove({"first": [0]}).apply(model)
    assert not smaller.training
    assert smaller(*inputs).shape == (3, 2)


class StandardizedConv(nn.Conv2d):
    """As NFNet: each filter is standardized over the inputs that it has."""

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True).reshape_as(self.weight)
        return F.conv2d(x, weight, self.bias, padding=self.padding)


def test_a_standardized_weight_loses_inputs_and_outputs() -> None:
    model = nn.Sequential(
        StandardizedConv(3, 8, 3), nn.ReLU(), StandardizedConv(8, 6, 3), nn.Conv2d(6, 2, 1)
    )
    inputs = (torch.rand(2, 3, 8, 8),)
    graph = Graph(model, inputs)
    assert check_removal(model, graph, {"0": [0, 3], "2": [5]}, inputs) < 1e-12


class Attention(nn.Module):
    """As Swin: the width of a head is worked out from that of the input."""

    def __init__(self, *, own_width: bool) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(5, 12), nn.Linear(12, 2)
        self.num_heads, self.own_width = 3, own_width
        self.qkv, self.proj = nn.Linear(12, 36), nn.Linear(12, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        batch, tokens, width = x.shape
        qkv = self.qkv(x).reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)[:3].unbind(0)
        scores = (q * (width // self.num_heads) ** -0.5) @ k.transpose(-2, -1)
        mixed = (scores.softmax(-1) @ v).transpose(1, 2)
        mixed = mixed.reshape(batch, tokens, -1 if self.own_width else width)
        out: Tensor = self.head(x + self.proj(mixed))
        return out


@pytest.mark.parametrize("own_width", [True, False])
def test_a_width_that_heads_divide_goes_by_whole_heads(own_width: bool) -> None:
    model, inputs = Attention(own_width=own_width), (torch.rand(2, 4, 5),)
    graph = Graph(model, inputs)
    (group,) = graph.groups
    assert (group.units, group.kind) == (3, "heads")
    check_removal(model, graph, {group.name: [1]}, inputs)
    smaller: Any = graph.remove({group.name: [1]}).apply(model)
    assert (smaller.num_heads, smaller.embed.out_features) == (2, 8)


def test_a_quotient_that_is_a_number_has_to_stay() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 9), nn.Linear(9, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            out: Tensor = self.last(x * (x.shape[-1] // 2) ** -0.5)
            return out

    inputs = (torch.rand(2, 4),)
    graph = Graph(Scaled(), inputs)
    assert not graph.groups, "9 // 2 is that of 8, but not of 7"


def test_rounding_is_allowed_for_and_mistakes_are_not() -> None:
    class Chaotic(nn.Module):
        """Magnifies the last digit a thousand million times."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(4, 300), nn.Linear(300, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = torch.sin(self.last(self.first(x)) * 1e9)
            return out

    model, inputs = Chaotic(), (torch.rand(20, 4),)
    graph = Graph(model, inputs)
    assert 0 < check_removal(model, graph, {"first": list(range(1, 200))}, inputs) < 1e-4
    columns = graph.trace.state["last.weight"].dims[1]
    assert columns is not None
    graph.trace.state["last.weight"].dims[1] = columns[::-1]
    with pytest.raises(ModelError, match="would compute something else"):
        check_removal(model, graph, {"first": [0]}, inputs)
