"""`Samples`: data that can be read by position, whatever the user gave."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from overhaul.core import Fact, Targets

Inputs: TypeAlias = tuple[Tensor, ...] | dict[str, Tensor]
Pair: TypeAlias = tuple[Inputs, Targets]
"""Inputs and targets of some samples, each tensor with the samples along its first dimension."""


class Samples(ABC):
    """Data that can be read by position.

    Attributes:
        pixels: Inputs of type uint8 are pixels in 0..255, to be read as floats in [0, 1].
        rows_per_read: How many samples to read at a time so that each reads the same every time.
        notes: What was noticed about the way the data was given.
    """

    pixels: bool = False
    rows_per_read: int = 256
    notes: tuple[Fact, ...] = ()

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of samples."""

    @abstractmethod
    def batches(self, index_batches: Iterable[Tensor], workers: int = 0) -> Iterator[Pair]:
        """Yield the samples at each tensor of positions, in that order."""

    @abstractmethod
    def known_targets(self) -> Targets | None:
        """Return every target if that takes no reading of samples, else None."""


def named_tensors(values: Inputs | Targets, word: str) -> dict[str, Tensor]:
    """Return the tensors under the names that error messages call them by.

    Example:
        >>> import torch
        >>> list(named_tensors({"ids": torch.zeros(1)}, "input"))
        ["input 'ids'"]
        >>> list(named_tensors((torch.zeros(1),), "input"))
        ['input 0']
    """
    if isinstance(values, Tensor):
        return {word: values}
    if isinstance(values, dict):
        return {f"{word} {key!r}": value for key, value in values.items()}
    return {f"{word} {number}": value for number, value in enumerate(values)}


def joined(parts: Sequence[Any]) -> Any:
    """Join inputs or targets along the first dimension.

    Raises:
        RuntimeError, ValueError, KeyError, TypeError: they differ in shape, number or keys.
    """
    if isinstance(parts[0], dict):
        return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
    if isinstance(parts[0], tuple):
        return tuple(torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return torch.cat(tuple(parts))
