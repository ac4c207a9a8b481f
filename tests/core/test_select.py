"""Choosing layers by patterns."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from overhaul.core import ModelError, matching_names, owner_of, replace_module_

NAMES = ["", "stem", "layer1", "layer1.0", "layer1.0.conv1", "layer1.0.conv2", "layer10", "fc"]


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        (["fc"], {"fc"}),
        (["layer1"], {"layer1", "layer1.0", "layer1.0.conv1", "layer1.0.conv2"}),
        (["*.conv1", "stem"], {"layer1.0.conv1", "stem"}),
        (["layer1*"], {name for name in NAMES if name.startswith("layer1")}),
        (["*"], set(NAMES) - {""}),
        ([], set()),
    ],
)
def test_a_pattern_takes_in_what_is_below_it(patterns: list[str], expected: set[str]) -> None:
    assert matching_names(NAMES, patterns, "layers") == expected


def test_a_pattern_that_matches_nothing_is_refused() -> None:
    with pytest.raises(ModelError, match=r"`layers` 'steam' matches nothing. Did you mean 'stem'"):
        matching_names(NAMES, ["fc", "steam"], "layers")


@given(order=st.permutations(NAMES), patterns=st.permutations(["fc", "layer1.0", "*.conv1"]))
def test_the_order_has_no_say(order: list[str], patterns: list[str]) -> None:
    expected = matching_names(NAMES, ["fc", "layer1.0", "*.conv1"], "layers")
    assert matching_names(order, patterns, "layers") == expected


def test_a_module_is_replaced_at_any_depth() -> None:
    model = nn.Sequential(nn.Sequential(nn.ReLU()), nn.ReLU())
    replace_module_(model, "0.0", nn.Tanh())
    replace_module_(model, "1", nn.GELU())
    assert repr(model[0][0]) == "Tanh()"  # type: ignore[index]
    assert isinstance(model[1], nn.GELU)
    assert owner_of("0.0.weight") == "0.0"
