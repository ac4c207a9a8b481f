"""What the blocks of a random network have in common."""

import random
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

Draw = random.Random
Kind = Literal["image", "sequence", "vector"]


@dataclass(frozen=True)
class Shape:
    """What flows between blocks.

    Attributes:
        kind: `image` is `[B, C, H, H]`, `sequence` `[B, T, C]`, `vector` `[B, C]`.
        channels: C.
        side: H or T; 1 of a vector.
    """

    kind: Kind
    channels: int
    side: int = 1


class Block(nn.Module):
    """A part of a random network.

    Attributes:
        makes: The shape that it returns.
        mixes: Whether it computes over positions that may be removed in a way in which a zero is
            not the same as nothing: a mean, a softmax, a norm with a mean in it.
    """

    takes: ClassVar[Kind]
    multiple: ClassVar[int] = 1
    least: ClassVar[int] = 2
    least_side: ClassVar[int] = 1
    makes: Shape

    def __init__(self, draw: Draw, shape: Shape) -> None:
        super().__init__()
        self.makes = shape
        self.mixes = False

    @classmethod
    def fits(cls, shape: Shape) -> bool:
        """Return whether the block can take this shape."""
        return (
            shape.channels % cls.multiple == 0
            and shape.channels >= cls.least
            and shape.side >= cls.least_side
        )

    @classmethod
    def name(cls) -> str:
        """Return what the block is called."""
        return cls.__name__


def all_blocks(kind: Kind) -> list[type[Block]]:
    """Return the blocks that take this kind, in the order of their definition."""
    found, queue = [], [Block]
    while queue:
        parent = queue.pop(0)
        for each in parent.__subclasses__():
            queue.append(each)
            if getattr(each, "takes", None) == kind and not each.__name__.startswith("_"):
                found.append(each)
    return found


def width(draw: Draw) -> int:
    """Return a number of channels."""
    return draw.choice([4, 6, 8, 12])


def activation(draw: Draw, channels: int) -> nn.Module:
    """Return a function of each element; zero may become another value."""
    makers: list[Any] = [
        nn.ReLU,
        nn.GELU,
        nn.SiLU,
        nn.Tanh,
        nn.Sigmoid,
        nn.Hardswish,
        nn.ELU,
        nn.LeakyReLU,
        nn.Softplus,
        nn.Mish,
        nn.ReLU6,
        nn.Identity,
        nn.Dropout,
        lambda: nn.PReLU(channels),
        nn.PReLU,
        Shifted,
    ]
    made: nn.Module = draw.choice(makers)()
    return made


class Shifted(nn.Module):
    """Arithmetic with numbers and with itself."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x > 0.1, x * 0.5 + 1, x.abs().clamp(max=2) - x.exp().rsqrt() / 3)
