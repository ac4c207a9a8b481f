"""`check_overlap`: no sample may be in two splits."""

import math
from collections.abc import Iterator

import numpy as np

from overhaul.core import DataError, Fact
from overhaul.tasks._scan import Scan

_SHOWN = 3


def check_overlap(scans: list[Scan], allowed: float) -> list[Fact]:
    """Count the samples of one split whose inputs are, byte for byte, in another.

    Args:
        scans: What was read of each split that the user gave.
        allowed: The largest fraction of the smaller split that may be in the other.

    Returns:
        One fact for each pair of splits.

    Raises:
        DataError: more of them are; the message names positions on both sides.
    """
    return [
        _check_pair(left, right, allowed)
        for number, left in enumerate(scans)
        for right in scans[number + 1 :]
    ]


def _check_pair(left: Scan, right: Scan, allowed: float) -> Fact:
    small, large = (left, right) if len(left.samples) < len(right.samples) else (right, left)
    common = np.isin(small.keys, large.keys)
    count, fraction = int(common.sum()), float(common.mean())
    if fraction > allowed:
        shown = ", ".join(_pairs(small, large, np.flatnonzero(common)[:_SHOWN]))
        more = " and so on" if count > _SHOWN else ""
        remedy = (
            f"They are the same data: leave `{small.name}` out to have it split off `train`."
            if fraction == 1
            else "Remove them from one of the two. If they are repeats that the data has by "
            f"nature, allow_overlap={_just_above(fraction)} accepts and records them."
        )
        raise DataError(
            f"`{small.name}` and `{large.name}` must not share samples: {count} of "
            f"{len(small.keys)} samples of `{small.name}` have the same inputs, byte for byte, as "
            f"one of `{large.name}`: {shown}{more}. {remedy}"
        )
    return Fact(
        name="overlap",
        value=count,
        subject="data",
        split=small.name,
        n=len(small.keys),
        detail={"with": large.name, "allowed": allowed},
        reason=None
        if small.complete and large.complete
        else "only evenly spaced samples were compared (scan='sample')",
    )


def _just_above(fraction: float) -> float:
    """Round up to two digits, and stay below 1.

    Example:
        >>> _just_above(0.1234), _just_above(0.9999)
        (0.13, 0.9999)
    """
    digits = 1 - math.floor(math.log10(fraction))
    rounded = math.ceil(fraction * 10**digits) / 10**digits
    return rounded if rounded < 1 else fraction


def _pairs(small: Scan, large: Scan, rows: np.ndarray) -> Iterator[str]:
    for row in rows:
        other = int(np.flatnonzero(large.keys == small.keys[row])[0])
        yield (
            f"{small.name}[{int(small.positions[row])}] = "
            f"{large.name}[{int(large.positions[other])}]"
        )
