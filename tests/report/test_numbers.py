"""Numbers for people."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.core import Fact
from overhaul.report._numbers import (
    change,
    count,
    duration,
    figure,
    higher_is_better,
    interval,
    is_fraction,
    number,
    p_value,
    quality,
    ratio,
    size,
)

_SCALE = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


@given(st.integers(min_value=0, max_value=10**17))
def test_a_count_reads_back_to_three_digits(value: int) -> None:
    digits, _, prefix = count(value).partition(" ")
    back = float(digits.replace(",", "")) * _SCALE[prefix]
    assert math.isclose(back, value, rel_tol=0.005)


@pytest.mark.parametrize(
    ("value", "text"), [(999, "999"), (999.6, "1.00 k"), (999_999, "1.00 M"), (1_234, "1.23 k")]
)
def test_a_count_at_the_edge_of_a_prefix(value: float, text: str) -> None:
    assert count(value) == text


def test_units() -> None:
    assert [size(0), size(999), size(61_706)] == ["0 B", "999 B", "61.7 kB"]
    assert [duration(0.05), duration(3), duration(61_000)] == ["0.0500 ms", "3.00 ms", "61.0 s"]


def test_a_ratio_is_never_rounded_to_nothing() -> None:
    assert [ratio(value) for value in (0.0, 0.004, 0.0996, 1.0, 9.96, 1234.0)] == [
        "0.00 x",
        "0.004 x",
        "0.10 x",
        "1.00 x",
        "10 x",
        "1,234 x",
    ]


def test_accuracy_is_in_per_cent_and_an_error_is_not() -> None:
    assert quality(0.5, "digit.accuracy") == "50.00 %"
    assert quality(0.5, "mae") == "0.5"
    assert [is_fraction("f1_macro"), is_fraction("dice_loss")] == [True, False]


def test_the_direction_of_a_metric() -> None:
    assert [higher_is_better(name) for name in ("accuracy", "rmse", "val_loss", "r2")] == [
        True,
        False,
        False,
        True,
    ]


@given(st.floats(min_value=-1, max_value=1))
def test_a_change_has_its_sign_unless_it_rounds_to_zero(value: float) -> None:
    text = change(value, "accuracy")
    expected = "+" if round(100 * value, 2) > 0 else "-" if round(100 * value, 2) < 0 else "0"
    assert text[0] == expected


def test_an_interval_names_its_unit_once() -> None:
    assert interval(Fact(name="x", value=1, unit="B", interval=(900, 1100))) == "900 B to 1.10 kB"
    assert interval(Fact(name="x", value=1, unit="ms", interval=(1, 2))) == "1.00 to 2.00 ms"
    assert interval(Fact(name="x", value=1)) == ""


@pytest.mark.parametrize("value", [None, True, "fast", math.nan, math.inf])
def test_what_is_not_a_finite_number(value: float | str | bool | None) -> None:
    assert number(Fact(name="x", value=value)) is None


def test_other_units_are_kept() -> None:
    assert figure(12, "energy", "J") == "12 J"
    assert p_value(0.04999) == "0.050"
