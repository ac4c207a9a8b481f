"""`JoinedSamples`: the data of several tasks as one, each sample labelled for its own task."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from overhaul.core import DataError, Fact
from overhaul.tasks import Samples


class JoinedSamples(Samples):
    """The data of several tasks, one after the other, as one.

    A sample has the target of the task that it comes from; those of the other tasks are missing.

    Args:
        parts: The samples of each task; all inputs must have one form.
        missing: What stands for a missing target of each task: -1, or NaN, which turns its targets
            into floats.
        where: Which split this is, for errors.

    Attributes:
        ranges: The positions of the samples of each task.

    Raises:
        DataError: the inputs of two tasks have different forms.

    Example:
        >>> from overhaul.tasks import as_samples
        >>> a = as_samples((torch.zeros(2, 3), torch.tensor([4, 5])), "train")
        >>> b = as_samples((torch.ones(1, 3), torch.tensor([0.5])), "train")
        >>> both = JoinedSamples({"a": a, "b": b}, {"a": -1, "b": torch.nan}, "train")
        >>> _, targets = next(both.batches([torch.tensor([2, 0])]))
        >>> targets
        {'a': tensor([-1, 4]), 'b': tensor([0.5000, nan])}
    """

    def __init__(
        self, parts: Mapping[str, Samples], missing: Mapping[str, float], where: str
    ) -> None:
        """Read the first sample of each task to see what form the data has."""
        self._parts, self._where = dict(parts), where
        sizes = torch.tensor([len(samples) for samples in self._parts.values()])
        self._ends = sizes.cumsum(0)
        starts, ends = (self._ends - sizes).tolist(), self._ends.tolist()
        self.ranges = dict(zip(self._parts, map(range, starts, ends), strict=True))
        self.pixels = all(samples.pixels for samples in self._parts.values())
        self.rows_per_read = min(samples.rows_per_read for samples in self._parts.values())
        firsts = {name: _first(name, samples, where) for name, samples in self._parts.items()}
        self._check_one_form({name: inputs for name, (inputs, _) in firsts.items()})
        self._missing = {
            name: _missing_like(target, missing[name]) for name, (_, target) in firsts.items()
        }
        notes = [note for samples in self._parts.values() for note in samples.notes]
        for name, samples in self._parts.items():
            detail = {"first": self.ranges[name].start}
            notes.append(Fact(name=f"{name}_samples", value=len(samples), detail=detail))
        self.notes = tuple(notes)

    def __len__(self) -> int:
        """Return the number of samples of all tasks."""
        return int(self._ends[-1])

    def batches(self, index_batches: Iterable[Tensor], workers: int = 0) -> Iterator[Any]:
        """Yield the samples at each tensor of positions, in that order."""
        wanted = list(index_batches)
        owners = [torch.bucketize(index_B, self._ends, right=True) for index_B in wanted]
        streams = {
            name: samples.batches(
                [
                    index_B[owner_B == number] - self.ranges[name].start
                    for index_B, owner_B in zip(wanted, owners, strict=True)
                    if bool((owner_B == number).any())
                ],
                workers,
            )
            for number, (name, samples) in enumerate(self._parts.items())
        }
        for owner_B in owners:
            pairs, places = [], []
            for number, name in enumerate(self._parts):
                place = (owner_B == number).nonzero().flatten()
                if len(place):
                    inputs, target = next(streams[name])
                    assert isinstance(target, Tensor)
                    pairs.append((inputs, self._named(name, target)))
                    places.append(place)
            yield self._in_order(pairs, torch.cat(places).argsort())

    def known_targets(self) -> dict[str, Tensor] | None:
        """Return every target if each task knows its own, else None."""
        named = []
        for name, samples in self._parts.items():
            known = samples.known_targets()
            if not isinstance(known, Tensor):
                return None
            named.append(self._named(name, known))
        return {name: torch.cat([each[name] for each in named]) for name in self._parts}

    def _named(self, own: str, target: Tensor) -> dict[str, Tensor]:
        """Return the targets of samples of one task by task, those of the others missing."""
        return {
            name: target.to(empty.dtype)
            if name == own
            else empty.expand(len(target), *empty.shape[1:])
            for name, empty in self._missing.items()
        }

    def _in_order(self, pairs: list[Any], order_B: Tensor) -> Any:
        try:
            return tuple(_joined(sides, order_B) for sides in zip(*pairs, strict=True))
        except RuntimeError as error:
            raise DataError(
                f"samples of two tasks of `{self._where}` do not fit into one batch: {error}. Make "
                "the inputs of all tasks the same shape."
            ) from error

    def _check_one_form(self, inputs: Mapping[str, Any]) -> None:
        forms = {name: _form(given, self._parts[name].pixels) for name, given in inputs.items()}
        first = next(iter(forms))
        for name, form in forms.items():
            if form != forms[first]:
                raise DataError(
                    f"the inputs of all tasks must have one form to be joined: in `{self._where}` "
                    f"'{first}' has {forms[first]}, and '{name}' has {form}. Bring them to one "
                    "shape and type, or give MultiTask one `train` with named targets."
                )


def _first(name: str, samples: Samples, where: str) -> tuple[Any, Tensor]:
    if len(samples) == 0:
        raise DataError(f"`{where}` of task '{name}' is empty. Give it at least one sample.")
    inputs, target = next(samples.batches([torch.tensor([0])]))
    if not isinstance(target, Tensor):
        raise DataError(
            f"`{where}` of task '{name}' has several targets by name ({', '.join(target)}), and "
            "one task has one target. Give named targets to MultiTask itself."
        )
    return inputs, target


def _missing_like(target_1: Tensor, missing: float) -> Tensor:
    if math.isnan(missing) and not target_1.is_floating_point():
        return torch.full(target_1.shape, missing)
    return torch.full_like(target_1, missing)


def _form(inputs: Any, pixels: bool) -> str:
    named = inputs.items() if isinstance(inputs, dict) else enumerate(inputs)
    text = ", ".join(
        f"input {name} {list(value.shape[1:])} {str(value.dtype).removeprefix('torch.')}"
        for name, value in named
    )
    return f"{text} as pixels" if pixels else text


def _joined(parts: tuple[Any, ...], order_B: Tensor) -> Any:
    if isinstance(parts[0], dict):
        return {name: torch.cat([part[name] for part in parts])[order_B] for name in parts[0]}
    return tuple(torch.cat(tensors)[order_B] for tensors in zip(*parts, strict=True))
