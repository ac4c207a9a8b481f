"""Costs as ratios."""

from typing import Any

import pytest

from overhaul.core import Fact
from overhaul.report._ratios import cost_ratio, latency_ratio
from tests.report.sample_run import latency


def test_bounds_are_the_most_cautious_ones() -> None:
    found = latency_ratio(latency("final", 1.0), latency("original", 2.0))
    assert found is not None
    assert found.value == pytest.approx(0.5)
    assert [found.low, found.high] == pytest.approx([0.98 / 2.04, 1.02 / 1.96])
    assert found.is_interval


def test_a_ratio_taken_in_turns_is_used_as_it_is() -> None:
    paired = latency("final", 1.0, ratio=0.6, ratio_interval=[0.58, 0.62], reference="original")
    found = latency_ratio(paired, latency("original", 2.0))
    assert found is not None
    assert (found.value, found.low, found.high) == (0.6, 0.58, 0.62)


def test_a_ratio_taken_in_turns_needs_no_equal_settings_elsewhere() -> None:
    paired = latency(
        "final", 9.0, batch_size=64, ratio=0.6, ratio_interval=[0.58, 0.62], reference="original"
    )
    assert cost_ratio(paired, latency("original", 2.0)) == 0.6


def test_a_ratio_to_something_else_is_not_used() -> None:
    other = latency("final", 1.0, ratio=0.6, ratio_interval=[0.58, 0.62], reference="1 train")
    assert cost_ratio(other, latency("original", 2.0)) == pytest.approx(0.5)


def test_without_intervals_the_bounds_are_ten_per_cent() -> None:
    found = latency_ratio(_bare(1.0), _bare(2.0))
    assert found is not None
    assert (found.low, found.high, found.is_interval) == (0.45, 0.55, False)


@pytest.mark.parametrize("other", [{"batch_size": 64}, {"threads": 2}])
def test_other_settings_are_not_compared(other: dict[str, Any]) -> None:
    assert cost_ratio(latency("final", 1.0, **other), latency("original", 2.0)) is None


@pytest.mark.parametrize("reference", [None, 0, "fast"])
def test_nothing_is_divided_by_nothing(reference: float | str | None) -> None:
    assert cost_ratio(Fact(name="macs", value=1), Fact(name="macs", value=reference)) is None
    assert latency_ratio(_bare(1.0), Fact(name="latency_ms", value=reference)) is None


def _bare(value: float) -> Fact:
    return Fact(name="latency_ms", value=value, unit="ms")
