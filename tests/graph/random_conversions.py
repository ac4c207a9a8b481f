"""Blocks that make a sequence of an image, a vector of a sequence, and so on."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.graph.random_blocks import Block, Draw, Kind, Shape, width


def to_vector(kind: Kind) -> type[Block]:
    """Return the block that makes a vector."""
    return ImageToVector if kind == "image" else SequenceToVector


class ImageToVector(Block):
    takes = "image"
    least = 1

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c, s = shape.channels, shape.side
        self.how = draw.choice(
            ["mean", "flat", "view", "size", "written", "last", "pool", "attend", "rows"]
        )
        if c * s * s > 200 and self.how not in ("mean", "pool", "attend"):
            self.how = "mean"
        self.flat = c * s * s
        self.wide = self.how not in ("mean", "pool", "attend")
        self.fc = nn.Linear(self.flat, 6) if self.wide else nn.Linear(c, 6)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.score = nn.Conv2d(c, 1, 1)
        self.makes = Shape("vector", 6)

    def forward(self, x: Tensor) -> Any:
        b, c, h, w = x.shape
        if self.how == "mean":
            x = x.mean(dim=[2, 3])
        elif self.how == "flat":
            x = torch.flatten(x, 1)
        elif self.how == "view":
            x = x.view(-1, self.flat)
        elif self.how == "size":
            x = x.reshape(b, c * h * w)
        elif self.how == "written":
            x = x.reshape(x.size(0), -1)
        elif self.how == "last":
            x = x.permute(0, 2, 3, 1).contiguous().view(b, -1)
        elif self.how == "pool":
            x = self.pool(x).squeeze(-1).squeeze(-1)
        elif self.how == "rows":
            x = x.transpose(1, 2).flatten(1)
        else:
            weights = self.score(x).flatten(1).softmax(-1)
            x = (x.flatten(2) @ weights.unsqueeze(-1)).squeeze(-1)
        return self.fc(x)


class ImageToSequence(Block):
    takes = "image"

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c, s = shape.channels, shape.side
        self.how = draw.choice(["flat", "patch", "unfold", "columns", "einsum"])
        if s > 3 or s == 1:
            self.how = "columns"
        n = width(draw)
        self.patch = nn.Conv2d(c, n, min(2, s), stride=1)
        self.patches = nn.Linear(4 * c, n)
        self.rows = nn.Linear(c * s, n) if self.how == "columns" else nn.Linear(1, 1)
        places = {"patch": (s - 1) ** 2, "unfold": (s - 1) ** 2, "columns": s}
        kept = self.how in ("flat", "einsum")
        self.makes = Shape("sequence", c if kept else n, places.get(self.how, s * s))

    def forward(self, x: Tensor) -> Any:
        if self.how == "flat":
            return x.flatten(2).transpose(1, 2)
        if self.how == "einsum":
            return torch.einsum("bchw->bhwc", x).flatten(1, 2)
        if self.how == "patch":
            return self.patch(x).flatten(2).permute(0, 2, 1)
        if self.how == "unfold":
            return self.patches(F.unfold(x, 2).transpose(1, 2))
        return self.rows(x.permute(0, 3, 1, 2).flatten(2))


class SequenceToVector(Block):
    takes = "sequence"
    least = 1

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c, t = shape.channels, shape.side
        self.how = draw.choice(["mean", "first", "last", "max", "attend", "flat", "stats", "state"])
        self.score = nn.Linear(c, 1)
        self.fc = nn.Linear(t * c, 6) if self.how == "flat" else nn.Linear(1, 1)
        self.layer = nn.GRU(c, 5, batch_first=True)
        n = {"flat": 6, "stats": 2 * c, "state": 5}.get(self.how, c)
        self.makes = Shape("vector", n)

    def forward(self, x: Tensor) -> Any:
        if self.how == "mean":
            return x.mean(1)
        if self.how == "first":
            return x[:, 0]
        if self.how == "last":
            return x[:, -1, :]
        if self.how == "max":
            return x.max(dim=1)[0]
        if self.how == "flat":
            return self.fc(x.flatten(1))
        if self.how == "stats":
            return torch.cat([x.mean(1), x.std(1)], -1)
        if self.how == "state":
            return self.layer(x)[1].squeeze(0)
        return (x * self.score(x).softmax(1)).sum(1)


class SequenceToImage(Block):
    takes = "sequence"

    @classmethod
    def fits(cls, shape: Shape) -> bool:
        return shape.side in (4, 9)

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.size = int(shape.side**0.5)
        self.how = draw.choice(["reshape", "view", "unflatten"])
        self.makes = Shape("image", shape.channels, self.size)

    def forward(self, x: Tensor) -> Any:
        b, _, c = x.shape
        if self.how == "reshape":
            return x.transpose(1, 2).reshape(b, c, self.size, self.size)
        if self.how == "view":
            return x.view(b, self.size, self.size, -1).permute(0, 3, 1, 2)
        return x.mT.unflatten(-1, (self.size, self.size))


class VectorToSequence(Block):
    takes = "vector"

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c = shape.channels
        self.how = draw.choice(["expand", "repeat", "view", "unflatten"])
        self.steps = 3
        self.fc = nn.Linear(c, 12)
        self.places = nn.Parameter(torch.randn(3, c))
        own, self.mixes = self.how in ("expand", "repeat"), True
        self.makes = Shape("sequence", c if own else 4, 3)

    def forward(self, x: Tensor) -> Any:
        if self.how == "expand":
            return x.unsqueeze(1).expand(-1, self.steps, -1) + self.places
        if self.how == "repeat":
            return x.repeat(1, self.steps).view(x.shape[0], self.steps, -1) * self.places
        if self.how == "view":
            return self.fc(x).view(-1, self.steps, 4)
        return self.fc(x).unflatten(1, (self.steps, -1))


class VectorToImage(Block):
    takes = "vector"

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.how = draw.choice(["expand", "view"])
        self.fc = nn.Linear(shape.channels, 16)
        self.makes = Shape("image", shape.channels if self.how == "expand" else 4, 2)

    def forward(self, x: Tensor) -> Any:
        if self.how == "expand":
            return x[:, :, None, None].expand(-1, -1, 2, 2)
        return self.fc(x).relu().view(x.shape[0], -1, 2, 2)
