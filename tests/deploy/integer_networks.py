"""Layers with integer weights and inputs, made by hand of the operations of `overhaul.core`."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from overhaul.core import dequantize, pack4, quantize, unpack4

STEP = 8 / 255
"""What one integer of an input stands for: they reach from -4 to 4."""


class Rounded(nn.Module):
    """Round to unsigned integers of eight bits and back."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, *, positive: bool = False) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(STEP))
        self.register_buffer("zero_point", torch.tensor(0 if positive else 128).byte())

    def forward(self, x: Tensor) -> Tensor:
        return dequantize(quantize(x, self.scale, self.zero_point), self.scale, self.zero_point)


class Weight(nn.Module):
    """Weights as integers: of eight bits by channel, or of four bits in blocks of a row."""

    q: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, weight: Tensor, *, axis: int = 0, block: int = 0, shift: int = 0) -> None:
        super().__init__()
        self.axis, self.block, self.size = axis, block, weight.shape[-1]
        if block:
            rows = F.pad(weight, (0, -self.size % block)).unflatten(-1, (-1, block))
            scale = rows.abs().amax(-1) / 6
            q = (rows / scale[..., None]).round().add(shift).flatten(-2)[..., : self.size]
            self.register_buffer("q", pack4(q.char()))
        else:
            others = [dim for dim in range(weight.ndim) if dim != axis]
            scale = weight.abs().amax(others) / 126
            q = quantize(weight, scale, torch.full_like(scale, shift).char(), axis)
            self.register_buffer("q", q)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.full_like(scale, shift).char())

    def forward(self) -> Tensor:
        if self.block:
            integers = unpack4(self.q, self.size)
            return dequantize(integers, self.scale, self.zero_point, 1, self.block)
        return dequantize(self.q, self.scale, self.zero_point, self.axis)


class IntegerLinear(nn.Module):
    """A linear layer."""

    def __init__(self, inputs: int, outputs: int, *, block: int = 0, shift: int = 0) -> None:
        super().__init__()
        linear = nn.Linear(inputs, outputs)
        self.weight, self.bias = Weight(linear.weight.data, block=block, shift=shift), linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight(), self.bias)


class IntegerConv(nn.Module):
    """A convolution or a transposed one, of two dimensions."""

    def __init__(self, conv: nn.Conv2d | nn.ConvTranspose2d) -> None:
        super().__init__()
        transposed = isinstance(conv, nn.ConvTranspose2d)
        self.weight = Weight(conv.weight.data, axis=int(transposed and conv.groups == 1))
        self.bias, self.stride, self.padding, self.groups = (
            *(conv.bias, conv.stride, conv.padding, conv.groups),
        )
        self.operation: Callable[..., Tensor] = F.conv_transpose2d if transposed else F.conv2d

    def forward(self, x: Tensor) -> Tensor:
        return self.operation(
            x, self.weight(), self.bias, self.stride, self.padding, groups=self.groups
        )


class IntegerEmbedding(nn.Module):
    """A table of which few rows are read."""

    def __init__(self, *, block: int = 0) -> None:
        super().__init__()
        self.table, self.head = Weight(torch.randn(30, 32), block=block), nn.Linear(32, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(F.embedding(tokens, self.table()).mean(1))
        return out


class IntegerLSTM(nn.Module):
    """A recurrent layer whose weights are integers."""

    def __init__(self, *, bidirectional: bool = True) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 6, batch_first=True, bidirectional=bidirectional)
        self.names = list(self.lstm._flat_weights_names)
        matrices = {n: getattr(self.lstm, n).data for n in self.names if n.startswith("weight")}
        self.weights = nn.ModuleDict({n: Weight(matrix) for n, matrix in matrices.items()})

    def forward(self, x: Tensor) -> Tensor:
        weights = [
            self.weights[n]() if n in self.weights else getattr(self.lstm, n) for n in self.names
        ]
        both = self.lstm.bidirectional
        zeros = x.new_zeros(1 + both, x.shape[0], 6)
        out: Tensor = torch._VF.lstm(x, (zeros, zeros), weights, True, 1, 0.0, False, both, True)[0]
        return out[:, -1]


class HalfLinear(nn.Module):
    """A linear layer whose weights are real numbers of 16 bits."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.randn(24, 16).half())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(torch.float32))


def static_cnn() -> nn.Module:
    """Convolutions and a linear layer all of whose inputs are integers."""
    return nn.Sequential(
        Rounded(),
        IntegerConv(nn.Conv2d(3, 8, 3, padding=1)),
        nn.ReLU(),
        Rounded(positive=True),
        IntegerConv(nn.Conv2d(8, 8, 3, groups=8)),
        nn.ReLU(),
        Rounded(positive=True),
        IntegerConv(nn.Conv2d(8, 8, 3, groups=2)),
        Rounded(),
        nn.Flatten(),
        IntegerLinear(8 * 4 * 4, 5),
    )


class IntegerShortcut(nn.Module):
    """A convolution beside a shortcut that is cut and padded: both read the same integers."""

    def __init__(self) -> None:
        super().__init__()
        self.before = nn.Sequential(Rounded(), IntegerConv(nn.Conv2d(3, 8, 3, padding=1)))
        self.shared = nn.Sequential(nn.ReLU(), Rounded(positive=True))
        self.conv = IntegerConv(nn.Conv2d(8, 16, 3, stride=2, padding=1))
        self.after, self.head = Rounded(), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.shared(self.before(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        out: Tensor = self.head((self.after(self.conv(x)) + shortcut).relu().mean((2, 3)))
        return out


INTEGER_NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "static_cnn": (static_cnn, (3, 8, 8)),
    "static_shortcut": (IntegerShortcut, (3, 8, 8)),
    "static_linear": (lambda: nn.Sequential(Rounded(), IntegerLinear(16, 8)), (16,)),
    "weights": (lambda: IntegerLinear(40, 24), (40,)),
    "shifted_weights": (lambda: IntegerLinear(40, 24, shift=1), (40,)),
    "weights_of_sequences": (lambda: IntegerLinear(40, 24), (4, 40)),
    "blocks": (lambda: IntegerLinear(64, 24, block=32), (64,)),
    "shifted_blocks": (lambda: IntegerLinear(64, 24, block=32, shift=1), (64,)),
    "blocks_of_sequences": (lambda: IntegerLinear(64, 24, block=16), (4, 64)),
    "partial_block": (lambda: IntegerLinear(21, 7, block=16, shift=1), (21,)),
    "odd_block": (lambda: IntegerLinear(20, 8, block=5), (20,)),
    "odd_partial_block": (lambda: IntegerLinear(21, 7, block=5, shift=1), (21,)),
    "conv_weights": (lambda: IntegerConv(nn.Conv2d(3, 4, 3)), (3, 6, 6)),
    "static_transposed": (
        lambda: nn.Sequential(Rounded(), IntegerConv(nn.ConvTranspose2d(4, 6, 3, stride=2))),
        (4, 5, 5),
    ),
    "transposed_groups": (
        lambda: IntegerConv(nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2)),
        (4, 5, 5),
    ),
    "embedding": (IntegerEmbedding, ()),
    "embedding_blocks": (lambda: IntegerEmbedding(block=16), ()),
    "lstm": (IntegerLSTM, (5, 8)),
    "half": (HalfLinear, (16,)),
}
"""How each is made, and the shape of a sample; an embedding takes five whole numbers below 30."""


def integer_network(name: str) -> tuple[nn.Module, Tensor]:
    """Return a network and 64 samples for it."""
    make, shape = INTEGER_NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make().eval()
        x = torch.randn(64, *shape) if shape else torch.randint(0, 30, (64, 5))
    return model.requires_grad_(False), x
