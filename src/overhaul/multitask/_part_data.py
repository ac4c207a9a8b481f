"""`data_of_part`, `by_name`: what belongs to one of the tasks of a `MultiTask`."""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from overhaul.core import Batch, DataError, Outputs, Split, Splits, Targets


def data_of_part(data: Splits, part: str) -> Splits:
    """Return the data as a task of its own would have it: its targets, and its facts."""
    prefix = f"{part}_"
    facts = [
        fact.model_copy(update={"name": fact.name.removeprefix(prefix)})
        for fact in data.facts
        if fact.name.startswith(prefix)
    ]
    return replace(data, train=_OfPart(data.train, part), facts=tuple(facts))


def by_name(values: Outputs | Targets) -> dict[str, Tensor]:
    """Return outputs or targets by the name of the task.

    Raises:
        DataError: there is only one, without a name.
    """
    if not isinstance(values, dict):
        raise DataError(
            "a multi_task needs outputs and targets by the name of each task, got one tensor. Put "
            "AddHeads first, or give (x, {'name': y, ...})."
        )
    return values


class _OfPart(Split):
    """A split with the targets of one task."""

    def __init__(self, split: Split, part: str) -> None:
        self.name = split.name
        self._split, self._part = split, part

    def __len__(self) -> int:
        return len(self._split)

    def read(self, indices: Tensor) -> Batch:
        return self._own(self._split.read(indices))

    def batches(self, index_batches: list[Tensor], workers: int = 0) -> Iterator[Batch]:
        return map(self._own, self._split.batches(index_batches, workers))

    @property
    def fingerprint(self) -> str:
        return f"{self._split.fingerprint} {self._part}"

    def _own(self, batch: Batch) -> Batch:
        return replace(batch, targets=by_name(batch.targets)[self._part])
