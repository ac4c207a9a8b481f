"""`difference`: how far the outputs of an engine are from those of the model."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from overhaul.core import Outputs
from overhaul.deploy._interface import named


@dataclass(frozen=True)
class Difference:
    """How far outputs are from what they should be.

    Attributes:
        max_abs: The largest absolute error.
        max_relative: The largest error of an output over that output's largest absolute value.
    """

    max_abs: float
    max_relative: float


def difference(pairs: Sequence[tuple[Outputs, Outputs]]) -> Difference:
    r"""Compare outputs that were found with outputs that were wanted.

    .. math:: \max_o \frac{\max |f_o - w_o|}{\max |w_o|}

    over outputs `o`, each over all pairs. Errors relative to single values would be large wherever
    a value is near zero by chance. Values that are not finite must be the same in both.

    Args:
        pairs: Found and wanted, for one or more batches.

    Example:
        >>> difference([(torch.tensor([1.0, 4.5]), torch.tensor([1.0, 4.0]))])
        Difference(max_abs=0.5, max_relative=0.125)
    """
    names = list(named(pairs[0][1]))
    found = [_difference([(named(f).get(n), named(w)[n]) for f, w in pairs]) for n in names]
    return Difference(max(one.max_abs for one in found), max(one.max_relative for one in found))


def equal_predictions(found: Any, wanted: Any) -> float | None:
    """Return the fraction of predictions that are equal; None if they are not whole numbers.

    Example:
        >>> equal_predictions(torch.tensor([1, 2]), torch.tensor([1, 3]))
        0.5
    """
    if isinstance(wanted, dict) and isinstance(found, dict):
        parts = [equal_predictions(found.get(name), wanted[name]) for name in wanted]
        known = [part for part in parts if part is not None]
        return min(known, default=None)
    if not isinstance(wanted, Tensor) or not isinstance(found, Tensor):
        return None
    if wanted.is_floating_point() or found.shape != wanted.shape:
        return None
    return float((found == wanted).double().mean())


def _difference(pairs: Sequence[tuple[Tensor | None, Tensor]]) -> Difference:
    errors, sizes = [0.0], [0.0]
    for found, wanted in pairs:
        if found is None or found.shape != wanted.shape or found.dtype != wanted.dtype:
            return Difference(math.inf, math.inf)
        ours, theirs = found.double(), wanted.double()
        same = (ours == theirs) | (ours.isnan() & theirs.isnan())
        error = torch.where(same, 0.0, (ours - theirs).abs()).nan_to_num(
            nan=math.inf, posinf=math.inf
        )
        finite = theirs[theirs.isfinite()].abs()
        errors.append(float(error.max()) if error.numel() else 0.0)
        sizes.append(float(finite.max()) if finite.numel() else 0.0)
    largest, size = max(errors), max(sizes)
    if largest == 0:
        return Difference(0.0, 0.0)
    return Difference(largest, largest / size if size > 0 else math.inf)
