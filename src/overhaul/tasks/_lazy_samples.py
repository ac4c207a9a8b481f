"""`LazySamples`: a map-style data set, read when it is needed."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from overhaul.core import DataError, Targets
from overhaul.tasks._samples import Pair, Samples
from overhaul.tasks._separate import TargetKey, as_tensor, separate


class LazySamples(Samples):
    """A map-style data set, read when it is needed, by processes that read ahead if asked.

    Args:
        dataset: Has `__len__` and `__getitem__`.
        target_key: The key, or keys, of the targets where samples are dicts.
        where: Which split this is, for errors.
        collate: Makes a batch of a list of samples. None stacks them.
        reads_batches: `dataset[list of positions]` returns a whole batch.
    """

    def __init__(
        self,
        dataset: Any,
        target_key: TargetKey,
        where: str,
        *,
        collate: Callable[[list[Any]], Any] | None = None,
        reads_batches: bool = False,
    ) -> None:
        """Hold the data set; nothing is read yet."""
        self._dataset, self._target_key, self._where = dataset, target_key, where
        self._reader = _Reader(dataset, collate or _stack, reads_batches, where)
        self._reads_batches = reads_batches
        if collate is not None:
            # A collate function may pad to the longest sample of a batch; alone, a sample reads the
            # same every time.
            self.rows_per_read = 1

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._dataset)

    def batches(self, index_batches: Iterable[Tensor], workers: int = 0) -> Iterator[Pair]:
        """Yield the samples at each tensor of positions, in that order."""
        lists = (index_B.tolist() for index_B in index_batches)
        if workers == 0:
            batches: Iterable[Any] = (self._reader[positions] for positions in lists)
        else:
            batches = DataLoader(
                self._reader,
                sampler=list(lists),
                batch_size=None,
                collate_fn=_as_it_is,
                num_workers=workers,
            )
        for batch in batches:
            yield separate(batch, self._target_key, self._where)

    def known_targets(self) -> Targets | None:
        """Return a column of a `datasets.Dataset`, or the `targets` of torchvision's sets."""
        what = f"target of `{self._where}`"
        if self._reads_batches:
            if not isinstance(self._target_key, str):
                return None
            return as_tensor(self._dataset[self._target_key][:], what).long()
        if getattr(self._dataset, "target_transform", None) is not None:
            return None
        found = getattr(self._dataset, "targets", None)
        if found is None or len(found) != len(self):
            return None
        tensor = as_tensor(found, what)
        return tensor if tensor.is_floating_point() else tensor.long()


class _Reader(Dataset[Any]):
    """A data set whose item number `[3, 1, 4]` is the batch of these three samples."""

    def __init__(
        self, dataset: Any, collate: Callable[[list[Any]], Any], reads_batches: bool, where: str
    ) -> None:
        self.dataset, self.collate = dataset, collate
        self.reads_batches, self.where = reads_batches, where

    def __getitem__(self, positions: list[int]) -> Any:
        if self.reads_batches:
            return self.dataset[positions]
        rows = [self._row(position) for position in positions]
        try:
            return self.collate(rows)
        except Exception as error:
            raise DataError(self._why_not_one_batch(rows[0], positions, error)) from error

    def _row(self, position: int) -> Any:
        try:
            return self.dataset[position]
        except Exception as error:
            raise DataError(
                f"sample {position} of `{self.where}` could not be read: "
                f"{type(error).__name__}: {error}"
            ) from error

    def _why_not_one_batch(self, row: Any, positions: list[int], error: Exception) -> str:
        values = row.values() if isinstance(row, Mapping) else row
        values = values if isinstance(row, Mapping | tuple | list) else [row]
        if any(type(value).__module__.startswith("PIL.") for value in values):
            return (
                f"the samples of `{self.where}` hold PIL images, and a network needs tensors. "
                "Give the data set transform=torchvision.transforms.ToTensor()."
            )
        return (
            f"samples {positions[0]} to {positions[-1]} of `{self.where}` do not fit into one "
            f"batch: {type(error).__name__}: {error}. Make every sample the same shape, or pass a "
            "DataLoader whose collate_fn pads them."
        )


def _stack(rows: list[Any]) -> Any:
    batch = default_collate([_with_tensors(row) for row in rows])
    if isinstance(batch, list):
        # A tuple of inputs inside a sample comes back as a list.
        return tuple(tuple(part) if isinstance(part, list) else part for part in batch)
    return batch


def _with_tensors(row: Any) -> Any:
    """Turn lists of numbers into tensors, which torch's own stacking would take apart."""
    if isinstance(row, Mapping):
        return {key: _tensor_if_list(value) for key, value in row.items()}
    if isinstance(row, tuple):
        return tuple(
            _with_tensors(value) if isinstance(value, Mapping) else _tensor_if_list(value)
            for value in row
        )
    return row


def _tensor_if_list(value: Any) -> Any:
    if isinstance(value, list) and value and not isinstance(value[0], str | Tensor):
        return torch.as_tensor(value)
    return value


def _as_it_is(batch: Any) -> Any:
    return batch
