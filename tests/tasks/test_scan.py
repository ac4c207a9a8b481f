import random
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset

from overhaul.core import DataError
from overhaul.tasks import ArraySamples, LazySamples, as_samples
from overhaul.tasks._scan import scan


class Noisy(Dataset[tuple[Tensor, int]]):
    """Draws random numbers from every global generator while it is read."""

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        noise = torch.rand(3) + float(np.random.rand()) + random.random()  # noqa: NPY002
        return noise, index % 2


class Labelled(Dataset[tuple[Tensor, int]]):
    """As torchvision's data sets: labels are known without reading the samples."""

    def __init__(self, targets: list[int]) -> None:
        self.targets = targets

    def __len__(self) -> int:
        return 5000

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.tensor([float(index)]), index % 3


def fingerprint(x: Tensor, y: Tensor) -> str:
    return scan("train", ArraySamples((x,), y)).fingerprint(None, "")


def test_equal_data_has_an_equal_fingerprint_however_it_is_given() -> None:
    x, y = torch.rand(300, 4), torch.arange(300) % 3
    rows: Any = list(zip(x, y.tolist(), strict=True))
    lazy = scan("val", as_samples(rows, "val")).fingerprint(None, "")
    assert lazy == fingerprint(x, y)


@given(row=st.integers(0, 9), column=st.integers(0, 2))
def test_any_change_changes_the_fingerprint(row: int, column: int) -> None:
    x, y = torch.arange(30.0).reshape(10, 3), torch.arange(10) % 2
    changed, relabelled = x.clone(), y.clone()
    changed[row, column] += 1
    relabelled[row] = 1 - relabelled[row]
    prints = {
        fingerprint(x, y),
        fingerprint(changed, y),
        fingerprint(x, relabelled),
        fingerprint(x.flip(0), y.flip(0)),
        fingerprint(x.double().half(), y),
        scan("train", ArraySamples((x,), y)).fingerprint(None, "Normalize()"),
        scan("train", ArraySamples((x,), y)).fingerprint(torch.arange(9), ""),
    }
    assert len(prints) == 7


def test_a_data_set_that_draws_random_numbers_has_one_fingerprint_and_leaves_no_trace() -> None:
    state = torch.get_rng_state()
    first = scan("train", LazySamples(Noisy(), "labels", "train")).fingerprint(None, "")
    assert torch.equal(torch.get_rng_state(), state)
    random.random()
    torch.rand(1)
    assert scan("train", LazySamples(Noisy(), "labels", "train")).fingerprint(None, "") == first


def test_padding_to_the_longest_of_a_batch_does_not_hide_equal_samples() -> None:
    rows = [{"ids": [1] * n, "labels": 0} for n in (1, 2, 5, 1)]

    def collate(rows: list[Any]) -> dict[str, Tensor]:
        longest = max(len(row["ids"]) for row in rows)
        ids = [row["ids"] + [0] * (longest - len(row["ids"])) for row in rows]
        return {"ids": torch.tensor(ids), "labels": torch.tensor([row["labels"] for row in rows])}

    found = scan("train", LazySamples(rows, "labels", "train", collate=collate))
    assert len(set(found.keys.tolist())) == 3


@pytest.mark.parametrize(
    ("value", "kind"), [(float("nan"), "NaN"), (float("inf"), "infinity"), (-np.inf, "infinity")]
)
def test_a_value_that_is_not_finite_is_named(value: float, kind: str) -> None:
    x = torch.rand(600, 2, 3)
    x[431, 1, 2] = value
    with pytest.raises(DataError, match=f"`val` has {kind} in input 'x' of sample 431"):
        scan("val", ArraySamples({"x": x}, torch.zeros(600)))


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(DataError, match="`test` is empty"):
        scan("test", ArraySamples((torch.zeros(0, 3),), torch.zeros(0)))


def test_a_constant_input_is_refused() -> None:
    with pytest.raises(DataError, match="`train` has a constant input: all 5 samples"):
        scan("train", ArraySamples((torch.ones(5, 3),), torch.arange(5)))


def test_a_collate_function_that_drops_the_batch_is_refused() -> None:
    samples = LazySamples(
        [1.0, 2.0], "labels", "train", collate=lambda rows: (torch.tensor(rows), torch.tensor(0))
    )
    with pytest.raises(
        DataError, match=r"a batch of 1 samples of `train` has target of shape \[\]"
    ):
        scan("train", samples)


def test_targets_of_different_form_are_refused() -> None:
    rows = [(torch.rand(2), torch.zeros(1 + n // 256)) for n in range(300)]
    with pytest.raises(DataError, match="the targets of `train` differ in form"):
        scan("train", as_samples(rows, "train"))


def test_a_sample_is_evenly_spaced_and_knows_the_targets_that_are_known() -> None:
    found = scan(
        "train", as_samples(Labelled([n % 3 for n in range(5000)]), "train"), every_sample=False
    )
    assert not found.complete
    assert len(found.positions) == 1000
    assert (int(found.positions[0]), int(found.positions[-1])) == (0, 4999)
    assert torch.equal(torch.as_tensor(found.targets_at(None)), torch.arange(5000) % 3)


def test_known_targets_that_are_not_what_is_read_are_not_used() -> None:
    found = scan("train", as_samples(Labelled([0] * 5000), "train"), every_sample=False)
    assert len(torch.as_tensor(found.targets)) == 1000


def test_known_targets_of_a_table() -> None:
    import datasets

    table = datasets.Dataset.from_dict(
        {"x": [[float(n)] for n in range(3000)], "labels": [n % 4 for n in range(3000)]}
    )
    found = scan("train", as_samples(table, "train"), every_sample=False)
    assert torch.equal(torch.as_tensor(found.targets), torch.arange(3000) % 4)
