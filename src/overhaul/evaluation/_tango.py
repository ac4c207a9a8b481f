"""Tango's score interval for the difference of two paired proportions."""

from math import sqrt

_Z = 1.959963984540054
_HALVINGS = 60


def tango_interval(only_first: int, only_second: int, n: int) -> tuple[float, float]:
    r"""Return the 95 % score interval of the difference of two proportions on the same samples.

    With `b` the samples on which only the first succeeds, `c` those on which only the second does,
    it holds every :math:`\delta` that the score test does not refuse:

    .. math:: \frac{|b - c - n\delta|}{\sqrt{n\,(2\hat q + \delta(1 - \delta))}} \le z

    where :math:`\hat q` is the likeliest probability of `c` given :math:`\delta`. It stays sound
    where a bootstrap collapses: with `b = c = 0` it is :math:`\pm z^2 / (n + z^2)`.

    Args:
        only_first: `b`.
        only_second: `c`.
        n: All samples.

    Example:
        Airway reactivity before and after a transplantation, 21 children (Fagerland, Lydersen and
        Laake, Statistics in Medicine 33, 2014, table V).

        >>> lower, upper = tango_interval(1, 7, 21)
        >>> round(lower, 3), round(upper, 3)
        (-0.517, -0.026)

    Paper: Tango, Equivalence test and confidence interval for the difference in proportions for
    the paired-sample design, Statistics in Medicine 17, 1998.
    """
    upper = _upper(only_first, only_second, n)
    return -_upper(only_second, only_first, n), upper


def _upper(b: int, c: int, n: int) -> float:
    inside, outside = (b - c) / n, 1.0
    if _accepted(outside, b, c, n):
        return outside
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        if _accepted(middle, b, c, n):
            inside = middle
        else:
            outside = middle
    return inside


def _accepted(delta: float, b: int, c: int, n: int) -> bool:
    slope = (2 * n - b + c) * delta - b - c
    constant = -c * delta * (1 - delta)
    likeliest_c = (sqrt(max(0.0, slope * slope - 8 * n * constant)) - slope) / (4 * n)
    variance = n * (2 * likeliest_c + delta * (1 - delta))
    return (b - c - n * delta) ** 2 <= _Z**2 * variance
