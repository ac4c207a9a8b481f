"""`relative_difference`: how far the outputs of two models are apart."""

from typing import Any

import torch

from overhaul.graph._tensors_in import tensors_in


def relative_difference(expected: Any, actual: Any) -> float:
    r"""Return the largest difference of two models' outputs, over the largest output.

    .. math:: \max |f(x) - g(x)| \,/\, \max |f(x)|

    It goes over all tensors of the outputs, whatever they are in. It is infinite where no number
    says how far they are apart: another count of tensors, another shape, whole numbers or flags
    that are not equal, or something that is finite in one of them alone.

    Args:
        expected: What a model returned.
        actual: What the other model returned for the same inputs.

    Example:
        >>> relative_difference(torch.tensor([2.0, 4.0]), torch.tensor([2.0, 3.0]))
        0.25
        >>> relative_difference(torch.tensor([0]), torch.tensor([1]))
        inf
    """
    largest, difference = 0.0, 0.0
    ones, others = list(tensors_in(expected)), list(tensors_in(actual))
    if len(ones) != len(others):
        return float("inf")
    for one, other in zip(ones, others, strict=True):
        if one.shape != other.shape:
            return float("inf")
        if not (one.is_floating_point() or one.is_complex()):
            if not torch.equal(one, other):
                return float("inf")
            continue
        finite = one.isfinite()
        if not torch.equal(finite, other.isfinite()):
            return float("inf")
        if finite.any():
            largest = max(largest, float(one[finite].abs().max()))
            difference = max(difference, float((one[finite] - other[finite]).abs().max()))
    return difference / max(largest, 1e-300)
