"""Blocks that take vectors."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.random_blocks import Block, Draw, Shape, activation, width


class _Vector(Block):
    takes = "vector"


class Hidden(_Vector):
    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        n = width(draw)
        self.linear = nn.Linear(shape.channels, n, bias=draw.random() < 0.7)
        groups = draw.choice([g for g in (1, 2) if n % g == 0])
        kinds: list[Any] = [
            nn.BatchNorm1d,
            nn.LayerNorm,
            nn.RMSNorm,
            nn.Identity,
            lambda c: nn.GroupNorm(groups, c),
        ]
        self.norm, self.act = draw.choice(kinds)(n), activation(draw, n)
        self.makes = Shape("vector", n)

    def forward(self, x: Tensor) -> Any:
        return self.act(self.norm(self.linear(x)))


class VectorResidual(_Vector):
    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c, n = shape.channels, width(draw)
        self.one, self.two = nn.Linear(c, n), nn.Linear(n, c)
        self.how = draw.choice(["add", "highway", "dense", "film"])
        self.gate = nn.Linear(c, c)
        self.both = nn.Linear(c, 2 * c)
        self.makes = Shape("vector", 2 * c if self.how == "dense" else c)

    def forward(self, x: Tensor) -> Any:
        y = self.two(self.one(x).relu())
        if self.how == "add":
            return F.relu(x + y)
        if self.how == "dense":
            return torch.hstack([x, y])
        if self.how == "film":
            scale, shift = self.both(y).split(x.shape[1], dim=1)
            return torch.addcmul(shift, x, 1 + scale)
        gate = self.gate(x).sigmoid()
        return gate * x + (1 - gate) * y


class VectorHalves(_Vector):
    multiple, least = 2, 4

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.how = draw.choice(["glu", "max", "chunk", "view", "pool"])
        self.makes = Shape("vector", shape.channels // 2)

    def forward(self, x: Tensor) -> Any:
        if self.how == "glu":
            return F.glu(x)
        if self.how == "chunk":
            a, b = torch.chunk(x, 2, -1)
            return a.sin() + b
        if self.how == "pool":
            return x.unflatten(-1, (-1, 2)).mean(-1)
        if self.how == "view":
            return x.view(-1, 2, x.shape[1] // 2).prod(1)
        return x.view(x.size(0), -1, 2).max(-1).values


class VectorTurned(_Vector):
    order: Tensor
    least = 4

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c = shape.channels
        self.how = draw.choice(["flip", "roll", "index", "gather", "reverse"])
        self.shift = draw.randint(1, c - 1)
        self.register_buffer("order", torch.randperm(c))

    def forward(self, x: Tensor) -> Any:
        if self.how == "flip":
            return x.flip(-1)
        if self.how == "roll":
            return torch.roll(x, self.shift, dims=-1)
        if self.how == "index":
            return x[..., self.order]
        if self.how == "gather":
            return torch.gather(x, 1, self.order.expand(x.shape[0], x.shape[1]))
        return torch.cat([x[:, self.shift :], x[:, : self.shift]], 1)


class VectorWeights(_Vector):
    """Products of vectors with weights and with each other."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c, n = shape.channels, width(draw)
        self.how = draw.choice(["linear", "matmul", "einsum", "bilinear", "low", "outer", "norm"])
        self.weight = nn.Parameter(torch.randn(n, c) / 3)
        self.left, self.right = nn.Linear(c, 3), nn.Linear(3, n, bias=False)
        self.pair = nn.Bilinear(c, c, n) if self.how == "bilinear" else nn.Identity()
        self.mixes = self.how == "norm"
        self.makes = Shape("vector", {"outer": 9}.get(self.how, n))

    def forward(self, x: Tensor) -> Any:
        if self.how == "linear":
            return F.linear(x, self.weight).sigmoid()
        if self.how == "matmul":
            return torch.matmul(self.weight, x.unsqueeze(-1)).squeeze(-1)
        if self.how == "einsum":
            return torch.einsum("nc, bc -> bn", self.weight, x)
        if self.how == "bilinear":
            return self.pair(x, x.tanh())
        if self.how == "outer":
            a = self.left(x)
            return (a.unsqueeze(2) * a.unsqueeze(1)).flatten(1)
        if self.how == "norm":
            return F.linear(F.normalize(x), F.normalize(self.weight))
        return self.right(self.left(x))


class VectorShared(_Vector):
    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c = shape.channels
        self.how = draw.choice(["siamese", "tied", "twice"])
        self.layer, self.score = nn.Linear(c, c), nn.Linear(c, c)
        self.back = nn.Parameter(torch.zeros(c))

    def forward(self, x: Tensor) -> Any:
        if self.how == "siamese":
            return self.layer(x) * self.layer(x.sin()).relu()
        if self.how == "tied":
            return F.linear(self.layer(x).relu(), self.layer.weight.T, self.back)
        return self.layer(self.layer(x).relu())
