"""`difference`: how far the outputs of an engine are from what they should be."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from overhaul.runtime._signature import AnyTensor

T = TypeVar("T", bound=AnyTensor)


@dataclass(frozen=True)
class Difference:
    """How far outputs are from what they should be.

    Attributes:
        max_abs: The largest absolute error.
        max_relative: The largest error of an output over that output's largest absolute value.
    """

    max_abs: float
    max_relative: float

    @classmethod
    def worst(cls, differences: Iterable["Difference"]) -> "Difference":
        """Return the largest of each."""
        found = list(differences)
        return cls(max(one.max_abs for one in found), max(one.max_relative for one in found))


INFINITE = Difference(math.inf, math.inf)
"""Of outputs that cannot be compared: another shape or type."""


def difference(pairs: Sequence[tuple[T, T]], to_float64: Callable[[T], NDArray[Any]]) -> Difference:
    r"""Compare what was found of one output with what was wanted.

    .. math:: \frac{\max |f - w|}{\max |w|}

    over all pairs. Errors relative to single values would be large wherever a value is near zero by
    chance. Values that are not finite must be the same in both.

    Args:
        pairs: Found and wanted, for one or more batches.
        to_float64: Makes a NumPy array of 64-bit numbers of one of them.

    Example:
        >>> found, wanted = np.array([1.0, 4.5]), np.array([1.0, 4.0])
        >>> difference([(found, wanted)], lambda array: array)
        Difference(max_abs=0.5, max_relative=0.125)
    """
    largest = size = 0.0
    for found, wanted in pairs:
        if found.shape != wanted.shape or found.dtype != wanted.dtype:
            return INFINITE
        ours, theirs = to_float64(found), to_float64(wanted)
        same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
        with np.errstate(invalid="ignore"):  # infinity less infinity
            errors = np.where(same, 0.0, np.abs(ours - theirs))
        errors = np.nan_to_num(errors, nan=math.inf, posinf=math.inf)
        largest = max(largest, float(errors.max(initial=0.0)))
        size = max(size, float(np.abs(theirs[np.isfinite(theirs)]).max(initial=0.0)))
    if largest == 0:
        return Difference(0.0, 0.0)
    return Difference(largest, largest / size if size > 0 else math.inf)
