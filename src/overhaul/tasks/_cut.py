"""`cut`: part of the samples for another split, stratified, repeats kept on one side."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from overhaul.core import DataError

Positions = NDArray[np.int64]


@dataclass(frozen=True)
class Cut:
    """Two parts of some positions.

    Attributes:
        kept: The positions that stay, ascending.
        taken: The positions of the new split, ascending.
        method: `stratified` or `random`.
        reason: Why it is not stratified although there are classes.
    """

    kept: Positions
    taken: Positions
    method: str
    reason: str | None


def cut(
    positions: Positions,
    size: int,
    seed: int,
    *,
    strata: NDArray[np.int64] | None = None,
    groups: NDArray[np.uint64] | None = None,
) -> Cut:
    """Take some of the positions away, at random.

    Args:
        positions: Where to take from.
        size: How many to take. With repeats it is met as nearly as whole groups allow.
        seed: Of the choice.
        strata: The class of each position: each keeps its share on both sides, where it can.
        groups: Positions of equal value stay on one side; for samples with equal inputs.

    Raises:
        DataError: there is too little to have samples on both sides.

    Example:
        >>> part = cut(np.arange(10), 4, seed=0, strata=np.arange(10) % 2)
        >>> len(part.kept), part.taken % 2
        (6, array([...]))
    """
    from sklearn.model_selection import train_test_split

    if groups is None:
        groups = positions.astype(np.uint64)
    _, first, group_of = np.unique(groups, return_index=True, return_inverse=True)
    # Without repeats each sample is its own group, and the cut is the plain one.
    units = np.sort(first)
    unit_of = np.argsort(np.argsort(first))[group_of]
    wanted = max(1, round(size * len(units) / len(positions)))
    if wanted >= len(units):
        raise DataError(
            f"{len(units)} different samples are too few to split {size} off them. Give more data, "
            "or pass `val` and `test` yourself."
        )
    labels = None if strata is None else strata[units]
    reason = None if labels is None else _why_not_stratified(labels, wanted)
    if reason is not None:
        labels = None
    _, chosen = train_test_split(
        np.arange(len(units)), test_size=wanted, random_state=seed, stratify=labels
    )
    taken = np.isin(unit_of, chosen)
    method = "random" if labels is None else "stratified"
    return Cut(positions[~taken], positions[taken], method, reason)


def _why_not_stratified(labels: NDArray[np.int64], wanted: int) -> str | None:
    classes, counts = np.unique(labels, return_counts=True)
    if counts.min() < 2:
        return f"class {classes[counts.argmin()]} has a single sample"
    fewest = min(wanted, len(labels) - wanted)
    if fewest < len(classes):
        return f"one side would have {fewest} samples, fewer than the {len(classes)} classes"
    return None
