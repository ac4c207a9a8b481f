"""The order of steps is checked before anything runs."""

import pytest

from overhaul.core import OrderError, SpecError, Step, Trait
from tests.core.samples import PackUp, Sequence, Ship

FRESH = frozenset({Trait.EDITABLE, Trait.TRAINABLE, Trait.FITS_TASK})


def test_a_step_says_what_is_true_after_it() -> None:
    assert PackUp().check(FRESH) == {Trait.FITS_TASK, Trait.DEPLOYED}
    assert Ship().check(frozenset({Trait.DEPLOYED})) == {Trait.DEPLOYED}


def test_a_step_that_comes_too_early_names_what_is_to_come_before_it() -> None:
    with pytest.raises(OrderError, match="Ship needs a deployed model, and nothing has") as e:
        Ship().check(FRESH)
    assert "PackUp" in str(e.value).partition("Put ")[2]
    assert isinstance(e.value, SpecError)


def test_a_step_that_comes_too_late_says_why() -> None:
    after = PackUp().check(FRESH)
    with pytest.raises(OrderError, match=r"may be changed, and it no longer may .* Give it once"):
        PackUp().check(after)


def test_a_method_drops_out_of_the_control_unless_it_says_otherwise() -> None:
    assert PackUp().control() is None


def test_steps_are_written_as_a_bare_list() -> None:
    recipe = Sequence(steps=(PackUp(), Sequence(steps=(Ship(),))))
    assert Step.from_data({"sequence": ["pack_up", {"sequence": ["ship"]}]}) == recipe
    assert Step.from_yaml(recipe.to_yaml()) == recipe
