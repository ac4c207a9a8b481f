import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from overhaul.core import Batch, DataError, SealedTestError, SpecError, Split
from overhaul.tasks import Classification, Sealed, SealedData

X, Y = torch.rand(60, 3), torch.arange(60) % 3
X_TEST, Y_TEST = torch.rand(12, 3), torch.arange(12) % 3

WAYS_IN: dict[str, Callable[[Any], Any]] = {
    "index": lambda test: test[0],
    "slice": lambda test: test[:2],
    "iterate": lambda test: next(iter(test)),
    "unpack": lambda test: (lambda x, y: x)(*test),
    "list": list,
    "search": lambda test: 0 in test,
    "array": np.asarray,
    "read": lambda test: test.read(torch.tensor([0])),
    "batches": lambda test: test.batches([torch.tensor([0])]),
    "in_order": lambda test: next(test.in_order(2)),
    "dataset": lambda test: test.dataset,
    "loader": lambda test: next(iter(DataLoader(test))),
}


def inputs_of(batch: Batch) -> Tensor:
    assert isinstance(batch.inputs, tuple)
    only: Tensor = batch.inputs[0]
    return only


def with_test(test: Any) -> Classification:
    return Classification(train=(X, Y), test=test)


@pytest.mark.parametrize("way", WAYS_IN)
def test_the_test_data_of_a_task_cannot_be_read(way: str) -> None:
    test = with_test(TensorDataset(X_TEST, Y_TEST)).test
    with pytest.raises(SealedTestError, match=r"sealed: .*final evaluation.*Use `val`"):
        WAYS_IN[way](test)


@pytest.mark.parametrize("way", WAYS_IN)
def test_the_prepared_test_split_cannot_be_read(way: str) -> None:
    test = with_test((X_TEST, Y_TEST)).prepare().test
    with pytest.raises(SealedTestError, match=r"sealed: .*final evaluation.*Use `val`"):
        WAYS_IN[way](test)


def test_without_the_seal_the_ways_in_would_work() -> None:
    split = with_test((X_TEST, Y_TEST)).prepare().test.open()
    assert len(WAYS_IN["read"](split)) == 1
    assert len(WAYS_IN["in_order"](split)) == 2
    assert len(WAYS_IN["list"](TensorDataset(X_TEST, Y_TEST))) == 12


def test_an_opened_split_has_the_samples_in_order() -> None:
    test = with_test((X_TEST, Y_TEST)).prepare().test
    split = test.open()
    assert isinstance(test, Sealed)
    assert isinstance(split, Split)
    assert split.name == "test"
    assert split.fingerprint == test.fingerprint
    assert len(split) == len(test) == 12
    assert torch.equal(inputs_of(split.read(torch.arange(12))), X_TEST)


@pytest.mark.parametrize(
    "raw",
    [
        (X_TEST, Y_TEST),
        {"x": X_TEST, "labels": Y_TEST},
        ({"x": X_TEST}, Y_TEST),
        TensorDataset(X_TEST, Y_TEST),
        DataLoader(TensorDataset(X_TEST, Y_TEST), batch_size=5),
        [(X_TEST[i], int(Y_TEST[i])) for i in range(12)],
    ],
    ids=lambda raw: type(raw).__name__,
)
def test_the_length_is_known(raw: Any) -> None:
    assert len(with_test(raw).test) == 12


def test_the_length_of_an_iterable_is_known_once_prepared() -> None:
    task = with_test(iter([(X_TEST, Y_TEST)]))
    with pytest.raises(DataError, match="known only once it has been read"):
        len(task.test)
    assert len(task.prepare().test) == 12


def test_python_can_still_look_at_a_sealed_object() -> None:
    test = with_test((X_TEST, Y_TEST)).test
    assert repr(test) == "<sealed test data>"
    assert not hasattr(test, "__torch_function__")
    assert copy.copy(test) == test
    assert "sealed" in repr(with_test((X_TEST, Y_TEST)))


def test_equal_tasks_are_equal_and_copies_stay_sealed() -> None:
    task = with_test((X_TEST, Y_TEST))
    assert task == with_test((X_TEST, Y_TEST))
    assert task != with_test((X_TEST + 1, Y_TEST))
    changed = task.model_copy(update={"seed": 1})
    assert isinstance(changed.test, SealedData)
    assert changed.prepare().test.fingerprint == task.prepare().test.fingerprint


def test_a_task_with_data_cannot_be_saved() -> None:
    with pytest.raises(SpecError, match=r"`classification.test` holds SealedData"):
        Classification.model_construct(test=SealedData((X, Y))).to_data()
    with pytest.raises(SpecError, match=r"`classification.train\[0\]` holds Tensor"):
        with_test((X_TEST, Y_TEST)).to_data()
