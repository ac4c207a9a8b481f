"""Blocks that take sequences."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.graph.random_blocks import Block, Draw, Shape, activation, width


class _Sequence(Block):
    takes = "sequence"


class HandRms(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5))


class _BatchNorm(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(channels)

    def forward(self, x: Tensor) -> Any:
        return self.norm(x.transpose(1, 2)).transpose(-1, -2)


def norm(draw: Draw, channels: int) -> nn.Module:
    """Return a normalization of sequences."""
    kinds = [nn.LayerNorm, nn.LayerNorm, nn.RMSNorm, HandRms, _BatchNorm, nn.Identity]
    made: nn.Module = draw.choice(kinds)(channels)
    return made


class Positions(_Sequence):
    """An embedding of the inputs, with positions and perhaps a class token."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        n, t = width(draw), shape.side
        self.how = draw.choice(["added", "table", "token", "tokens", "none"])
        self.first = nn.Linear(shape.channels, n)
        more = {"token": 1, "tokens": 2}.get(self.how, 0)
        self.token = nn.Parameter(torch.randn(1, 1, n))
        self.tokens = nn.Parameter(torch.randn(2, n))
        self.places = nn.Parameter(torch.randn(1, t + more, n))
        self.table = nn.Embedding(t, n)
        self.mixes = more > 0
        self.makes = Shape("sequence", n, t + more)

    def forward(self, x: Tensor) -> Any:
        x = self.first(x)
        b, t, _ = x.shape
        if self.how == "table":
            return x + self.table(torch.arange(t))
        if self.how == "none":
            return x
        if self.how == "token":
            x = torch.cat([self.token.expand(b, -1, -1), x], 1)
        if self.how == "tokens":
            x = torch.cat([x, self.tokens.unsqueeze(0).repeat(b, 1, 1)], 1)
        return x + self.places[:, : x.shape[1]]


class Projection(_Sequence):
    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        n = width(draw)
        linear: nn.Module = nn.Linear(shape.channels, n, bias=draw.random() < 0.6)
        if draw.random() < 0.3:
            linear = parametrizations.weight_norm(linear)
        elif draw.random() < 0.2:
            linear = parametrizations.spectral_norm(linear)
        self.linear, self.norm, self.act = linear, norm(draw, n), activation(draw, 1)
        self.makes = Shape("sequence", n, shape.side)

    def forward(self, x: Tensor) -> Any:
        return self.act(self.norm(self.linear(x)))


class FeedForward(_Sequence):
    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c, n = shape.channels, 2 * width(draw)
        self.how = draw.choice(["plain", "swiglu", "packed", "glu", "bare"])
        self.norm = norm(draw, c)
        self.up, self.gate = nn.Linear(c, n), nn.Linear(c, n, bias=False)
        self.down = nn.Linear(n if self.how in ("plain", "swiglu") else n // 2, c)
        self.a, self.b = nn.Parameter(torch.randn(c, n) / 3), nn.Parameter(torch.randn(n, c) / 3)
        self.scale = nn.Parameter(torch.ones(c))

    def forward(self, x: Tensor) -> Any:
        y = self.norm(x)
        if self.how == "plain":
            return x + self.scale * self.down(F.gelu(self.up(y)))
        if self.how == "swiglu":
            return x + self.down(F.silu(self.gate(y)) * self.up(y))
        if self.how == "packed":
            left, right = self.up(y).chunk(2, dim=-1)
            return x + self.down(left * F.gelu(right))
        if self.how == "glu":
            return torch.add(x, self.down(F.glu(self.up(y))))
        return x + torch.relu(y @ self.a).matmul(self.b)


class LayerAttention(_Sequence):
    """`nn.MultiheadAttention`."""

    multiple, least = 2, 4

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c = shape.channels
        heads = draw.choice([h for h in (1, 2, 4) if c % h == 0])
        self.how = draw.choice(["self", "cross", "mask", "weights", "time"])
        self.first, self.mixes = self.how == "time", self.how == "weights"
        inner = draw.choice([None, None, width(draw)]) if self.how == "cross" else None
        self.attention = nn.MultiheadAttention(
            c,
            heads,
            batch_first=not self.first,
            bias=draw.random() < 0.7,
            kdim=inner,
            vdim=inner,
            add_bias_kv=draw.random() < 0.1,
        )
        self.norm = norm(draw, c)
        self.memory = nn.Linear(c, inner or c)

    def forward(self, x: Tensor) -> Any:
        y = self.norm(x)
        if self.how == "self":
            return x + self.attention(y, y, y, need_weights=False)[0]
        if self.how == "weights":
            out, weights = self.attention(y, y, y)
            return x + out * weights.amax(-1, keepdim=True)
        if self.how == "mask":
            mask = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).triu(1)
            return x + self.attention(y, y, y, attn_mask=mask)[0]
        if self.how == "time":
            y = y.transpose(0, 1)
            return x + self.attention(y, y, y)[0].transpose(0, 1)
        memory = self.memory(x).relu()
        return x + self.attention(y, memory, memory)[0]


class Packed(_Sequence):
    """Attention with one layer for query, key and value."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c = shape.channels
        self.heads, self.width = draw.choice([2, 3, 4]), draw.choice([2, 3])
        self.how = draw.choice(["five", "chunk", "split", "last", "unbind"])
        inner = self.heads * self.width
        self.inner = inner
        self.qkv, self.out = nn.Linear(c, 3 * inner), nn.Linear(inner, c)
        self.fused = draw.random() < 0.5
        self.factor = self.width**-0.5

    def forward(self, x: Tensor) -> Any:
        b, t, _ = x.shape
        qkv = self.qkv(x)
        if self.how == "five":
            qkv = qkv.reshape(b, t, 3, self.heads, self.width).permute(2, 0, 3, 1, 4)
            q, k, v = qkv[0], qkv[1], qkv[2]
        elif self.how == "unbind":
            q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).unbind(2)
            q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        elif self.how == "last":
            qkv = qkv.view(b, t, self.heads, 3 * self.width).transpose(1, 2)
            q, k, v = qkv.chunk(3, dim=-1)
        else:
            chunk = self.how == "chunk"
            parts = qkv.chunk(3, dim=-1) if chunk else qkv.split(self.inner, dim=2)
            q, k, v = (p.view(b, t, self.heads, -1).transpose(1, 2) for p in parts)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = ((q * self.factor) @ k.transpose(-2, -1)).softmax(-1) @ v
        return x + self.out(y.transpose(1, 2).reshape(b, t, -1))


class Separate(_Sequence):
    """Attention with a layer each, perhaps with fewer keys, biases, masks or windows."""

    multiple = 2

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c, t = shape.channels, shape.side
        kinds = ["plain", "grouped", "many", "bias", "table", "einsum", "masked", "linear", "norm"]
        self.how = draw.choice(kinds)
        self.heads, self.width, self.wide = 4, draw.choice([2, 3]), draw.choice([2, 4])
        self.few = {"grouped": 2, "many": draw.choice([1, 2])}.get(self.how, 4)
        self.q = nn.Linear(c, self.heads * self.width)
        self.k = nn.Linear(c, self.few * self.width, bias=False)
        self.v = nn.Linear(c, self.few * self.wide)
        self.out = nn.Linear(self.heads * self.wide, c)
        self.bias = nn.Parameter(torch.randn(self.heads, t, t))
        self.table = nn.Parameter(torch.randn(2 * t - 1, self.heads))
        places = torch.arange(t)
        self.register_buffer("places", (places[:, None] - places[None, :] + t - 1).view(-1))
        self.q_norm, self.k_norm = nn.RMSNorm(self.width), nn.LayerNorm(self.width)

    places: Tensor

    def forward(self, x: Tensor) -> Any:
        b, t, _ = x.shape
        q = self.q(x).view(b, t, self.heads, self.width).transpose(1, 2)
        k = self.k(x).view(b, t, self.few, -1).transpose(1, 2)
        v = self.v(x).view(b, t, self.few, self.wide).transpose(1, 2)
        if self.how == "norm":
            q, k = self.q_norm(q), self.k_norm(k)
        if self.how == "grouped":
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        elif self.how == "einsum":
            scores = torch.einsum("bhid,bhjd->bhij", q, k).softmax(-1)
            y = torch.einsum("bhij,bhjd->bhid", scores, v)
        elif self.how == "linear":
            y = F.elu(q) @ (F.softplus(k).transpose(-2, -1) @ v)
        elif self.how == "bias":
            y = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias, scale=0.4)
        elif self.how == "masked":
            keep = torch.ones(t, t, dtype=torch.bool).tril()
            scores = (q @ k.mT).masked_fill(~keep, -1e4)
            y = scores.softmax(dim=-1).matmul(v)
        else:
            if self.how == "many":
                k = k.repeat_interleave(self.heads // self.few, dim=1)
                v = v.repeat_interleave(self.heads // self.few, dim=1)
            scores = q @ k.transpose(2, 3) / 1.5
            if self.how == "table":
                scores = scores + self.table[self.places].view(t, t, -1).permute(2, 0, 1)[None]
            y = F.softmax(scores, dim=-1) @ v
        return x + self.out(y.transpose(1, 2).flatten(2))


class Windowed(_Sequence):
    """Attention within windows of two places."""

    @classmethod
    def fits(cls, shape: Shape) -> bool:
        return shape.side % 2 == 0

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c = shape.channels
        self.heads, self.window = 2, 2
        self.qkv, self.out = nn.Linear(c, 3 * 8), nn.Linear(8, c)
        self.shift = draw.choice([0, 1])

    def forward(self, x: Tensor) -> Any:
        b, t, c = x.shape
        y = torch.roll(x, -self.shift, 1) if self.shift else x
        y = y.view(b, t // self.window, self.window, c).reshape(-1, self.window, c)
        qkv = self.qkv(y).view(y.shape[0], self.window, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        y = F.scaled_dot_product_attention(q, k, v, scale=0.5)
        y = self.out(y.transpose(1, 2).flatten(2)).view(b, t, c)
        return x + (torch.roll(y, self.shift, 1) if self.shift else y)


class Recurrent(_Sequence):
    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        n, both, deep = width(draw), draw.random() < 0.4, draw.choice([1, 1, 2])
        kind = draw.choice([nn.LSTM, nn.LSTM, nn.GRU, nn.RNN])
        options: dict[str, Any] = {"bias": draw.random() < 0.7}
        if kind is nn.LSTM and draw.random() < 0.4:
            options["proj_size"] = draw.choice([2, 3])
        self.time_first, self.gate = draw.random() < 0.2, draw.random() < 0.3
        self.layer = kind(
            shape.channels,
            n,
            deep,
            batch_first=not self.time_first,
            bidirectional=both,
            **options,
        )
        self.makes = Shape("sequence", options.get("proj_size", n) * (1 + both), shape.side)

    def forward(self, x: Tensor) -> Any:
        if self.time_first:
            return self.layer(x.transpose(0, 1))[0].transpose(0, 1)
        y, last = self.layer(x)
        last = last[0] if isinstance(last, tuple) else last
        if self.gate and not self.layer.bidirectional:
            return y * last[-1].unsqueeze(1).sigmoid()
        return y


class Cell(_Sequence):
    """A cell that is called for each place."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        n = width(draw)
        self.how = draw.choice(["lstm", "gru", "rnn"])
        kind: Any = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}[self.how]
        self.cell, self.size = kind(shape.channels, n), n
        self.own = draw.random() < 0.5
        self.makes = Shape("sequence", n, shape.side)

    def forward(self, x: Tensor) -> Any:
        start = x.new_zeros(x.shape[0], self.size) if self.own else None
        state: Any = (start, start) if self.own and self.how == "lstm" else start
        found = []
        for place in x.unbind(1):
            state = self.cell(place, state)
            found.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(found, dim=1)


class Mixer(_Sequence):
    """Places are mixed, channel by channel."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c, t = shape.channels, shape.side
        self.how = draw.choice(["linear", "conv", "depthwise", "gate", "matmul"])
        self.norm = norm(draw, c)
        self.one, self.two = nn.Linear(t, 5), nn.Linear(5, t)
        self.conv, self.depth = nn.Conv1d(c, c, 3, padding=1), nn.Conv1d(c, c, 1, groups=c)
        self.mix = nn.Parameter(torch.randn(t, t))

    def forward(self, x: Tensor) -> Any:
        y = self.norm(x)
        if self.how == "matmul":
            return x + self.mix @ y
        y = y.transpose(1, 2)
        if self.how == "linear":
            y = self.two(F.gelu(self.one(y)))
        elif self.how == "gate":
            y = y * self.two(self.one(y)).sigmoid()
        else:
            y = (self.conv if self.how == "conv" else self.depth)(y)
        return x + y.transpose(1, 2)


class Tied(_Sequence):
    """A weight is used there and back."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.how = draw.choice(["back", "twice", "other"])
        c, n = shape.channels, width(draw)
        self.there, self.square = nn.Linear(c, n), nn.Linear(c, c)
        self.other = nn.Linear(c, n)
        self.other.weight = self.there.weight
        self.norm = norm(draw, c)
        self.makes = Shape("sequence", n if self.how == "other" else c, shape.side)

    def forward(self, x: Tensor) -> Any:
        if self.how == "back":
            return F.linear(self.there(self.norm(x)).relu(), self.there.weight.t())
        if self.how == "twice":
            return self.square(self.square(x).tanh())
        return self.there(x) + self.other(self.norm(x)).sigmoid()


class HeadNorm(_Sequence):
    """Channels are seen as heads, and each head is normalized."""

    multiple, least = 2, 4

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.heads = 2
        self.how = draw.choice(["layer", "group", "softmax", "scale", "swap"])
        self.norm = nn.LayerNorm(shape.channels // 2, elementwise_affine=draw.random() < 0.5)
        self.scale = nn.Parameter(torch.ones(self.heads, 1))
        self.group = nn.GroupNorm(2, shape.channels)
        self.mixes = self.how == "softmax"

    def forward(self, x: Tensor) -> Any:
        b, t, c = x.shape
        if self.how == "group":
            return self.group(x.mT).mT
        y = x.view(b, t, self.heads, c // self.heads)
        if self.how == "layer":
            y = self.norm(y)
        elif self.how == "softmax":
            y = y.softmax(-1)
        elif self.how == "scale":
            y = y * self.scale
        else:
            y = y.transpose(2, 3)
        return y.reshape(b, t, c) if self.how != "scale" else y.flatten(-2)


class Rotary(_Sequence):
    """Pairs of channels are turned by an angle of the place."""

    multiple = 4

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.how = draw.choice(["halves", "pairs"])
        self.norm = norm(draw, shape.channels)

    def forward(self, x: Tensor) -> Any:
        angle = torch.arange(x.shape[1], dtype=x.dtype)[:, None]
        cos, sin = angle.cos(), angle.sin()
        if self.how == "halves":
            a, b = x[..., : x.shape[-1] // 2], x[..., x.shape[-1] // 2 :]
            turned = torch.cat((-b, a), dim=-1)
        else:
            even, odd = x[..., ::2], x[..., 1::2]
            turned = torch.stack((-odd, even), dim=-1).flatten(-2)
        return self.norm(x * cos + turned * sin)


class Shift(_Sequence):
    """Places are moved, for all channels or for some."""

    least = 3

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.how = draw.choice(["pad", "roll", "flip", "part"])
        self.part = draw.randint(1, shape.channels - 1)
        self.mix = nn.Parameter(torch.rand(shape.channels))

    def forward(self, x: Tensor) -> Any:
        if self.how == "pad":
            before = F.pad(x, (0, 0, 1, 0))[:, :-1]
            return x * self.mix + before * (1 - self.mix)
        if self.how == "roll":
            return torch.lerp(x, x.roll(1, dims=1), self.mix)
        if self.how == "flip":
            return x + self.mix * x.flip(1)
        return torch.cat([x[..., : self.part].roll(1, 1), x[..., self.part :]], dim=-1)


class Experts(_Sequence):
    """A mixture of experts, all of which are computed."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c, n = shape.channels, width(draw)
        self.how = draw.choice(["stack", "einsum", "bmm"])
        self.gate = nn.Linear(c, 3)
        self.experts = nn.ModuleList(nn.Linear(c, n) for _ in range(3))
        self.one = nn.Parameter(torch.randn(3, c, n) / 3)
        self.two = nn.Parameter(torch.randn(3, n, c) / 3)
        self.mixes = True
        self.makes = Shape("sequence", n if self.how == "stack" else c, shape.side)

    def forward(self, x: Tensor) -> Any:
        weights = self.gate(x).softmax(-1)
        if self.how == "stack":
            many = torch.stack([expert(x) for expert in self.experts], dim=-2)
            return (many * weights.unsqueeze(-1)).sum(-2)
        if self.how == "einsum":
            inner = F.relu(torch.einsum("btc,ecn->bten", x, self.one))
            return torch.einsum("bten,enc,bte->btc", inner, self.two, weights)
        b, t, c = x.shape
        flat = x.reshape(1, b * t, c).expand(3, -1, -1)
        out = torch.bmm(torch.bmm(flat, self.one).relu(), self.two).view(3, b, t, c)
        return (out * weights.permute(2, 0, 1).unsqueeze(-1)).sum(0)


class Queries(_Sequence):
    """Attention of learned queries, which makes another number of places."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c = shape.channels
        self.queries = nn.Parameter(torch.randn(4, c))
        self.k, self.v = nn.Linear(c, c), nn.Linear(c, width(draw))
        self.mixes = True
        self.makes = Shape("sequence", self.v.out_features, 4)

    def forward(self, x: Tensor) -> Any:
        scores = torch.matmul(self.queries, self.k(x).transpose(1, 2)).softmax(-1)
        return scores @ self.v(x)


class BareHeads(_Sequence):
    """Attention whose weights are bare and have a dimension of heads."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c, h, d = shape.channels, draw.choice([2, 3]), draw.choice([2, 4])
        self.q = nn.Parameter(torch.randn(h, c, d) / 3)
        self.k = nn.Parameter(torch.randn(h, c, d) / 3)
        self.v = nn.Parameter(torch.randn(c, h, d) / 3)
        self.out = nn.Parameter(torch.randn(h, d, c) / 3)
        self.temperature = nn.Parameter(torch.ones(h, 1, 1))

    def forward(self, x: Tensor) -> Any:
        q = torch.einsum("btc,hcd->bhtd", x, self.q)
        k = x.unsqueeze(1) @ self.k
        v = torch.tensordot(x, self.v, dims=1).permute(0, 2, 1, 3)
        weights = (torch.einsum("bhid,bhjd->bhij", q, k) * self.temperature).softmax(-1)
        return x + torch.einsum("bhtd,hdc->btc", weights @ v, self.out)


class Encoder(_Sequence):
    """`nn.TransformerEncoderLayer`."""

    multiple, least = 2, 4

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        first = draw.random() < 0.5
        self.layer = nn.TransformerEncoderLayer(
            shape.channels, 2, 7, batch_first=True, norm_first=first, activation="gelu"
        )

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)


class Constants(_Sequence):
    """Buffers and learned states."""

    mean: Tensor
    keep: Tensor

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c, n = shape.channels, width(draw)
        self.how = draw.choice(["mean", "mask", "start", "where", "inplace", "list"])
        self.register_buffer("mean", torch.randn(1, 1, c))
        self.register_buffer("keep", torch.rand(c) > 0.3)
        self.start = nn.Parameter(torch.randn(1, 1, n))
        self.layer = nn.GRU(c, n, batch_first=True)
        self.parts = nn.ParameterList(nn.Parameter(torch.randn(c)) for _ in range(2))
        self.makes = Shape("sequence", n if self.how == "start" else c, shape.side)

    def forward(self, x: Tensor) -> Any:
        if self.how == "mean":
            return (x - self.mean) * self.mean.square().add(0.1).rsqrt()
        if self.how == "mask":
            return x.masked_fill(~self.keep, 0.0) + x.tanh() * self.keep
        if self.how == "where":
            return torch.where(self.keep & (x > 0), x, self.mean * 0.5)
        if self.how == "start":
            return self.layer(x, self.start.expand(-1, x.shape[0], -1).contiguous())[0]
        if self.how == "list":
            return torch.addcmul(self.parts[0], x, self.parts[1])
        y = x.clone()
        y[:, 0] *= 2
        y[:, 1:].add_(x[:, :-1]).sub_(self.mean)
        return y.clamp_(-3, 3)


class DividedHeads(_Sequence):
    """Attention that divides its width by its heads in the forward pass."""

    multiple, least = 2, 4

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        c = shape.channels
        self.num_heads = 2
        self.head_dim = c // 2
        self.how = draw.choice(["size", "dim", "own"])
        self.q, self.k, self.v = nn.Linear(c, c), nn.Linear(c, c), nn.Linear(c, c)
        self.proj = nn.Linear(c, c)

    def forward(self, x: Tensor) -> Any:
        b, t, c = x.shape
        q, k, v = self.q(x), self.k(x), self.v(x)
        if self.how == "size":
            size = (b, t, self.num_heads, q.shape[-1] // self.num_heads)
        elif self.how == "dim":
            size = (b, t, -1, self.head_dim)
        else:
            size = (b, t, self.num_heads, c // self.num_heads)
        q, k, v = (each.reshape(size).swapaxes(1, 2) for each in (q, k, v))
        y = (torch.matmul(q, k.transpose(-1, -2)) * 0.3).softmax(-1).matmul(v)
        return x + self.proj(y.swapaxes(1, 2).flatten(2))


class OneAfterTheOther(_Sequence):
    """What has to be refused."""

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__(draw, shape)
        self.how = draw.choice(["root", "median", "read"])
        self.register_buffer("factor", torch.tensor(0.5))

    factor: Tensor

    def forward(self, x: Tensor) -> Any:
        if self.how == "root":
            return x / x.shape[-1] ** 0.5
        if self.how == "median":
            return x - x.median(dim=-1, keepdim=True).values
        return x * self.factor.item()
