"""Small networks, each with one thing on which structured pruning is known to go wrong.

For every one, what can be removed is written down: a refusal where removal is possible fails, and
so does a smaller model that computes something else. What is refused is refused before any change,
and the reason names the line of this file.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from overhaul.graph import Graph, check_removal

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")


class Net(nn.Module):
    """An image network: two convolutions around what is tested, and a classifier."""

    def __init__(self, middle: int = 8, last: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, middle, 3, padding=1)
        self.second = nn.Conv2d(last, 6, 3, padding=1)
        self.head = nn.Linear(6, 4)

    def middle(self, x: Tensor) -> Tensor:
        return x

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(F.relu(self.first(x)))
        x = F.relu(self.second(x)).mean(dim=(2, 3))
        out: Tensor = self.head(x)
        return out


class NhwcFlatten(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)).permute(0, 2, 3, 1)
        out: Tensor = self.fc(torch.flatten(x, 1))
        return out


class Flip(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x + x.flip(1)


class Roll(Net):
    def middle(self, x: Tensor) -> Tensor:
        return torch.roll(x, 3, dims=1)


class HalfRoll(Net):
    def middle(self, x: Tensor) -> Tensor:
        return torch.roll(x, x.shape[1] // 2, dims=1)


class UnevenSplit(Net):
    def __init__(self) -> None:
        super().__init__(middle=9, last=9)
        self.sizes = [2, 3, 4]
        self.scale = nn.Parameter(torch.ones(3, 1, 1))

    def middle(self, x: Tensor) -> Tensor:
        a, b, c = torch.split(x, self.sizes, dim=1)
        return torch.cat([c, b * self.scale, a], dim=1)


class WrittenSplit(Net):
    def __init__(self) -> None:
        super().__init__(middle=9, last=7)

    def middle(self, x: Tensor) -> Tensor:
        _, b, c = torch.split(x, [2, 3, 4], dim=1)
        return torch.cat([c, b], dim=1)


class Chunk(Net):
    def __init__(self) -> None:
        super().__init__(middle=8, last=4)

    def middle(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, dim=1)
        return a - b


class Slice(Net):
    def __init__(self) -> None:
        super().__init__(middle=8, last=5)
        self.kept = 5

    def middle(self, x: Tensor) -> Tensor:
        return x[:, : self.kept]


class WrittenSlice(Net):
    def __init__(self) -> None:
        super().__init__(middle=8, last=5)

    def middle(self, x: Tensor) -> Tensor:
        return x[:, 3:]


class StridedSlice(Net):
    def __init__(self) -> None:
        super().__init__(middle=8, last=4)

    def middle(self, x: Tensor) -> Tensor:
        return x[:, ::2]


class ChannelShuffle(Net):
    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class ShuffleLayer(Net):
    def __init__(self) -> None:
        super().__init__()
        self.shuffle = nn.ChannelShuffle(2)

    def middle(self, x: Tensor) -> Tensor:
        out: Tensor = self.shuffle(x)
        return out


class IndexSelect(Net):
    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor([3, 1, 0, 7, 6, 2, 5, 4]))

    def middle(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.order)


class Gather(Net):
    """A gather goes through a whole table of positions, whose values are not followed."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        order = torch.tensor([3, 1, 0, 7, 6, 2, 5, 4])
        self.register_buffer("order", order.view(1, 8, 1, 1).expand(2, 8, 6, 6).clone())

    def middle(self, x: Tensor) -> Tensor:
        return x.gather(1, self.order)


class PixelShuffle(Net):
    def __init__(self) -> None:
        super().__init__(middle=8, last=2)

    def middle(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(x, 2)


class PixelUnshuffle(Net):
    def __init__(self) -> None:
        super().__init__(middle=4, last=16)

    def middle(self, x: Tensor) -> Tensor:
        return F.pixel_unshuffle(x, 2)


class Repeat(Net):
    def __init__(self) -> None:
        super().__init__(middle=4, last=8)

    def middle(self, x: Tensor) -> Tensor:
        return x.repeat(1, 2, 1, 1)


class RepeatInterleave(Net):
    def __init__(self) -> None:
        super().__init__(middle=4, last=8)

    def middle(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=1)


class Maxout(Net):
    def __init__(self) -> None:
        super().__init__(middle=12, last=4)

    def middle(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.reshape(n, c // 3, 3, h, w).max(dim=2).values


class Grouped(Net):
    def __init__(self) -> None:
        super().__init__()
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=4)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.grouped(x))


class Depthwise(Net):
    def __init__(self) -> None:
        super().__init__(middle=8, last=16)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.norm = nn.BatchNorm2d(16)

    def middle(self, x: Tensor) -> Tensor:
        return F.relu(self.norm(self.depthwise(x)))


class PaddedShortcut(nn.Module):
    """Option A of ResNet: the shortcut skips places and pads channels with zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.one = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.two = nn.Conv2d(8, 8, 3, padding=1)
        self.planes = 8
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.two(F.relu(self.norm(self.one(x))))
        more = self.planes // 4
        x = F.relu(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, more, more)))
        out: Tensor = self.head(x.mean(dim=(2, 3)))
        return out


class Einsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.mix = nn.Parameter(torch.randn(8, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.einsum("bc,cd->bd", self.first(x).tanh(), self.mix))
        return out


class FunctionalWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 4))
        self.b = nn.Parameter(torch.randn(8))
        self.v = nn.Parameter(torch.randn(3, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(x, self.w, self.b).relu(), self.v)


class SqueezeExcite(Net):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(8, 3, 1)
        self.up = nn.Conv2d(3, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        gate = self.up(F.relu(self.down(x.mean((2, 3), keepdim=True))))
        return x * torch.sigmoid(gate)


class Glu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Linear(4, 12)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(F.glu(self.both(x), dim=-1))
        return out


class SwiGlu(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(4, 6)
        self.gate = nn.Linear(6, 10, bias=False)
        self.up = nn.Linear(6, 10, bias=False)
        self.down = nn.Linear(10, 6, bias=False)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        x = x + self.down(F.silu(self.gate(x)) * self.up(x))
        out: Tensor = self.head(x)
        return out


class CalledTwice(Net):
    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Conv2d(8, 8, 1)

    def middle(self, x: Tensor) -> Tensor:
        out: Tensor = self.shared(F.relu(self.shared(x)))
        return out


class TiedEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.inner = nn.Linear(8, 8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(F.gelu(self.inner(self.tokens(x))))
        return out


class Embedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8)
        self.places = nn.Embedding(6, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[1], device=x.device)
        out: Tensor = self.head((self.tokens(x) + self.places(places)).mean(1))
        return out


class Recurrent(nn.Module):
    def __init__(self, layer: nn.Module, width: int) -> None:
        super().__init__()
        self.first = nn.Linear(4, 5)
        self.layer = layer
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(F.relu(self.first(x)))[0][:, -1])
        return out


def gru() -> nn.Module:
    return Recurrent(nn.GRU(5, 6, batch_first=True), 6)


def deep_lstm() -> nn.Module:
    return Recurrent(nn.LSTM(5, 6, 2, batch_first=True, bidirectional=True, proj_size=3), 6)


def deep_rnn() -> nn.Module:
    return Recurrent(nn.RNN(5, 6, 2, batch_first=True, bidirectional=True), 12)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.attention = nn.MultiheadAttention(8, 4, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        out: Tensor = self.head(x.mean(1))
        return out


class PackedAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.width = 4, 3
        self.first = nn.Linear(4, 8)
        self.qkv = nn.Linear(8, 3 * 12)
        self.out = nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        b, t, _ = x.shape
        q, k, v = self.qkv(x).view(b, t, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
        y = F.scaled_dot_product_attention(q, k, v)
        x = x + self.out(y.transpose(1, 2).reshape(b, t, -1))
        out: Tensor = self.head(x.mean(1))
        return out


class GroupedQuery(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.heads, self.shared, self.width = 4, 2, 3
        self.first = nn.Linear(4, 8)
        self.q = nn.Linear(8, 12)
        self.k = nn.Linear(8, 6)
        self.v = nn.Linear(8, 6)
        self.out = nn.Linear(12, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        b, t, _ = x.shape
        q = self.q(x).view(b, t, self.heads, self.width).transpose(1, 2)
        k = self.k(x).view(b, t, self.shared, self.width).transpose(1, 2)
        v = self.v(x).view(b, t, self.shared, self.width).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        x = x + self.out(y.transpose(1, 2).flatten(2))
        out: Tensor = self.head(x.mean(1))
        return out


class PositionBias(nn.Module):
    """Attention with a table of relative positions, as in Swin: a column for each head."""

    index: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.heads = 4
        self.first = nn.Linear(4, 8)
        self.qkv = nn.Linear(8, 24)
        self.out = nn.Linear(8, 8)
        self.table = nn.Parameter(torch.randn(11, 4))
        places = torch.arange(6)
        self.register_buffer("index", (places[:, None] - places[None, :] + 5).flatten())
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        b, t, _ = x.shape
        qkv = self.qkv(x).reshape(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        bias = self.table[self.index].view(t, t, -1).permute(2, 0, 1)
        scores = (q @ k.transpose(-2, -1)) * 0.7 + bias.unsqueeze(0)
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(b, t, -1)
        out: Tensor = self.head((x + self.out(y)).mean(1))
        return out


class Parametrized(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = parametrizations.weight_norm(nn.Linear(4, 8))
        self.two = parametrizations.weight_norm(nn.Linear(8, 6))
        self.three = parametrizations.spectral_norm(nn.Linear(6, 6))
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.three(F.relu(self.two(F.relu(self.one(x))))))
        out: Tensor = self.head(x)
        return out


class LayerScale(Net):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(8, 8, 1)
        self.gamma = nn.Parameter(torch.full((8, 1, 1), 0.1))

    def middle(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.gamma * self.inner(x)
        return out


class ClassToken(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 3, stride=3)
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.places = nn.Parameter(torch.randn(1, 5, 8))
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1) + self.places
        out: Tensor = self.head(self.norm(x)[:, 0])
        return out


class Transposed(Net):
    def __init__(self) -> None:
        super().__init__(middle=8, last=6)
        self.up = nn.ConvTranspose2d(8, 12, 2, stride=2, groups=2)
        self.more = nn.ConvTranspose2d(12, 6, 3)

    def middle(self, x: Tensor) -> Tensor:
        out: Tensor = self.more(F.relu(self.up(x)))
        return out


class Norms(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 8, 1)
        self.group = nn.GroupNorm(4, 8)
        self.two = nn.Conv2d(8, 6, 1)
        self.instance = nn.InstanceNorm2d(6, affine=True, track_running_stats=True)
        self.three = nn.Conv2d(6, 7, 1)
        self.layer = nn.LayerNorm(7)
        self.four = nn.Linear(7, 5)
        self.rms = nn.RMSNorm(5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.group(self.one(x)))
        x = F.relu(self.instance(self.two(x)))
        x = self.layer(self.three(x).permute(0, 2, 3, 1)).mean((1, 2))
        out: Tensor = self.head(self.rms(self.four(x)))
        return out


class Dense(Net):
    def __init__(self) -> None:
        super().__init__(middle=4, last=10)
        self.a = nn.Conv2d(4, 3, 1)
        self.b = nn.Conv2d(7, 3, 1)

    def middle(self, x: Tensor) -> Tensor:
        x = torch.cat([x, F.relu(self.a(x))], 1)
        return torch.cat([x, F.relu(self.b(x))], 1)


class WrittenView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.fc = nn.Linear(8 * 36, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(F.relu(self.conv(x)).view(-1, 8 * 36))
        return out


class KeptView(nn.Module):
    """The number is an attribute: it changes with what is removed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.flat = 8 * 36
        self.fc = nn.Linear(self.flat, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(F.relu(self.conv(x)).view(-1, self.flat))
        return out


with warnings.catch_warnings():
    warnings.simplefilter("ignore")

    @torch.jit.script
    def compiled(x: Tensor) -> Tensor:
        return x.flip(1) + 1


class Compiled(Net):
    def middle(self, x: Tensor) -> Tensor:
        out: Tensor = compiled(x)
        return out


class _Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.flip(1) * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.flip(1) * 2


class OwnFunction(Net):
    def middle(self, x: Tensor) -> Tensor:
        out: Tensor = _Double.apply(x)
        return out


class SizeAsNumber(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x / x.size(1)


class Sorted(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x.sort(1).values


class OneOfTwo(Net):
    """A part of a single channel: were it gone, the other part would be the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [7, 1]

    def middle(self, x: Tensor) -> Tensor:
        a, b = x.split(self.sizes, dim=1)
        return torch.cat([b.sigmoid(), a], dim=1)


class FromTheEnd(Net):
    """`x[:, -0:]` would be everything, `x[:, :-0]` nothing."""

    def __init__(self) -> None:
        super().__init__(middle=8, last=4)
        self.kept, self.left_out = 6, 2

    def middle(self, x: Tensor) -> Tensor:
        return x[:, -self.kept :][:, : -self.left_out]


class RolledBack(Net):
    """The number of channels that go round is an attribute with its sign changed."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = 2

    def middle(self, x: Tensor) -> Tensor:
        return torch.roll(x, -self.shift, dims=1)


class Squeezed(nn.Module):
    """With one channel left, there would be a dimension less."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 6)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.conv(x).squeeze())
        return out


class ExpandedView(nn.Module):
    """With one channel left, the reshape makes no copy, and the view fails."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.head = nn.Linear(4 * 2 * 36, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)[:, None].expand(-1, 2, -1, -1, -1)
        x = x.reshape(x.shape[0], -1, 6, 6)
        out: Tensor = self.head(x.view(x.shape[0], -1))
        return out


class Spread(nn.Module):
    """The deviation of a single place is not a number."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(5, 4))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores = (self.queries @ x.transpose(1, 2)).softmax(-1)
        out: Tensor = self.head((scores @ x).std(1))
        return out


class HandWrittenNorm(Net):
    """A variance of zero would prove nothing: 0 / 0."""

    mean: Tensor
    var: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(8))
        self.register_buffer("var", torch.ones(8))
        self.gain = nn.Parameter(torch.ones(8))

    def middle(self, x: Tensor) -> Tensor:
        shape = (1, -1, 1, 1)
        scale = self.gain.view(shape) / self.var.view(shape).sqrt()
        return (x - self.mean.view(shape)) * scale


class OneHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 8)
        self.attention = nn.MultiheadAttention(8, 1, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out: Tensor = self.head(x + self.attention(x, x, x)[0])
        return out


IMAGE = (torch.rand(2, 3, 6, 6),)
VECTOR = (torch.rand(3, 4),)
SEQUENCE = (torch.rand(2, 6, 4),)
WORDS = (torch.randint(0, 11, (2, 6)),)


class NoiseInTraining(Net):
    def middle(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(8, 1, 1) if self.training else x


class AverageOfWeights(Net):
    def __init__(self) -> None:
        super().__init__()
        self.average: Tensor
        self.register_buffer("average", torch.ones(8, 3, 3, 3))

    def middle(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.average.lerp_(self.first.weight, 0.1)
        return x


class Mapped(Net):
    def middle(self, x: Tensor) -> Tensor:
        out: Tensor = torch.vmap(torch.tanh)(x)
        return out


class MappedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.vmap(lambda row: self.second(F.relu(self.first(row))))(x)
        return out


class Conditional(Net):
    def middle(self, x: Tensor) -> Tensor:
        out: Tensor = torch.cond(x.sum() > 0, torch.tanh, torch.sigmoid, (x,))
        return out


@dataclass(frozen=True)
class Case:
    """A network, what of it can be removed, and words of the reasons for what cannot."""

    make: Callable[[], nn.Module]
    inputs: tuple[Tensor, ...]
    groups: dict[str, int]
    refuses: tuple[str, ...] = field(default=())


NUMBER = ("written as the number",)
AROUND = {"second": 6}
CASES = [
    Case(Net, IMAGE, {"first": 8, **AROUND}),
    Case(NhwcFlatten, IMAGE, {"conv": 8}),
    Case(Flip, IMAGE, {"first": 4, **AROUND}),
    Case(Roll, IMAGE, {"first": 5, **AROUND}),
    Case(HalfRoll, IMAGE, {"first": 4, **AROUND}),
    Case(UnevenSplit, IMAGE, {"first": 3, "first#2": 4, **AROUND}, ("nothing would be left",)),
    Case(WrittenSplit, IMAGE, AROUND, NUMBER),
    Case(Chunk, IMAGE, {"first": 4, **AROUND}),
    Case(Slice, IMAGE, {"first": 5, "first#2": 3, **AROUND}),
    Case(WrittenSlice, IMAGE, {"first": 5, **AROUND}),
    Case(StridedSlice, IMAGE, {"first": 4, **AROUND}),
    Case(ChannelShuffle, IMAGE, {"first": 4, **AROUND}),
    Case(ShuffleLayer, IMAGE, {"first": 4, **AROUND}),
    Case(IndexSelect, IMAGE, {"first": 8, **AROUND}),
    Case(Gather, IMAGE, {"first": 8, **AROUND}),
    Case(PixelShuffle, IMAGE, {"first": 2, **AROUND}),
    Case(PixelUnshuffle, IMAGE, {"first": 4, **AROUND}),
    Case(Repeat, IMAGE, {"first": 4, **AROUND}),
    Case(RepeatInterleave, IMAGE, {"first": 4, **AROUND}),
    Case(Maxout, IMAGE, {"first": 4, **AROUND}),
    Case(Grouped, IMAGE, {"first": 4, **AROUND}),
    Case(Depthwise, IMAGE, {"first": 8, **AROUND}),
    Case(PaddedShortcut, IMAGE, {"stem": 4, "one": 8, "two": 2}),
    Case(Einsum, VECTOR, {"first": 8, "mix": 6}),
    Case(FunctionalWeight, SEQUENCE, {"w": 8}),
    Case(SqueezeExcite, IMAGE, {"first": 8, "down": 3, **AROUND}),
    Case(Glu, SEQUENCE, {"both": 6}),
    Case(SwiGlu, SEQUENCE, {"inner": 6, "gate": 10}),
    Case(CalledTwice, IMAGE, {"first": 8, **AROUND}),
    Case(TiedEmbedding, WORDS, {"inner": 8}),
    Case(Embedding, WORDS, {"tokens": 8}),
    Case(gru, SEQUENCE, {"first": 5, "layer": 6}),
    Case(deep_lstm, SEQUENCE, {"first": 5, "layer": 3, "layer#2": 3}, ("has to stay smaller",)),
    Case(deep_rnn, SEQUENCE, {"first": 5, "layer": 6}),
    Case(Attention, SEQUENCE, {"first": 8, "attention": 4}),
    Case(PackedAttention, SEQUENCE, {"first": 8, "qkv": 4}),
    Case(GroupedQuery, SEQUENCE, {"first": 8, "q": 2}),
    Case(PositionBias, SEQUENCE, {"first": 8, "qkv": 4}),
    Case(Parametrized, SEQUENCE, {"one": 8, "two": 6, "three": 6}),
    Case(LayerScale, IMAGE, {"first": 8, **AROUND}),
    Case(ClassToken, IMAGE, {"patch": 8}),
    Case(Transposed, IMAGE, {"first": 4, "more": 6, "up": 6, **AROUND}),
    Case(Norms, IMAGE, {"one": 4, "two": 6, "three": 7, "four": 5}),
    Case(Dense, IMAGE, {"first": 4, "a": 3, "b": 3, **AROUND}),
    Case(WrittenView, IMAGE, {}, NUMBER),
    Case(KeptView, IMAGE, {"conv": 8}),
    Case(Compiled, IMAGE, AROUND, ("compiled code that cannot be seen into",)),
    Case(OwnFunction, IMAGE, {"first": 8, **AROUND}),
    Case(SizeAsNumber, IMAGE, AROUND, ("enters the computation as a number",)),
    Case(Sorted, IMAGE, AROUND, ("`sort` is not known",)),
    Case(OneOfTwo, IMAGE, {"first": 7, **AROUND}, ("the only position",)),
    Case(FromTheEnd, IMAGE, {"first": 3, "first#2": 4, **AROUND}, ("would become zero",)),
    Case(RolledBack, IMAGE, {"first": 7, **AROUND}, ("would become zero",)),
    Case(Squeezed, IMAGE, {"conv": 4}, ("squeezed away",)),
    Case(ExpandedView, IMAGE, {"conv": 3}, ("is a copy only where",)),
    Case(Spread, SEQUENCE, {"queries": 4}, ("single position",)),
    Case(HandWrittenNorm, IMAGE, {"first": 8, **AROUND}),
    Case(OneHead, SEQUENCE, {"first": 8}),
    Case(NoiseInTraining, IMAGE, {"second": 6}, ("computed together with something of fixed",)),
    Case(AverageOfWeights, IMAGE, {"first": 8, "second": 6}),
    Case(Mapped, IMAGE, {"second": 6}, ("is inside torch.vmap",)),
    Case(MappedLayer, SEQUENCE, {}, ("is inside torch.vmap",)),
]


def built(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return case.make()


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.make.__name__)
def test_what_can_be_removed_is_found_and_what_cannot_is_refused_by_its_line(case: Case) -> None:
    graph = Graph(built(case), case.inputs)
    assert {group.name: group.units for group in graph.groups} == case.groups
    reasons = [str(each) for each in graph.unprunable]
    for words in case.refuses:
        (found, *_) = [reason for reason in reasons if words in reason]
        assert "test_small_networks.py" in found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.make.__name__)
def test_every_removal_is_right_and_the_smaller_network_trains(case: Case) -> None:
    model = built(case)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    attributes = [repr(module) for module in model.modules()]
    graph = Graph(model, case.inputs)
    halves = {group.name: list(range(0, group.units - 1, 2)) for group in graph.groups}
    plans: list[dict[str, list[int]]] = [{name: chosen} for name, chosen in halves.items()]
    plans += [{group.name: [group.units - 1]} for group in graph.groups]
    plans += [halves] if len(halves) > 1 else []
    for units in plans:
        assert check_removal(model, graph, units, case.inputs) < 1e-8
        edit = graph.remove(units)
        smaller = edit.apply(built(case))
        smaller(*case.inputs).square().mean().backward()
        again = edit.apply(built(case))
        again.load_state_dict(smaller.state_dict())
        with torch.no_grad():
            assert torch.equal(again.eval()(*case.inputs), smaller.eval()(*case.inputs))
        assert sum(p.numel() for p in smaller.parameters()) < sum(
            p.numel() for p in model.parameters()
        )
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [repr(module) for module in model.modules()] == attributes
    assert model.training


def test_a_conditional_that_is_compiled_fixes_what_goes_into_it() -> None:
    torch.manual_seed(0)
    graph = Graph(Conditional(), IMAGE)
    assert [group.name for group in graph.groups] == ["second"]
    assert any("`cond` is not known" in str(each) for each in graph.unprunable)
