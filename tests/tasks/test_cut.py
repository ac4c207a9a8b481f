import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from overhaul.core import DataError
from overhaul.tasks._cut import cut


@given(
    counts=st.lists(st.integers(10, 60), min_size=2, max_size=5),
    share=st.floats(0.1, 0.5),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_stratified_cut_keeps_proportions_and_covers_everything(
    counts: list[int], share: float, seed: int
) -> None:
    strata = np.repeat(np.arange(len(counts)), counts)
    positions = np.arange(len(strata)) + 100
    size = max(len(counts), round(share * len(strata)))
    done = cut(positions, size, seed, strata=strata)
    assert done.method == "stratified"
    assert len(done.taken) == size
    assert sorted([*done.kept, *done.taken]) == positions.tolist()
    assert done.taken.tolist() == sorted(done.taken)
    for number, count in enumerate(counts):
        taken = int((strata[done.taken - 100] == number).sum())
        assert abs(taken - count * size / len(strata)) <= 1


@given(seed=st.integers(0, 1000))
def test_the_same_seed_gives_the_same_cut_and_another_seed_another(seed: int) -> None:
    positions = np.arange(200)
    first = cut(positions, 50, seed)
    assert first.taken.tolist() == cut(positions, 50, seed).taken.tolist()
    assert first.taken.tolist() != cut(positions, 50, seed + 1).taken.tolist()


@given(values=st.lists(st.integers(0, 20), min_size=40, max_size=80), seed=st.integers(0, 100))
def test_equal_inputs_stay_on_one_side(values: list[int], seed: int) -> None:
    groups = np.array([*values, 97, 98, 99], dtype=np.uint64)
    done = cut(np.arange(len(groups)), len(groups) // 4, seed, groups=groups)
    assert len(done.kept) > 0
    assert len(done.taken) > 0
    assert not set(groups[done.kept]) & set(groups[done.taken])
    assert sorted([*done.kept, *done.taken]) == list(range(len(groups)))


@pytest.mark.parametrize(
    ("strata", "size", "reason"),
    [
        ([0] * 9 + [1], 3, "class 1 has a single sample"),
        ([0, 0, 1, 1, 2, 2, 3, 3, 4, 4], 3, "one side would have 3 samples, fewer than the 5"),
    ],
)
def test_too_few_samples_of_a_class_make_it_random_and_say_why(
    strata: list[int], size: int, reason: str
) -> None:
    done = cut(np.arange(10), size, 0, strata=np.array(strata))
    assert done.method == "random"
    assert done.reason is not None
    assert done.reason.startswith(reason)
    assert len(done.taken) == size


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(DataError, match="1 different samples are too few to split 1 off them"):
        cut(np.arange(1), 1, 0)
    with pytest.raises(DataError, match="1 different samples are too few to split 3"):
        cut(np.arange(9), 3, 0, groups=np.zeros(9, dtype=np.uint64))
