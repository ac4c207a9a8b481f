"""Randomness depends on a seed and a purpose, and never leaks out of a block."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from overhaul.core import derived_seed, seed_everything, seeded


def draw() -> list[float]:
    """Draw from every global generator."""
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]  # noqa: NPY002


def test_a_block_is_seeded_and_leaves_the_generators_as_they_were() -> None:
    seed_everything(3)
    expected = draw()
    seed_everything(3)
    with seeded(5):
        inside = draw()
        with seeded(6):
            draw()
        further = draw()
    assert draw() == expected
    with seeded(5):
        assert [draw(), draw()] == [inside, further]
    assert inside != expected


def test_a_block_that_fails_restores_the_generators_too() -> None:
    seed_everything(3)
    expected = draw()
    seed_everything(3)
    with pytest.raises(KeyError, match="no such key"):
        _draw_and_fail()
    assert draw() == expected


def _draw_and_fail() -> None:
    with seeded(5):
        draw()
        raise KeyError("no such key")


@given(seed=st.integers(0, 2**63 - 1), purpose=st.lists(st.text() | st.integers(), max_size=3))
def test_a_derived_seed_is_one_that_every_generator_takes(
    seed: int, purpose: list[str | int]
) -> None:
    derived = derived_seed(seed, *purpose)
    assert derived == derived_seed(seed, *purpose)
    assert 0 <= derived < 2**63
    with seeded(derived):
        assert len(draw()) == 3


@pytest.mark.parametrize(
    "other", [lambda: derived_seed(1, "a"), lambda: derived_seed(0, "b"), lambda: derived_seed(0)]
)
def test_another_seed_or_purpose_gives_another_seed(other: Callable[[], int]) -> None:
    assert other() != derived_seed(0, "a")
