"""Random networks: blocks of all that a network may do to channels, put together by chance.

`RandomNetwork(seed)` is always the same network for the same seed. A program of blocks is drawn;
each takes an image `[B, C, H, W]`, a sequence `[B, T, C]` or a vector `[B, C]` and says what it
makes. The blocks are written as people write them: sizes come from shapes, from attributes, and
now and then from a number in the text, which the graph has to refuse.
"""

import random
from typing import Any

import torch
from torch import Tensor, nn

from tests.graph.random_blocks import Block, Draw, Shape, all_blocks
from tests.graph.random_conversions import to_vector
from tests.graph.random_image_blocks import Convolution
from tests.graph.random_sequence_blocks import HandRms, Positions
from tests.graph.random_vector_blocks import Hidden

WORDS = 9
WIDEST = 24


class RandomNetwork(nn.Module):
    """A network of a few random blocks, and a last layer.

    Args:
        seed: What is drawn follows from it.
        blocks: How many blocks there are between the first and the last layer.
    """

    def __init__(self, seed: int, blocks: int = 4) -> None:
        super().__init__()
        draw = random.Random(seed)
        torch.manual_seed(seed)
        starts = ["image", "image", "image", "sequence", "sequence", "words", "vector"]
        kind, steps = draw.choice(starts), draw.choice([4, 6])
        self.table: nn.Embedding | None = None
        if kind == "words":
            self.table = nn.Embedding(WORDS, draw.choice([4, 6, 8]))
            shape = Shape("sequence", self.table.embedding_dim, steps)
        elif kind == "image":
            shape = Shape("image", 3, 6)
        else:
            shape = Shape("sequence", 5, steps) if kind == "sequence" else Shape("vector", 5)
        self.example = _example(kind, steps, seed)
        program: list[Block] = []
        (x,) = self.example
        x = x if self.table is None else self.table(x)

        def append(kinds: list[type[Block]]) -> None:
            nonlocal shape, x
            block, x = _drawn(draw, kinds, shape, x)
            program.append(block)
            shape = block.makes

        if kind != "words":
            append([{"image": Convolution, "sequence": Positions, "vector": Hidden}[shape.kind]])
        for _ in range(draw.randint(1, blocks)):
            append(all_blocks(shape.kind))
        if self.table is None or shape.kind != "sequence" or draw.random() < 0.5:
            self.tied = False
            if shape.kind != "vector":
                append([to_vector(shape.kind)])
            self.last = nn.Linear(shape.channels, 3)
        else:
            self.tied = True
            self.last = nn.Linear(shape.channels, self.table.embedding_dim)
        self.program = nn.ModuleList(program)
        _drop_unused_(self)

    def forward(self, x: Tensor) -> Any:
        if self.table is not None:
            x = self.table(x)
        for block in self.program:
            x = block(x)
        x = self.last(x)
        return x @ self.table.weight.t() if self.table is not None and self.tied else x

    @property
    def mixes(self) -> bool:
        """Whether a channel of zeros may differ from none, because a mean goes over channels."""
        return any(
            isinstance(module, nn.LayerNorm | nn.RMSNorm | HandRms)
            or (isinstance(module, nn.GroupNorm) and module.num_groups < module.num_channels)
            or (isinstance(module, Block) and module.mixes)
            for module in self.modules()
        )

    def describe(self) -> str:
        """Return the names of the blocks, in order."""
        return " ".join(block.name() for block in self.program if isinstance(block, Block))


def _drop_unused_(model: RandomNetwork) -> None:
    """Take out the layers and weights that the way which was drawn does not come by."""
    model(*model.example).sum().backward()
    used = {id(p) for p in model.parameters() if p.grad is not None}
    for module in list(model.program.modules()):
        for name, child in list(module.named_children()):
            own = {id(p) for p in child.parameters()}
            if not isinstance(child, Block) and own and own.isdisjoint(used):
                delattr(module, name)
        if isinstance(module, Block):
            for name, weight in list(module.named_parameters(recurse=False)):
                if id(weight) not in used:
                    delattr(module, name)
    model.zero_grad()


def _drawn(draw: Draw, kinds: list[type[Block]], shape: Shape, x: Tensor) -> tuple[Block, Tensor]:
    """Return a block that can take `x`, and what it makes of it."""
    while True:
        kind = draw.choice(kinds)
        if not kind.fits(shape):
            continue
        block = kind(draw, shape)
        if block.makes.channels > WIDEST or block.makes.side > 12:
            continue
        try:
            y = block(x)
        except (RuntimeError, ValueError) as error:
            # A view of another order in memory, a normalization over a single pixel: draw again.
            if not any(words in str(error) for words in ("view size", "more than 1 spatial")):
                raise
            continue
        if not y.isfinite().all():
            continue
        c, s = block.makes.channels, block.makes.side
        size = {"image": (c, s, s), "sequence": (s, c), "vector": (c,)}[block.makes.kind]
        assert y.shape[1:] == size, (block.name(), shape, y.shape)
        return block, y


def _example(kind: str, steps: int, seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    if kind == "words":
        return (torch.randint(0, WORDS, (2, steps), generator=generator),)
    sizes = {"image": (2, 3, 6, 6), "sequence": (2, steps, 5), "vector": (3, 5)}[kind]
    return (torch.randn(sizes, generator=generator),)
