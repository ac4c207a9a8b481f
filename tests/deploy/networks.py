"""Tiny networks of every kind that is deployed, with rows of data for each."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tests.deploy.row_task import Inputs, RowTask

ROWS = 20


class Images(nn.Module):
    """Convolution and batch normalization."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.conv(image)).relu().mean((2, 3)))
        return out


class Recurrent(nn.Module):
    """An LSTM over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 6, batch_first=True, bidirectional=True)
        self.head = nn.Linear(12, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.lstm(self.embed(tokens))[0][:, -1])
        return out


class Attention(nn.Module):
    """A transformer encoder over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.encode = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        out: Tensor = self.head(self.encode(self.embed(tokens)).mean(1))
        return out


class Recommender(nn.Module):
    """Two inputs of whole numbers: a bag of items and a user."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(10, 4, mode="mean")
        self.user = nn.Embedding(10, 4)
        self.score = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))

    def forward(self, items: Tensor, user: Tensor) -> Tensor:
        out: Tensor = self.score(torch.cat([self.bag(items), self.user(user)], 1))
        return out


@dataclass
class WithLogits:
    logits: Tensor
    hidden: Tensor


class Keywords(nn.Module):
    """Called with keywords; returns an object with logits."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> WithLogits:
        mask = attention_mask.unsqueeze(-1).float()
        hidden = (self.embed(input_ids) * mask).sum(1) / mask.sum(1)
        return WithLogits(self.head(hidden), hidden)


class TwoHeads(nn.Module):
    """Returns a dict by task name, of which one is also the name of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(6, 8)
        self.heads = nn.ModuleDict({"digit": nn.Linear(8, 3), "is odd": nn.Linear(8, 2)})

    def forward(self, digit: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            hidden = self.trunk(digit).relu()
        return {name: head(hidden) for name, head in self.heads.items()}


class Tutorial(nn.Module):
    """The network of a well-known tutorial: `view(-1, 64 * 6 * 6)`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 32, 3), nn.Conv2d(32, 64, 3)
        self.fc1, self.fc2 = nn.Linear(2304, 100), nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.conv1(x).relu()).relu()
        x = x.view(-1, 64 * 6 * 6)
        out: Tensor = self.fc2(self.fc1(x).relu())
        return out


class Features(nn.Module):
    """A linear layer, and something done with its inputs and outputs."""

    def __init__(self, change: Callable[[Any, Tensor, Tensor], Any] | None = None) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 3)
        self.change = change
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x)
        if self.change is not None:
            out = self.change(self, x, out)
        return out


def rows_of(name: str) -> Inputs:
    """Return 20 rows of what the network of this name takes."""
    made: dict[str, Inputs] = {
        "images": (normal(ROWS, 1, 8, 8),),
        "recurrent": (whole(20, ROWS, 5),),
        "attention": (whole(20, ROWS, 5),),
        "recommender": (whole(10, ROWS, 4), whole(10, ROWS)),
        "keywords": {
            "input_ids": whole(20, ROWS, 5),
            "attention_mask": (torch.arange(5) < whole(5, ROWS, 1) + 1).long(),
        },
        "two_heads": (normal(ROWS, 6),),
        "tutorial": (normal(ROWS, 1, 10, 10),),
        "features": (normal(ROWS, 6),),
    }
    return made[name]


def network(name: str) -> nn.Module:
    """Return the network of this name, with batch statistics that are not trivial."""
    classes: dict[str, type[nn.Module]] = {
        "images": Images,
        "recurrent": Recurrent,
        "attention": Attention,
        "recommender": Recommender,
        "keywords": Keywords,
        "two_heads": TwoHeads,
        "tutorial": Tutorial,
        "features": Features,
    }
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = classes[name]()
        if name == "images":
            model(rows_of(name)[0])  # type: ignore[index]
    return model


def task_of(name: str) -> RowTask:
    """Return the task of this name."""
    targets: Any = whole(3, ROWS, seed=3)
    if name == "two_heads":
        targets = {"digit": targets, "is odd": targets % 2}
    return RowTask(inputs=rows_of(name), targets=targets)


def normal(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def whole(below: int, *shape: int, seed: int = 2) -> Tensor:
    return torch.randint(0, below, shape, generator=torch.Generator().manual_seed(seed))
