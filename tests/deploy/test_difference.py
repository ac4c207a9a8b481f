import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from overhaul.deploy._difference import difference, equal_predictions
from overhaul.runtime import Difference

NUMBERS = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8).map(torch.tensor)


@given(NUMBERS)
def test_nothing_differs_from_itself(outputs: Tensor) -> None:
    assert difference([(outputs, outputs.clone())]) == Difference(0.0, 0.0)


@given(NUMBERS, st.sampled_from([0.25, 2.0, 1024.0]))
def test_the_relative_error_does_not_depend_on_the_unit(outputs: Tensor, unit: float) -> None:
    found = outputs + 1.0
    one, other = difference([(found, outputs)]), difference([(found * unit, outputs * unit)])
    assert other.max_relative == pytest.approx(one.max_relative, rel=1e-6)
    assert other.max_abs == pytest.approx(one.max_abs * unit, rel=1e-6)


def test_an_error_is_compared_with_the_largest_output_of_all_batches() -> None:
    pairs = [
        (torch.tensor([0.0]), torch.tensor([0.5])),
        (torch.tensor([100.0]), torch.tensor([100.0])),
    ]
    assert difference(pairs) == Difference(0.5, 0.005)


def test_each_named_output_has_its_own_size() -> None:
    wanted = {"large": torch.tensor([100.0]), "small": torch.tensor([1.0])}
    found = {"large": torch.tensor([101.0]), "small": torch.tensor([0.5])}
    assert difference([(found, wanted)]) == Difference(1.0, 0.5)


@pytest.mark.parametrize(
    "found",
    [
        torch.tensor([math.nan, 2.0]),
        torch.tensor([math.inf, 2.0]),
        torch.tensor([1.0]),
        torch.tensor([1, 2]),
        {"other": torch.tensor([1.0, 2.0])},
    ],
    ids=["nan", "inf", "shape", "dtype", "name"],
)
def test_what_cannot_be_compared_is_infinitely_far(found: Tensor | dict[str, Tensor]) -> None:
    assert difference([(found, torch.tensor([1.0, 2.0]))]).max_relative == math.inf


def test_the_same_infinities_are_equal() -> None:
    outputs = torch.tensor([-math.inf, math.nan, 1.0])
    assert difference([(outputs, outputs.clone())]) == Difference(0.0, 0.0)


def test_any_error_is_infinite_where_all_should_be_zero() -> None:
    assert difference([(torch.tensor([1e-9]), torch.zeros(1))]).max_relative == math.inf


def test_predictions_are_compared_where_they_are_whole_numbers() -> None:
    three, two = torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 5])
    assert equal_predictions(two, three) == 0.75
    assert equal_predictions({"a": two, "b": three}, {"a": three, "b": three}) == 0.75
    assert equal_predictions(three.float(), three.float()) is None
    assert equal_predictions(["cat"], ["cat"]) is None
