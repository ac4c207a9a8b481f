"""Some samples of a split, where all would take too long."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from overhaul.core import Batch, Split


class Few(Split):
    """Some samples of a split, drawn at random."""

    def __init__(self, whole: Split, count: int) -> None:
        self.whole, self.name = whole, whole.name
        drawn = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))
        self.places = drawn[:count].sort().values

    def __len__(self) -> int:
        return len(self.places)

    def read(self, indices: Tensor) -> Batch:
        return replace(self.whole.read(self.places[indices]), indices=indices)

    def batches(self, index_batches: list[Tensor], workers: int = 0) -> Iterator[Batch]:
        there = self.whole.batches([self.places[each] for each in index_batches], workers)
        for indices, batch in zip(index_batches, there, strict=True):
            yield replace(batch, indices=indices)

    @property
    def fingerprint(self) -> str:
        return f"{self.whole.fingerprint}:{len(self)}"
