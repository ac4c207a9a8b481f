"""`DataSplit`: one part of the data of a task, read in batches by position."""

from collections.abc import Iterator

import torch
from torch import Tensor

from overhaul.core import Batch, Split, SplitName
from overhaul.tasks._array_samples import ArraySamples
from overhaul.tasks._normalize import Normalize, pixels_as_floats
from overhaul.tasks._samples import Samples


class DataSplit(Split):
    """One part of the data of a task, read in batches by position.

    Args:
        name: Which part.
        samples: Where its samples are read from.
        positions: Which of these samples belong to it, `[N]`; None for all of them.
        preprocess: What is done to each batch.
        fingerprint: A hash of every sample in order.
    """

    def __init__(
        self,
        name: SplitName,
        samples: Samples,
        positions: Tensor | None,
        preprocess: Normalize | None,
        fingerprint: str,
    ) -> None:
        """Hold where the samples are; nothing is read yet."""
        self.name = name
        self._samples, self._positions_N = samples, positions
        self._preprocess, self._fingerprint = preprocess, fingerprint

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._samples) if self._positions_N is None else len(self._positions_N)

    def read(self, indices: Tensor) -> Batch:
        """Return the samples at these positions, `[B]`, as one batch on the CPU."""
        return next(self.batches([indices]))

    def batches(self, index_batches: list[Tensor], workers: int = 0) -> Iterator[Batch]:
        """Yield one batch for each tensor of positions, in that order.

        Args:
            index_batches: The positions of each batch.
            workers: Processes that read ahead; 0 reads in this one. Data in memory needs none.
        """
        located = map(self._located, index_batches)
        pairs = self._samples.batches(located, workers)
        for index_B, (inputs, targets) in zip(index_batches, pairs, strict=True):
            batch = Batch(inputs, targets, index_B)
            yield batch.map_inputs(self._preprocess or pixels_as_floats)

    def _located(self, index_B: Tensor) -> Tensor:
        index_B = torch.as_tensor(index_B, dtype=torch.long)
        return index_B if self._positions_N is None else self._positions_N[index_B]

    @property
    def fingerprint(self) -> str:
        """A hash of every sample in order."""
        return self._fingerprint


def as_split(batch: Batch, name: SplitName = "val") -> DataSplit:
    """Return the samples of one batch as a split: example inputs, where there is no data.

    Example:
        >>> batch = Batch((torch.rand(5, 3),), torch.zeros(5), torch.arange(5))
        >>> len(as_split(batch)), as_split(batch).read(torch.tensor([4, 0])).indices
        (5, tensor([4, 0]))
    """
    return DataSplit(name, ArraySamples(batch.inputs, batch.targets), None, None, "a single batch")
