"""The exact test of McNemar."""

import pytest

from overhaul.evaluation import mcnemar_p


@pytest.mark.parametrize(
    ("only_first", "only_second", "expected"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (3, 3, 1.0),
        (0, 6, 2 / 64),
        (1, 7, 2 * 9 / 256),  # Fagerland, Lydersen and Laake 2013, table 1: 0.0703
    ],
)
def test_by_hand(only_first: int, only_second: int, expected: float) -> None:
    assert mcnemar_p(only_first, only_second) == pytest.approx(expected)
    assert mcnemar_p(only_second, only_first) == pytest.approx(expected)
