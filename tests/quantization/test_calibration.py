"""Ranges of activations: what each way makes of the same values."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from overhaul.core import dequantize, quantize
from overhaul.quantization import (
    Calibration,
    Entropy,
    MinMax,
    MovingAverage,
    Percentile,
    SquaredError,
)
from overhaul.quantization._calibration import Seen, scale_and_zero

WAYS = [MinMax(), MovingAverage(), Percentile(), SquaredError(), Entropy()]


def seen_of(way: Calibration, *batches: Tensor) -> Seen:
    seen = Seen(histogram=way.histogram_wanted())
    for batch in batches:
        seen.see_(batch)
    return seen


def error_of(way: Calibration, x: Tensor) -> float:
    scale, zero = scale_and_zero(way.range_of(seen_of(way, x)), symmetric=False)
    s, z = torch.tensor(scale), torch.tensor(zero).byte()
    return float((dequantize(quantize(x, s, z), s, z) - x).square().mean())


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.spec_name())
@pytest.mark.parametrize("shape", ["normal", "relu", "negative", "constant", "zero"])
def test_the_range_lies_within_the_extremes_and_the_rest_is_close(
    way: Calibration, shape: str
) -> None:
    x = torch.randn(4000)
    x = {
        "normal": x,
        "relu": x.relu(),
        "negative": -x.abs(),
        "constant": torch.full((50,), 3.0),
        "zero": torch.zeros(50),
    }[shape]
    low, high = way.range_of(seen_of(way, x))
    assert min(float(x.min()), 0) - 1e-6 <= low <= high <= max(float(x.max()), 0) + 1e-6
    assert error_of(way, x) <= 0.02 * float(x.square().mean()) + 1e-12


def test_outliers_cost_the_extremes_much_and_the_others_little() -> None:
    x = torch.cat([torch.randn(100_000), torch.tensor([1000.0])])
    common = x[:-1]
    errors = {}
    for way in (MinMax(), Percentile()):
        scale, zero = scale_and_zero(way.range_of(seen_of(way, x)), symmetric=False)
        s, z = torch.tensor(scale), torch.tensor(zero).byte()
        errors[way.spec_name()] = float(
            (dequantize(quantize(common, s, z), s, z) - common).square().mean()
        )
    assert errors["percentile"] < 0.02 * errors["min_max"]


def test_the_least_squared_error_is_not_beaten() -> None:
    x = torch.distributions.Laplace(0, 1).sample((50_000,))
    best = error_of(SquaredError(), x)
    assert all(best <= error_of(way, x) * 1.02 for way in WAYS)


@given(st.lists(st.floats(-100, 100, width=32), min_size=1, max_size=30), st.integers(1, 5))
def test_a_histogram_that_grows_loses_no_value(values: list[float], parts: int) -> None:
    way = Percentile()
    chunks = torch.tensor(values).chunk(parts)
    seen = seen_of(way, *chunks)
    assert seen.counts is not None
    if max(values) > min(0.0, *values):
        late = sum(len(c) for c in chunks)
        assert float(seen.counts.sum()) <= late
        assert float(seen.counts.sum()) >= sum(len(c) for c in chunks[-1:])
    assert seen.low == min(0.0, *values)
    assert seen.high == max(0.0, *values)


def test_a_moving_average_forgets_slowly() -> None:
    way = MovingAverage(rate=0.5)
    seen = seen_of(way, torch.tensor([0.0, 8.0]), torch.tensor([0.0, 4.0]))
    assert way.range_of(seen) == (0.0, 6.0)


@given(st.floats(-100, -0.01), st.floats(0.01, 100))
def test_zero_comes_into_the_middle_where_that_costs_little(low: float, high: float) -> None:
    scale, zero = scale_and_zero((low, high), symmetric="auto")
    least, _ = scale_and_zero((low, high), symmetric=False)
    even = min(-low, high) >= 0.75 * max(-low, high)
    assert not even or zero == 128
    assert even or scale == least
    assert scale <= least * 2 / 1.75 * 255 / 254


@given(st.floats(-100, 100), st.floats(-100, 100), st.booleans())
def test_zero_is_always_an_integer(one: float, other: float, symmetric: bool) -> None:
    scale, zero = scale_and_zero((min(one, other), max(one, other)), symmetric=symmetric)
    assert scale > 0
    assert 0 <= zero <= 255
    if symmetric and min(one, other) < -1e-6:
        assert zero == 128
