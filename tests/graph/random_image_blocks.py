"""Blocks that take images."""

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from tests.graph.random_blocks import Block, Draw, Shape, activation, all_blocks, width


class _Image(Block):
    takes = "image"


def norm(draw: Draw, channels: int) -> nn.Module:
    """Return a normalization of images."""
    groups = draw.choice([g for g in (1, 2, 3, 4) if channels % g == 0 and channels > g])
    kinds: list[Any] = [
        lambda: nn.BatchNorm2d(channels),
        lambda: nn.BatchNorm2d(channels),
        lambda: nn.BatchNorm2d(channels, affine=False),
        lambda: nn.BatchNorm2d(channels, track_running_stats=False),
        lambda: nn.GroupNorm(groups, channels),
        lambda: nn.GroupNorm(channels, channels, affine=False),
        lambda: nn.InstanceNorm2d(channels),
        lambda: nn.InstanceNorm2d(channels, affine=True, track_running_stats=True),
        lambda: _LastNorm(nn.LayerNorm(channels)),
        lambda: _LastNorm(nn.RMSNorm(channels)),
        nn.Identity,
    ]
    made: nn.Module = draw.choice(kinds)()
    return made


class _LastNorm(nn.Module):
    """A normalization of the last dimension, applied to the channels of an image."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class Convolution(_Image):
    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        channels, kernel = width(draw), draw.choice([1, 3])
        self.conv = nn.Conv2d(
            shape.channels,
            channels,
            kernel,
            padding=kernel // 2,
            bias=draw.random() < 0.7,
            padding_mode=draw.choice(["zeros", "zeros", "reflect"]) if shape.side > 2 else "zeros",
        )
        self.norm = norm(draw, channels)
        self.act = activation(draw, channels)
        self.makes = Shape("image", channels, shape.side)

    def forward(self, x: Tensor) -> Any:
        return self.act(self.norm(self.conv(x)))


class Strided(_Image):
    least_side = 4

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.conv = nn.Conv2d(shape.channels, width(draw), 2, stride=2, dilation=1)
        self.makes = Shape("image", self.conv.out_channels, shape.side // 2)

    def forward(self, x: Tensor) -> Any:
        return F.relu_(self.conv(x))


class Grouped(_Image):
    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c = shape.channels
        groups = draw.choice([g for g in (2, 3, 4, c) if c % g == 0] or [c])
        self.conv = nn.Conv2d(c, groups * draw.choice([1, 2, 3]), 3, padding=1, groups=groups)
        self.norm = norm(draw, self.conv.out_channels) if groups < c else nn.Identity()
        self.makes = Shape("image", self.conv.out_channels, shape.side)

    def forward(self, x: Tensor) -> Any:
        return self.norm(self.conv(x)).tanh()


class Separable(_Image):
    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c = shape.channels
        self.depth = nn.Conv2d(c, c, 3, padding=1, groups=c, bias=False)
        self.norm = nn.BatchNorm2d(c)
        self.point = nn.Conv2d(c, width(draw), 1)
        self.makes = Shape("image", self.point.out_channels, shape.side)

    def forward(self, x: Tensor) -> Any:
        return self.point(F.hardswish(self.norm(self.depth(x))))


class Transposed(_Image):
    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c = shape.channels
        groups = draw.choice([g for g in (1, 1, 2, c) if c % g == 0])
        self.conv = nn.ConvTranspose2d(
            c, groups * draw.choice([1, 2, 4]), 3, padding=1, groups=groups
        )
        self.makes = Shape("image", self.conv.out_channels, shape.side)

    def forward(self, x: Tensor) -> Any:
        return F.elu(self.conv(x))


class OtherRank(_Image):
    """A convolution of one or three dimensions."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        channels = width(draw)
        self.deep = draw.random() < 0.5
        if self.deep:
            self.conv: nn.Module = nn.Conv3d(shape.channels, channels, 3, padding=1)
        else:
            self.conv = nn.Conv1d(shape.channels, channels, 3, padding=1)
        self.makes = Shape("image", channels, shape.side)

    def forward(self, x: Tensor) -> Any:
        if self.deep:
            return self.conv(x.unsqueeze(2)).squeeze(2)
        return self.conv(x.flatten(2)).view(x.shape[0], -1, *x.shape[2:])


class Normed(_Image):
    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.norm = norm(draw, shape.channels)
        self.act = activation(draw, shape.channels)

    def forward(self, x: Tensor) -> Any:
        return self.act(self.norm(x))


class Pool(_Image):
    least_side = 2

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.pool = draw.choice(
            [nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(shape.side // 2)]
        )
        self.makes = Shape("image", shape.channels, shape.side // 2)

    def forward(self, x: Tensor) -> Any:
        return self.pool(x)


class Larger(_Image):
    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.mode = draw.choice(["nearest", "bilinear"])
        self.makes = Shape("image", shape.channels, 2 * shape.side)

    def forward(self, x: Tensor) -> Any:
        return F.interpolate(x, scale_factor=2, mode=self.mode)


class Residual(_Image):
    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c, inner = shape.channels, width(draw)
        self.one, self.norm = nn.Conv2d(c, inner, 3, padding=1), norm(draw, inner)
        self.two = nn.Conv2d(inner, c, 1)
        self.scale = nn.Parameter(torch.full(draw.choice([(c, 1, 1), (1, c, 1, 1)]), 0.3))
        self.scaled, self.inplace = draw.random() < 0.5, draw.random() < 0.3
        self.act = activation(draw, c)

    def forward(self, x: Tensor) -> Any:
        y = self.two(F.relu(self.norm(self.one(x))))
        y = y * self.scale if self.scaled else y
        if self.inplace:
            y += x
            return self.act(y)
        return self.act(x + y)


class PaddedShortcut(_Image):
    """Option A: the shortcut skips places and is padded with channels of zeros."""

    least_side = 4

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c = shape.channels
        self.before, self.behind = draw.choice([(0, 4), (2, 2), (1, 3)])
        planes = c + self.before + self.behind
        self.conv = nn.Conv2d(c, planes, 3, stride=2, padding=1)
        self.makes = Shape("image", planes, (shape.side + 1) // 2)

    def forward(self, x: Tensor) -> Any:
        short = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.behind))
        return F.relu(self.conv(x) + short)


class ProjectedShortcut(_Image):
    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c, planes = shape.channels, width(draw)
        self.conv, self.short = nn.Conv2d(c, planes, 3, padding=1), nn.Conv2d(c, planes, 1)
        self.norm = norm(draw, planes)
        self.makes = Shape("image", planes, shape.side)

    def forward(self, x: Tensor) -> Any:
        return torch.add(self.norm(self.conv(x)), self.short(x), alpha=0.5).relu()


class Dense(_Image):
    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c, more = shape.channels, draw.choice([2, 3, 4])
        self.one = nn.Conv2d(c, more, 3, padding=1)
        self.two = nn.Conv2d(c + more, more, 1)
        self.makes = Shape("image", c + 2 * more, shape.side)

    def forward(self, x: Tensor) -> Any:
        x = torch.cat([x, F.relu(self.one(x))], dim=1)
        return torch.cat((F.relu(self.two(x)), x), 1)


class Branches(_Image):
    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c = shape.channels
        self.how = draw.choice(["cat", "add", "mul", "stack", "max", "interleave"])
        one, two = width(draw), width(draw)
        two = two if self.how == "cat" else one
        self.one, self.two = nn.Conv2d(c, one, 1), nn.Conv2d(c, two, 3, padding=1)
        total = {"cat": one + two, "interleave": 2 * one}.get(self.how, one)
        self.makes = Shape("image", total, shape.side)

    def forward(self, x: Tensor) -> Any:
        a, b = self.one(x).sigmoid(), self.two(x)
        if self.how == "cat":
            return torch.cat([a, b], dim=-3)
        if self.how == "stack":
            return torch.stack([a, b], dim=1).mean(dim=1)
        if self.how == "interleave":
            return torch.stack([a, b], dim=2).flatten(1, 2)
        if self.how == "max":
            return torch.maximum(a, b)
        return a + b if self.how == "add" else a * b


class Split(_Image):
    """Parts of different sizes, of which one goes through a layer and all change places."""

    least = 4

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        first = draw.randint(1, shape.channels - 2)
        self.sizes = [first, shape.channels - first]
        self.how = draw.choice(["split", "slice", "narrow", "setitem"])
        self.first = first
        self.conv = nn.Conv2d(shape.channels - first, shape.channels - first, 1)

    def forward(self, x: Tensor) -> Any:
        if self.how == "split":
            a, b = x.split(self.sizes, dim=1)
        elif self.how == "slice":
            a, b = x[:, : self.first], x[:, self.first :]
        elif self.how == "narrow":
            a = x.narrow(1, 0, self.first)
            b = x.narrow(1, self.first, x.size(1) - self.first)
        else:
            y = x.clone()
            y[:, self.first :] = self.conv(x[:, self.first :])
            return y
        return torch.cat([self.conv(b), a.tanh()], dim=1)


class Halves(_Image):
    multiple, least = 2, 4

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.how = draw.choice(["chunk", "glu", "slice", "size", "split"])
        self.kept_half = shape.channels // 2
        self.makes = Shape("image", self.kept_half, shape.side)

    def forward(self, x: Tensor) -> Any:
        if self.how == "glu":
            return F.glu(x, dim=1)
        if self.how == "chunk":
            a, b = x.chunk(2, dim=1)
        elif self.how == "slice":
            a, b = x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]
        elif self.how == "split":
            a, b = torch.split(x, self.kept_half, dim=1)
        else:
            a, b = x[:, : self.kept_half], x[:, -self.kept_half :]
        return a * torch.sigmoid(b)


class Shuffle(_Image):
    multiple, least = 2, 4

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.groups = 2
        self.how = draw.choice(["layer", "view", "number", "unflatten"])
        self.layer = nn.ChannelShuffle(2)

    def forward(self, x: Tensor) -> Any:
        if self.how == "layer":
            return self.layer(x)
        b, c, h, w = x.size()
        if self.how == "unflatten":
            return x.unflatten(1, (self.groups, -1)).transpose(1, 2).flatten(1, 2)
        groups = self.groups if self.how == "view" else 2
        x = x.view(b, groups, c // groups, h, w).transpose(1, 2).contiguous()
        return x.view(b, c, h, w) if self.how == "view" else x.view(b, -1, h, w)


class PixelShuffle(_Image):
    multiple, least = 4, 8

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.layer = nn.PixelShuffle(2)
        self.makes = Shape("image", shape.channels // 4, 2 * shape.side)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


class PixelUnshuffle(_Image):
    @classmethod
    def fits(cls, shape: Shape) -> bool:
        return shape.side % 2 == 0 and shape.channels <= 6

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.focus = draw.random() < 0.5
        self.makes = Shape("image", 4 * shape.channels, shape.side // 2)

    def forward(self, x: Tensor) -> Any:
        if self.focus:
            parts = [x[..., i::2, j::2] for i in range(2) for j in range(2)]
            return torch.cat(parts, 1)
        return F.pixel_unshuffle(x, 2)


class Turned(_Image):
    """Channels in another order: flipped, rolled, or as a table says."""

    order: Tensor
    least = 4

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c = shape.channels
        self.how = draw.choice(["flip", "roll", "half", "back", "select", "index", "gather"])
        self.shift = draw.randint(1, c - 1)
        order = list(range(c))
        draw.shuffle(order)
        kept = order[: draw.randint(2, c)] if self.how in ("select", "index") else order
        self.register_buffer("order", torch.tensor(kept))
        self.makes = Shape("image", len(kept), shape.side)

    def forward(self, x: Tensor) -> Any:
        if self.how == "flip":
            return x.flip(1) - x.flip([2, 3])
        if self.how == "roll":
            return x.roll(self.shift, 1)
        if self.how == "back":
            return torch.roll(x, -self.shift, dims=1)
        if self.how == "half":
            return torch.roll(x, x.shape[1] // 2, dims=1) if x.shape[1] % 2 == 0 else x
        if self.how == "select":
            return torch.index_select(x, 1, self.order)
        if self.how == "index":
            return x[:, self.order]
        return x.gather(1, self.order.view(1, -1, 1, 1).expand(x.shape[0], -1, *x.shape[2:]))


class Picked(_Image):
    """Some channels in their order."""

    multiple, least = 2, 4

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c = shape.channels
        self.how = draw.choice(["first", "last", "even", "middle"])
        self.kept = draw.randint(2, c - 1)
        left = {"first": self.kept, "last": self.kept, "even": c // 2, "middle": c - 2}[self.how]
        self.makes = Shape("image", left, shape.side)
        self.end = 1

    def forward(self, x: Tensor) -> Any:
        if self.how == "first":
            return x[:, : self.kept]
        if self.how == "last":
            return x[:, -self.kept :]
        return x[:, ::2] if self.how == "even" else x[:, self.end : -self.end]


class Repeated(_Image):
    @classmethod
    def fits(cls, shape: Shape) -> bool:
        return shape.channels <= 8

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.how = draw.choice(["repeat", "tile", "interleave", "expand", "cat", "last"])
        self.makes = Shape("image", 2 * shape.channels, shape.side)

    def forward(self, x: Tensor) -> Any:
        b, c, h, w = x.shape
        if self.how == "repeat":
            return x.repeat(1, 2, 1, 1)
        if self.how == "tile":
            return x.tile((2, 1, 1))
        if self.how == "interleave":
            return torch.repeat_interleave(x, 2, dim=1)
        if self.how == "cat":
            return torch.cat([x, x.flip(1)], 1)
        if self.how == "last":
            return x.unsqueeze(2).expand(b, c, 2, h, w).reshape(b, 2 * c, h, w)
        return x[:, None].expand(-1, 2, -1, -1, -1).reshape(b, -1, h, w)


class Padded(_Image):
    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.before, self.behind = draw.randint(0, 2), draw.randint(0, 2)
        self.zeros = draw.random() < 0.5
        self.makes = Shape("image", shape.channels + self.before + self.behind, shape.side)

    def forward(self, x: Tensor) -> Any:
        if self.zeros:
            b, _, h, w = x.shape
            before = torch.zeros(b, self.before, h, w, dtype=x.dtype)
            return torch.cat([before, x, x.new_zeros(b, self.behind, h, w)], 1)
        return F.pad(x, (0, 0, 0, 0, self.before, self.behind), value=0.5)


class Maxout(_Image):
    multiple, least = 2, 4

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.how = draw.choice(["inner", "outer", "amax", "mean"])
        self.makes = Shape("image", shape.channels // 2, shape.side)

    def forward(self, x: Tensor) -> Any:
        b, c, h, w = x.shape
        if self.how == "inner":
            return x.reshape(b, c // 2, 2, h, w).max(dim=2).values
        if self.how == "outer":
            return x.view(b, 2, -1, h, w).max(1)[0]
        parts = x.view(b, c // 2, 2, h, w)
        return parts.amax(2) if self.how == "amax" else parts.mean(2)


class Squeeze(_Image):
    """Gates of channels: squeeze and excite, and its relatives."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c, inner = shape.channels, draw.choice([2, 3, 4])
        self.how = draw.choice(["conv", "linear", "softmax", "space", "eca"])
        self.down, self.up = nn.Conv2d(c, inner, 1), nn.Conv2d(inner, c, 1)
        self.fc = nn.Sequential(nn.Linear(c, inner), nn.ReLU(), nn.Linear(inner, c))
        self.space = nn.Conv2d(2, 1, 3, padding=1)
        self.local = nn.Conv1d(1, 1, 3, padding=1)
        self.mixes = self.how in ("softmax", "space")

    def forward(self, x: Tensor) -> Any:
        b, c = x.shape[:2]
        if self.how == "conv":
            return x * self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid()
        if self.how == "linear":
            return x * self.fc(x.mean((2, 3))).view(b, c, 1, 1).sigmoid().expand_as(x)
        if self.how == "softmax":
            return x * self.fc(x.amax((-1, -2))).softmax(-1)[:, :, None, None]
        if self.how == "eca":
            return x * self.local(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1)
        both = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
        return x * self.space(both).sigmoid()


class BareWeights(_Image):
    """Weights without a layer."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c, n = shape.channels, width(draw)
        self.how = draw.choice(["conv", "einsum", "matmul", "tensordot", "linear", "depthwise"])
        n = c if self.how == "depthwise" else n
        self.kernel = nn.Parameter(torch.randn(n, 1 if self.how == "depthwise" else c, 3, 3) / 3)
        self.mix = nn.Parameter(torch.randn(c, n) / 3)
        self.bias = nn.Parameter(torch.zeros(n, 1, 1))
        self.makes = Shape("image", n, shape.side)

    def forward(self, x: Tensor) -> Any:
        if self.how == "conv":
            return F.conv2d(x, self.kernel, padding=1) + self.bias
        if self.how == "depthwise":
            return F.conv2d(x, self.kernel, padding=1, groups=x.shape[1])
        if self.how == "einsum":
            return torch.einsum("bc...,cd->bd...", x, self.mix)
        if self.how == "matmul":
            return (self.mix.t() @ x.flatten(2)).unflatten(2, x.shape[2:])
        if self.how == "tensordot":
            return torch.tensordot(self.mix, x, dims=([0], [1])).transpose(0, 1) + self.bias
        return F.linear(x.movedim(1, -1), self.mix.T).movedim(-1, 1).contiguous()


class _Scaled(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels, 1, 1, 1))

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.scale


class _Standardized(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        mean = weight.mean(dim=(1, 2, 3), keepdim=True)
        return (weight - mean) / (weight.std(dim=(1, 2, 3), keepdim=True) + 1e-3)


class Parametrized(_Image):
    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        n = width(draw)
        conv: nn.Module = nn.Conv2d(shape.channels, n, 3, padding=1, bias=draw.random() < 0.5)
        how = draw.choice(["weight", "spectral", "scaled", "standard", "old"])
        self.mixes = how == "standard"
        if how == "weight":
            conv = parametrizations.weight_norm(conv)
        elif how == "spectral":
            conv = parametrizations.spectral_norm(conv)
        elif how == "old":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                conv = nn.utils.weight_norm(conv)
        else:
            own = _Scaled(n) if how == "scaled" else _Standardized()
            parametrize.register_parametrization(conv, "weight", own)
        self.conv = conv
        self.makes = Shape("image", n, shape.side)

    def forward(self, x: Tensor) -> Any:
        return self.conv(x).relu()


class Shared(_Image):
    """A layer that is called twice, or whose weight another layer has, too."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c, n = shape.channels, width(draw)
        self.how = draw.choice(["twice", "weight", "back"])
        self.one = nn.Conv2d(c, c if self.how == "twice" else n, 1)
        self.two = nn.Conv2d(c, n, 1)
        self.two.weight = self.one.weight if self.how != "twice" else self.two.weight
        self.makes = Shape("image", n if self.how == "weight" else c, shape.side)

    def forward(self, x: Tensor) -> Any:
        if self.how == "twice":
            return self.one(torch.relu(self.one(x)))
        if self.how == "weight":
            return self.one(x) * self.two(x.flip(-1)).sigmoid()
        return F.conv_transpose2d(self.one(x).relu(), self.one.weight)


class ChannelsLast(_Image):
    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c, n = shape.channels, width(draw)
        self.norm, self.one, self.two = nn.LayerNorm(c), nn.Linear(c, n), nn.Linear(n, c)
        self.scale = nn.Parameter(torch.ones(c))

    def forward(self, x: Tensor) -> Any:
        y = self.norm(x.permute(0, 2, 3, 1))
        return x + (self.scale * self.two(F.gelu(self.one(y)))).permute(0, 3, 1, 2)


class HandNorm(_Image):
    """A normalization over channels written by hand."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c = shape.channels
        self.how = draw.choice(["layer", "rms", "unit", "grn"])
        self.weight = nn.Parameter(torch.ones(c, 1, 1))
        self.mixes = True

    def forward(self, x: Tensor) -> Any:
        if self.how == "unit":
            return F.normalize(x, dim=1) * self.weight
        if self.how == "rms":
            return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-3) * self.weight
        if self.how == "grn":
            size = x.norm(p=2, dim=(2, 3), keepdim=True)
            return x * (size / (size.mean(dim=1, keepdim=True) + 1e-3)) + x
        mean = x.mean(1, keepdim=True)
        var = (x - mean).pow(2).mean(1, keepdim=True)
        return (x - mean) / torch.sqrt(var + 1e-3) * self.weight


class Streams(_Image):
    """Hyper connections: several copies that are mixed by a matrix."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c = shape.channels
        self.streams = 3
        self.mix = nn.Parameter(torch.randn(3, 3))
        self.conv = nn.Conv2d(c, c, 1)

    def forward(self, x: Tensor) -> Any:
        many = x.unsqueeze(1).repeat(1, self.streams, 1, 1, 1)
        many = torch.einsum("nm,bmchw->bnchw", self.mix, many)
        many = torch.cat([self.conv(many[:, 0]).unsqueeze(1), many[:, 1:]], 1)
        return many.sum(1)


class Statistics(_Image):
    """Batch statistics by hand, as a layer of one's own has them."""

    mean: Tensor
    var: Tensor

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c = shape.channels
        self.register_buffer("mean", torch.randn(c))
        self.register_buffer("var", torch.rand(c) + 0.5)
        self.weight = nn.Parameter(torch.ones(c))
        self.how = draw.choice(["function", "view", "index"])

    def forward(self, x: Tensor) -> Any:
        if self.how == "function":
            return F.batch_norm(x, self.mean, self.var, self.weight)
        if self.how == "view":
            shape = (1, -1, 1, 1)
            scale = self.weight.view(shape) / self.var.view(shape).sqrt()
            return (x - self.mean.view(shape)) * scale
        return (x - self.mean[None, :, None, None]) * self.weight[:, None, None]


class Dynamic(_Image):
    """Weights that are computed: of the input, or of other weights."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c, n = shape.channels, width(draw)
        self.how = draw.choice(["mix", "low", "gain", "depth", "own"])
        self.weights = nn.Parameter(torch.randn(3, n, c, 3, 3) / 5)
        self.route = nn.Linear(c, 3)
        self.a, self.b = nn.Parameter(torch.randn(n, 2)), nn.Parameter(torch.randn(2, c))
        self.conv = nn.Conv2d(c, n, 3, padding=1)
        self.depth = nn.Conv2d(c, c, 3, padding=1, groups=c)
        self.gain = nn.Parameter(torch.ones(n))
        self.makes = Shape("image", c if self.how in ("depth", "own") else n, shape.side)
        self.mixes = self.how == "mix"

    def forward(self, x: Tensor) -> Any:
        if self.how == "mix":
            route = self.route(x.mean((0, 2, 3))).softmax(-1)
            return F.conv2d(x, torch.einsum("e,eoihw->oihw", route, self.weights), padding=1)
        if self.how == "low":
            return F.conv2d(x, (self.a @ self.b)[:, :, None, None]).relu()
        if self.how == "gain":
            weight = self.conv.weight * self.gain.view(-1, 1, 1, 1)
            return F.conv2d(x, weight, self.gain * 0.5, padding=1)
        if self.how == "depth":
            weight = self.depth.weight.abs()
            return F.conv2d(x, weight, padding=1, groups=self.depth.groups)
        kernels = x.mean((0, 2, 3)).tanh().view(-1, 1, 1, 1)
        return F.conv2d(x, kernels, groups=x.shape[1])


class Folded(_Image):
    """Patches are taken, changed and put back."""

    least_side = 2

    @classmethod
    def fits(cls, shape: Shape) -> bool:
        return shape.side % 2 == 0

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c = shape.channels
        self.scale = nn.Parameter(torch.ones(c, 1, 1))
        self.how = draw.choice(["fold", "blocks"])

    def forward(self, x: Tensor) -> Any:
        b, c, h, w = x.shape
        if self.how == "fold":
            patches = F.unfold(x, 2, stride=2)
            return F.fold(patches.relu(), (h, w), 2, stride=2) * self.scale
        y = x.reshape(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5)
        y = y.softmax(-1).permute(0, 3, 1, 4, 2, 5)
        return y.reshape(b, c, h, w) * self.scale


class AsSequence(_Image):
    """A block of sequences over the places of the image."""

    @classmethod
    def fits(cls, shape: Shape) -> bool:
        return shape.side <= 3 and shape.channels >= 2

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        inner = Shape("sequence", shape.channels, shape.side**2)
        while True:
            kinds = [kind for kind in all_blocks("sequence") if kind.fits(inner)]
            self.block = draw.choice(kinds)(draw, inner)
            if self.block.makes.kind == "sequence" and self.block.makes.side == inner.side:
                break
        self.mixes = self.block.mixes
        self.makes = Shape("image", self.block.makes.channels, shape.side)

    def forward(self, x: Tensor) -> Any:
        b, _, h, w = x.shape
        y = self.block(x.flatten(2).transpose(1, 2))
        return y.transpose(1, 2).reshape(b, -1, h, w)


class Number(_Image):
    """What has to be refused: a size in the text, an unknown operation, a size as a number."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.how = draw.choice(["sort", "size", "cumsum", "list"])

    def forward(self, x: Tensor) -> Any:
        if self.how == "sort":
            return x.sort(dim=1).values
        if self.how == "cumsum":
            return x.cumsum(1)
        if self.how == "list":
            return x[:, [1, 0, 1]].sum(1, keepdim=True) + x
        return x / x.shape[1]
