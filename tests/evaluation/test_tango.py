"""Tango's interval, against published figures and by its coverage, added up exactly."""

from collections.abc import Callable
from math import comb

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.evaluation import tango_interval


def test_published_example() -> None:
    # Fagerland, Lydersen and Laake 2014, table V: (1, 1, 7, 12), -0.286 (-0.517 to -0.026).
    lower, upper = tango_interval(1, 7, 21)
    assert (round(lower, 3), round(upper, 3)) == (-0.517, -0.026)


@pytest.mark.parametrize("n", [1, 10, 100, 10000])
def test_without_discordant_pairs(n: int) -> None:
    half = 1.959963984540054**2 / (n + 1.959963984540054**2)
    assert tango_interval(0, 0, n) == pytest.approx((-half, half))


@given(st.integers(0, 50), st.integers(0, 50), st.integers(0, 200))
def test_it_mirrors_and_holds_the_difference(b: int, c: int, rest: int) -> None:
    n = b + c + rest + 1
    lower, upper = tango_interval(b, c, n)
    assert -1 <= lower <= (b - c) / n <= upper <= 1
    assert tango_interval(c, b, n) == (-upper, -lower)


def coverage(
    interval: Callable[[int, int, int], tuple[float, float]], n: int, p: float, q: float
) -> float:
    """Add up the probability of every outcome whose interval holds the true difference."""
    total = 0.0
    for b in range(n + 1):
        for c in range(n + 1 - b):
            lower, upper = interval(b, c, n)
            if lower <= p - q <= upper:
                ways = comb(n, b) * comb(n - b, c)
                total += ways * p**b * q**c * (1 - p - q) ** (n - b - c)
    return total


@pytest.mark.parametrize(
    ("p", "q"), [(0.0, 0.0), (0.01, 0.01), (0.02, 0.0), (0.1, 0.05), (0.2, 0.2), (0.4, 0.1)]
)
def test_it_covers_at_about_95_percent(p: float, q: float) -> None:
    assert coverage(tango_interval, 40, p, q) >= 0.935


def test_the_coverage_check_can_fail() -> None:
    def wald(b: int, c: int, n: int) -> tuple[float, float]:
        difference = (b - c) / n
        half = 1.96 * ((b + c) - n * difference**2) ** 0.5 / n
        return difference - half, difference + half

    assert coverage(wald, 40, 0.02, 0.0) < 0.7
