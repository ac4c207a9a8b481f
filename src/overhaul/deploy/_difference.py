"""`difference`: how far the outputs of an engine are from those of the model."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray
from torch import Tensor

from overhaul.core import Outputs
from overhaul.deploy._interface import named
from overhaul.runtime import INFINITE, Difference
from overhaul.runtime import difference as difference_of_one


def difference(pairs: Sequence[tuple[Outputs, Outputs]]) -> Difference:
    """Compare outputs that were found with outputs that were wanted; return the worst of them.

    Each output is compared over all pairs, as `overhaul.runtime.difference` says.

    Args:
        pairs: Found and wanted, for one or more batches.

    Example:
        >>> import torch
        >>> difference([(torch.tensor([1.0, 4.5]), torch.tensor([1.0, 4.0]))])
        Difference(max_abs=0.5, max_relative=0.125)
    """
    found = []
    for name in named(pairs[0][1]):
        if any(name not in named(outputs) for outputs, _ in pairs):
            return INFINITE
        one = [(named(outputs)[name], named(wanted)[name]) for outputs, wanted in pairs]
        found.append(difference_of_one(one, _to_float64))
    return Difference.worst(found)


def equal_predictions(found: Any, wanted: Any) -> float | None:
    """Return the fraction of predictions that are equal; None if they are not whole numbers.

    Example:
        >>> import torch
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


def _to_float64(value: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = value.double().numpy()
    return array
