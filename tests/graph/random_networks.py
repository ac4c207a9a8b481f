"""`random_network`: a small network drawn from a seed, of the blocks that pruning goes wrong on."""

import random
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations


def random_network(seed: int) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """Return the network of a seed and inputs for it."""
    draw = random.Random(seed)
    torch.manual_seed(seed)
    net = Network(draw, draw.choice(["image"] * 5 + ["words", "vectors", "line"]))
    inputs = {
        "image": torch.rand(2, 3, 6, 6),
        "words": torch.randint(0, 11, (2, 6)),
        "vectors": torch.rand(2, 6, 4),
        "line": torch.rand(2, 3, 6),
    }
    return net, (inputs[net.start],)


class Block(nn.Module):
    """One step of a program; `made` is the width of what it returns."""

    order: Tensor
    norm: nn.Module
    conv: Any

    def __init__(self, kind: str, c: int, draw: random.Random) -> None:
        super().__init__()
        self.kind = kind
        self.made = c
        getattr(self, f"make_{kind}", self.make_nothing)(c, draw)

    def make_nothing(self, c: int, draw: random.Random) -> None:
        return None


class ImageBlock(Block):
    def make_conv(self, c: int, draw: random.Random) -> None:
        k = draw.choice([1, 3])
        self.made = draw.choice([4, 6, 8, 12])
        groups = draw.choice([g for g in (1, 1, 2, 4) if c % g == 0 and self.made % g == 0])
        self.conv = nn.Conv2d(c, self.made, k, padding=k // 2, groups=groups)
        if draw.random() < 0.2:
            self.conv = parametrizations.weight_norm(self.conv)

    def make_depthwise(self, c: int, draw: random.Random) -> None:
        self.made = c * (2 if c <= 6 and draw.random() < 0.5 else 1)
        self.conv = nn.Conv2d(c, self.made, 3, padding=1, groups=c)

    def make_transposed(self, c: int, draw: random.Random) -> None:
        self.made = draw.choice([4, 6, 8])
        groups = draw.choice([g for g in (1, 2) if c % g == 0])
        self.conv = nn.ConvTranspose2d(c, self.made, 3, padding=1, groups=groups)

    def make_norm(self, c: int, draw: random.Random) -> None:
        groups = draw.choice([g for g in (1, 2, 3, 4) if c % g == 0])
        norms: list[nn.Module] = [
            nn.BatchNorm2d(c),
            nn.GroupNorm(groups, c),
            nn.InstanceNorm2d(c, affine=True, track_running_stats=True),
        ]
        self.norm = draw.choice(norms)

    def make_gate(self, c: int, draw: random.Random) -> None:
        self.down, self.up = nn.Conv2d(c, 3, 1), nn.Conv2d(3, c, 1)

    def make_residual(self, c: int, draw: random.Random) -> None:
        self.one, self.two = nn.Conv2d(c, 6, 1), nn.Conv2d(6, c, 3, padding=1)
        self.gamma = nn.Parameter(torch.rand(c, 1, 1))

    def make_dense(self, c: int, draw: random.Random) -> None:
        self.conv, self.made = nn.Conv2d(c, 3, 1), c + 3

    def make_split(self, c: int, draw: random.Random) -> None:
        first = draw.randint(1, c - 1)
        self.sizes = [first, c - first]

    def make_slice(self, c: int, draw: random.Random) -> None:
        self.kept = self.made = draw.randint(2, c - 1)

    def make_select(self, c: int, draw: random.Random) -> None:
        self.register_buffer("order", torch.randperm(c))

    def make_gather(self, c: int, draw: random.Random) -> None:
        self.register_buffer("order", torch.randperm(c).view(1, c, 1, 1).repeat(2, 1, 6, 6))

    def make_roll(self, c: int, draw: random.Random) -> None:
        self.by = draw.randint(1, c - 1)

    def make_strided(self, c: int, draw: random.Random) -> None:
        self.made = (c + 1) // 2

    def make_chunk(self, c: int, draw: random.Random) -> None:
        self.made = c // 2

    def make_maxout(self, c: int, draw: random.Random) -> None:
        self.made = c // 2

    def make_repeat(self, c: int, draw: random.Random) -> None:
        self.made = c * 2

    make_interleave = make_repeat

    def make_pad(self, c: int, draw: random.Random) -> None:
        self.made = c + 3

    def make_pixels(self, c: int, draw: random.Random) -> None:
        self.conv = nn.Conv2d(c * 4, c * 4, 1)

    def make_twice(self, c: int, draw: random.Random) -> None:
        self.conv = nn.Conv2d(c, c, 1)

    make_functional = make_twice

    def forward(self, x: Tensor) -> Any:
        kind = self.kind
        if kind in ("conv", "depthwise", "transposed"):
            return F.silu(self.conv(x))
        if kind == "norm":
            return F.relu(self.norm(x))
        if kind == "gate":
            return x * torch.sigmoid(self.up(F.relu(self.down(x.mean((2, 3), keepdim=True)))))
        if kind == "residual":
            return x + self.gamma * self.two(F.relu(self.one(x)))
        if kind == "dense":
            return torch.cat([x, F.relu(self.conv(x))], 1)
        if kind == "split":
            a, b = torch.split(x, self.sizes, dim=1)
            return torch.cat([b.sigmoid(), a], 1)
        if kind == "slice":
            return x[:, : self.kept]
        if kind == "select":
            return x.index_select(1, self.order)
        if kind == "gather":
            return x.gather(1, self.order)
        if kind == "flip":
            return x + x.flip(1)
        if kind == "roll":
            return torch.roll(x, self.by, dims=1)
        if kind == "strided":
            return x[:, ::2]
        if kind == "chunk":
            a, b = x.chunk(2, dim=1)
            return a * b.sigmoid()
        n, c, h, w = x.shape
        if kind == "maxout":
            return x.reshape(n, c // 2, 2, h, w).max(dim=2).values
        if kind == "shuffle":
            return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        if kind == "repeat":
            return x.repeat(1, 2, 1, 1)
        if kind == "interleave":
            return x.repeat_interleave(2, dim=1)
        if kind == "pad":
            return F.pad(x, (0, 0, 0, 0, 1, 2))
        if kind == "pixels":
            return F.pixel_shuffle(self.conv(F.pixel_unshuffle(x, 2)), 2)
        if kind == "twice":
            return F.relu(self.conv(F.relu(self.conv(x))))
        return F.conv2d(x, self.conv.weight, self.conv.bias)


class SequenceBlock(Block):
    def make_linear(self, c: int, draw: random.Random) -> None:
        self.made = draw.choice([4, 6, 8, 12])
        self.fc = nn.Linear(c, self.made)

    def make_norm(self, c: int, draw: random.Random) -> None:
        norms: list[nn.Module] = [nn.LayerNorm(c), nn.RMSNorm(c)]
        self.norm = draw.choice(norms)

    def make_glu(self, c: int, draw: random.Random) -> None:
        self.made = 6
        self.fc = nn.Linear(c, 12)

    def make_swiglu(self, c: int, draw: random.Random) -> None:
        self.gate, self.up, self.down = nn.Linear(c, 10), nn.Linear(c, 10), nn.Linear(10, c)

    def make_packed(self, c: int, draw: random.Random) -> None:
        self.heads, self.width = draw.choice([2, 4]), 3
        inner = self.heads * self.width
        self.qkv, self.out = nn.Linear(c, 3 * inner), nn.Linear(inner, c)

    def make_shared(self, c: int, draw: random.Random) -> None:
        self.heads, self.few, self.width = 4, 2, 3
        self.q, self.k, self.v = nn.Linear(c, 12), nn.Linear(c, 6), nn.Linear(c, 6)
        self.out = nn.Linear(12, c)

    def make_attention(self, c: int, draw: random.Random) -> None:
        heads = draw.choice([h for h in (1, 2, 4) if c % h == 0])
        self.attention = nn.MultiheadAttention(c, heads, batch_first=True)

    def make_einsum(self, c: int, draw: random.Random) -> None:
        self.made = 6
        self.mix = nn.Parameter(torch.randn(c, 6))

    def make_recurrent(self, c: int, draw: random.Random) -> None:
        layer: Any = draw.choice([nn.LSTM, nn.GRU, nn.RNN])
        two, deep = draw.random() < 0.5, draw.choice([1, 2])
        more: dict[str, int] = {"proj_size": 3} if layer is nn.LSTM and draw.random() < 0.4 else {}
        self.layer = layer(c, 5, deep, batch_first=True, bidirectional=two, **more)
        self.made = more.get("proj_size", 5) * (2 if two else 1)

    def make_token(self, c: int, draw: random.Random) -> None:
        self.token = nn.Parameter(torch.randn(1, 1, c))

    make_places = make_token

    def forward(self, x: Tensor) -> Any:
        kind = self.kind
        if kind == "linear":
            return F.gelu(self.fc(x))
        if kind == "norm":
            return self.norm(x)
        if kind == "glu":
            return F.glu(self.fc(x), dim=-1)
        if kind == "swiglu":
            return x + self.down(F.silu(self.gate(x)) * self.up(x))
        if kind == "attention":
            return x + self.attention(x, x, x, need_weights=False)[0]
        if kind == "einsum":
            return torch.einsum("btc,cd->btd", x, self.mix)
        if kind == "recurrent":
            return self.layer(x)[0]
        if kind == "token":
            return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1)
        if kind == "places":
            return x + self.token
        if kind == "stack":
            a, b = torch.stack([x, x.tanh()], 0).unbind(0)
            return a * b
        n, length, _ = x.shape
        if kind == "packed":
            qkv = self.qkv(x).view(n, length, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
            y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2])
        else:
            q = self.q(x).view(n, length, self.heads, self.width).transpose(1, 2)
            k = self.k(x).view(n, length, self.few, self.width).transpose(1, 2)
            v = self.v(x).view(n, length, self.few, self.width).transpose(1, 2)
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        return x + self.out(y.transpose(1, 2).flatten(2))


IMAGES = [
    "conv",
    "conv",
    "conv",
    "depthwise",
    "transposed",
    "norm",
    "norm",
    "gate",
    "residual",
    "residual",
    "dense",
    "split",
    "slice",
    "select",
    "gather",
    "flip",
    "roll",
    "strided",
    "chunk",
    "maxout",
    "shuffle",
    "repeat",
    "interleave",
    "pad",
    "pixels",
    "twice",
    "functional",
]
SEQUENCES = [
    "linear",
    "linear",
    "norm",
    "glu",
    "swiglu",
    "packed",
    "shared",
    "attention",
    "einsum",
    "recurrent",
    "token",
    "places",
    "stack",
]


class Network(nn.Module):
    """What a drawn program computes."""

    def __init__(self, draw: random.Random, start: str) -> None:
        super().__init__()
        self.start = start
        c = draw.choice([4, 6, 8])
        firsts: dict[str, nn.Module] = {
            "image": nn.Conv2d(3, c, 3, padding=1),
            "words": nn.Embedding(11, c),
            "vectors": nn.Linear(4, c),
            "line": nn.Conv1d(3, c, 3, padding=1),
        }
        self.first = firsts[start]
        self.images, self.sequences = nn.ModuleList(), nn.ModuleList()
        for _ in range(draw.randint(3, 7) if start == "image" else 0):
            kinds = [k for k in IMAGES if (c % 2 == 0 or k not in ("chunk", "maxout", "shuffle"))]
            small = ("strided", "chunk", "maxout", "slice")
            large = ("repeat", "interleave", "dense", "pad")
            kinds = [k for k in kinds if not (c < 6 and k in small) and not (c > 8 and k in large)]
            kinds = [k for k in kinds if k != "pixels"] if c > 8 else kinds
            block = ImageBlock(draw.choice(kinds), c, draw)
            self.images.append(block)
            c = block.made
        self.end = draw.choice(["mean", "flatten", "sequence"]) if start == "image" else "sequence"
        for _ in range(draw.randint(1, 4) if self.end == "sequence" else 0):
            part = SequenceBlock(draw.choice(SEQUENCES), c, draw)
            self.sequences.append(part)
            c = part.made
        self.head = nn.Linear(c * 36 if self.end == "flatten" else c, 3)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        for block in self.images:
            x = block(x)
        if self.end == "flatten":
            return self.head(torch.flatten(x, 1))
        if self.end == "mean":
            return self.head(x.mean((2, 3)))
        if self.start in ("image", "line"):
            x = x.flatten(2).transpose(1, 2)
        for part in self.sequences:
            x = part(x)
        return self.head(x.mean(1))
