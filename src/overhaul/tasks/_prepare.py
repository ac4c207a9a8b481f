"""`prepare_splits`: the checks before any work, and the three splits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from overhaul.core import DataError, Fact, SplitName, Splits, Targets
from overhaul.tasks._cut import cut
from overhaul.tasks._normalize import Normalize
from overhaul.tasks._overlap import check_overlap
from overhaul.tasks._samples import Samples
from overhaul.tasks._scan import Scan, scan
from overhaul.tasks._sealed import Sealed
from overhaul.tasks._split import DataSplit

_NAMES: tuple[SplitName, ...] = ("train", "val", "test")


class TargetRules(Protocol):
    """What a task demands of its targets."""

    def check_targets(self, name: SplitName, targets: Targets, index_N: Tensor) -> None:
        """Refuse targets of a wrong shape, type or value.

        Args:
            name: What the user calls them: `train`, `val` or `test`.
            targets: As they were given, before anything is split off.
            index_N: The position of each in the user's data, for the error.

        Raises:
            DataError: the message names field and position.
        """

    def strata(self, targets: Targets) -> Tensor | None:
        """Return whole numbers `[N]` whose shares each split should keep, or None."""

    def describe_targets(
        self, targets: Mapping[SplitName, Targets], *, complete: bool
    ) -> list[Fact]:
        """Return what is worth knowing about the targets of the final splits.

        Args:
            targets: Those of each split.
            complete: All of them; False where only some were read (`scan="sample"`).

        Raises:
            DataError: they cannot be learned from (a class without samples in `train`).
        """


@dataclass(frozen=True)
class SplitPlan:
    """How splits are made and checked; see the fields of `DataTask`."""

    val_fraction: float = 0.1
    test_fraction: float = 0.2
    seed: int = 0
    train_limit: int | None = None
    allow_overlap: float = 0.0
    preprocess: Normalize | None = None
    every_sample: bool = True


@dataclass(frozen=True)
class _Part:
    """A final split: some positions (None: all) of what was scanned, and how it came about."""

    scan: Scan
    positions: NDArray[np.int64] | None
    origin: dict[str, Any]
    reason: str | None = None

    @property
    def index(self) -> Tensor | None:
        return None if self.positions is None else torch.from_numpy(self.positions)

    @property
    def targets(self) -> Targets:
        return self.scan.targets_at(self.index)

    def split(self, name: SplitName, preprocess: Normalize | None) -> DataSplit:
        prefix = f"{preprocess!r} {self.scan.samples.pixels}"
        fingerprint = self.scan.fingerprint(self.index, prefix)
        return DataSplit(name, self.scan.samples, self.index, preprocess, fingerprint)


def prepare_splits(
    given: Mapping[SplitName, Samples], plan: SplitPlan, rules: TargetRules
) -> Splits:
    """Read and check the data, split what is missing off `train`, and seal the test split.

    Args:
        given: The samples of each split that there is; `train` at least.
        plan: How splits are made and checked.
        rules: What the task demands of the targets.

    Raises:
        DataError: the data breaks a rule.
    """
    scans = {
        name: scan(name, given[name], every_sample=plan.every_sample)
        for name in _NAMES
        if name in given
    }
    _check_same_form(list(scans.values()))
    for found in scans.values():
        _check_numbers(found, plan.preprocess)
        rules.check_targets(found.name, found.targets, found.target_positions)
    facts = [*_notes(scans), *check_overlap(list(scans.values()), plan.allow_overlap)]
    parts = _parts(scans, plan, rules)
    facts += [_size(name, part) for name, part in parts.items()]
    complete = all(len(s.target_positions) == len(s.samples) for s in scans.values())
    facts += rules.describe_targets({n: p.targets for n, p in parts.items()}, complete=complete)
    splits = {name: part.split(name, plan.preprocess) for name, part in parts.items()}
    splits["train"].read(torch.tensor([0]))
    return Splits(splits["train"], splits["val"], Sealed(splits["test"]), tuple(facts))


def _check_same_form(scans: list[Scan]) -> None:
    first = scans[0]
    for other in scans[1:]:
        if other.form != first.form:
            raise DataError(
                f"`{other.name}` must have the same inputs and targets as `{first.name}`: it has "
                f"{_written(other)}, and `{first.name}` has {_written(first)}."
            )


def _written(found: Scan) -> str:
    return ", ".join(
        f"{name} of {str(dtype).removeprefix('torch.')} with {ndim} dimensions"
        for name, (dtype, ndim) in found.form.items()
    )


def _check_numbers(found: Scan, preprocess: Normalize | None) -> None:
    if preprocess is not None or found.samples.pixels:
        return
    for name, (dtype, _) in found.form.items():
        if name.startswith("input") and dtype == torch.uint8:
            raise DataError(
                f"{name} of `{found.name}` is uint8, and networks take floats. With "
                "preprocess=Normalize() it is read as floats in [0, 1] (divided by 255); with a "
                "mean and std, normalized after that. For another scale convert it yourself."
            )


def _notes(scans: Mapping[SplitName, Scan]) -> list[Fact]:
    facts: list[Fact] = []
    for name, found in scans.items():
        facts += [
            n.model_copy(update={"split": name, "subject": "data"}) for n in found.samples.notes
        ]
        repeats = len(found.keys) - len(np.unique(found.keys))
        if repeats:
            reason = "kept together where a split is cut" if name == "train" else None
            facts.append(_fact("repeats", repeats, name, n=len(found.keys), reason=reason))
    return facts


def _parts(
    scans: Mapping[SplitName, Scan], plan: SplitPlan, rules: TargetRules
) -> dict[SplitName, _Part]:
    train = scans["train"]
    size = len(train.samples)
    parts = {name: _Part(found, None, {"from": "given"}) for name, found in scans.items()}
    strata = _strata(train, rules)
    groups = train.keys if train.complete else None
    rest = np.arange(size)
    for name, fraction in (("test", plan.test_fraction), ("val", plan.val_fraction)):
        split_name: SplitName = "test" if name == "test" else "val"
        if split_name in parts:
            continue
        done = cut(
            rest,
            round(fraction * size),
            plan.seed,
            strata=None if strata is None else strata[rest],
            groups=None if groups is None else groups[rest],
        )
        rest = done.kept
        origin = {
            "from": "train",
            "method": done.method,
            "fraction": fraction,
            "seed": plan.seed,
        }
        parts[split_name] = _Part(train, done.taken, origin, done.reason)
        parts["train"] = _Part(train, rest, {"from": "what is left of train"})
    if plan.train_limit is not None and plan.train_limit < len(rest):
        done = cut(
            rest,
            plan.train_limit,
            plan.seed,
            strata=None if strata is None else strata[rest],
        )
        origin = {"from": "train", "method": done.method, "limit": plan.train_limit}
        parts["train"] = _Part(train, done.taken, {**origin, "of": len(rest)}, done.reason)
    return {name: parts[name] for name in _NAMES}


def _strata(train: Scan, rules: TargetRules) -> NDArray[np.int64] | None:
    if len(train.target_positions) < len(train.samples):
        return None
    strata = rules.strata(train.targets)
    return None if strata is None else strata.numpy()


def _size(name: SplitName, part: _Part) -> Fact:
    size = len(part.scan.samples) if part.positions is None else len(part.positions)
    return _fact("samples", size, name, n=size, detail=part.origin, reason=part.reason)


def _fact(name: str, value: int, split: SplitName, **more: Any) -> Fact:
    return Fact(name=name, value=value, split=split, subject="data", **more)
