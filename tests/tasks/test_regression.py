import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference
from torch import Tensor

from overhaul.core import Batch, DataError
from overhaul.tasks import Regression

X = torch.rand(40, 3)


def inputs_of(batch: Batch) -> Tensor:
    assert isinstance(batch.inputs, tuple)
    only: Tensor = batch.inputs[0]
    return only


def drawn(size: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (size, columns) if columns else (size,)
    targets = torch.randn(shape, generator=generator)
    return targets + 0.3 * torch.randn(shape, generator=generator), targets


@given(seed=st.integers(0, 10_000), columns=st.integers(0, 3))
def test_metrics_are_those_of_scikit_learn(seed: int, columns: int) -> None:
    outputs, targets = drawn(50, columns, seed)
    found = Regression().metrics(outputs, targets)
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(targets, outputs), abs=1e-5)
    assert found["mse"] == pytest.approx(reference.mean_squared_error(targets, outputs), abs=1e-5)
    assert found["r2"] == pytest.approx(reference.r2_score(targets, outputs), abs=1e-4)
    assert found["rmse"] == pytest.approx(found["mse"] ** 0.5)
    assert found["loss"] == pytest.approx(float(Regression().loss(outputs, targets)), abs=1e-5)


def test_one_output_column_is_not_broadcast_against_the_targets() -> None:
    outputs, targets = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([1.0, 2.0, 3.0])
    task = Regression(metric="mse")
    assert float(task.loss(outputs, targets)) == 0
    assert task.metrics(outputs, targets)["r2"] == 1
    scores = task.sample_scores(outputs, targets)
    assert scores is not None
    assert scores.tolist() == [0, 0, 0]


@given(seed=st.integers(0, 10_000))
def test_missing_targets_change_nothing(seed: int) -> None:
    outputs, targets = drawn(30, 0, seed)
    targets[::3] = torch.nan
    known = ~targets.isnan()
    some, every = Regression(allow_missing=True, metric="mae"), Regression(metric="mae")
    assert torch.allclose(some.loss(outputs, targets), every.loss(outputs[known], targets[known]))
    assert some.metrics(outputs, targets) == every.metrics(outputs[known], targets[known])
    scores, wanted = (
        some.sample_scores(outputs, targets),
        every.sample_scores(outputs[known], targets[known]),
    )
    assert scores is not None
    assert wanted is not None
    assert torch.equal(scores, wanted)


def test_missing_targets_have_a_gradient_of_zero_and_not_nan() -> None:
    outputs = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    targets = torch.tensor([[0.0, torch.nan], [torch.nan, torch.nan]])
    loss = Regression(allow_missing=True).losses(outputs, targets)["task"]
    loss.backward()
    assert float(loss.detach()) == 1
    assert outputs.grad is not None
    assert outputs.grad.tolist() == [[2, 0], [0, 0]]


def test_partly_missing_rows_have_no_sample_scores() -> None:
    outputs, targets = drawn(4, 2, 0)
    targets[0, 1] = torch.nan
    assert Regression(allow_missing=True, metric="mae").sample_scores(outputs, targets) is None


@pytest.mark.parametrize("metric", ["mae", "mse", "loss"])
def test_the_mean_of_sample_scores_is_the_metric(metric: str) -> None:
    task = Regression(metric=metric)
    outputs, targets = drawn(30, 2, 1)
    scores = task.sample_scores(outputs, targets)
    assert scores is not None
    assert float(scores.mean()) == pytest.approx(task.metrics(outputs, targets)[metric], abs=1e-5)
    assert not task.higher_is_better


@pytest.mark.parametrize("metric", ["r2", "rmse"])
def test_what_is_no_mean_has_no_sample_scores(metric: str) -> None:
    assert Regression(metric=metric).sample_scores(*drawn(4, 1, 0)) is None


def test_nothing_known_is_nan() -> None:
    task = Regression(allow_missing=True)
    values = task.metrics(torch.zeros(3), torch.full((3,), torch.nan)).values()
    assert all(value != value for value in values)
    assert task.metrics(torch.zeros(1), torch.ones(1))["r2"] != 0


def test_whole_number_targets_are_measurements_too() -> None:
    task = Regression(train=(X, torch.arange(40)))
    batch = task.prepare().train.read(torch.arange(3))
    assert task.loss(torch.zeros(3, 1), batch.targets).dtype == torch.float32
    assert task.output_size(task.prepare()) == 1


def test_double_targets_are_read_as_floats() -> None:
    task = Regression(train=(X.double().numpy(), torch.rand(40, 2).double().numpy()))
    batch = task.prepare().train.read(torch.arange(3))
    assert torch.as_tensor(batch.targets).dtype == inputs_of(batch).dtype == torch.float32
    assert task.output_size(task.prepare()) == 2


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.rand(40, 2, 2), r"must be \[N\] or \[N, K\] numbers, got the shape \[40, 2, 2\]"),
        (torch.ones(40), r"target 0 of `train` is constant: all \d+ values are 1"),
        (torch.stack([torch.rand(40), torch.ones(40)], 1), "target 1 of `train` is constant"),
        (
            torch.rand(40).index_fill(0, torch.tensor([7]), torch.nan),
            "NaN in the target of sample 7",
        ),
        (
            torch.rand(40).index_fill(0, torch.tensor([9]), torch.inf),
            "infinity in the target of sam",
        ),
    ],
)
def test_targets_that_cannot_be_used(targets: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Regression(train=(X, targets)).prepare()


def test_allowed_missing_targets_still_refuse_infinity_and_nothing_at_all() -> None:
    targets = torch.rand(40, 2)
    targets[::2, 1] = torch.nan
    splits = Regression(train=(X, targets), allow_missing=True).prepare()
    assert {f.split for f in splits.facts if f.name == "target_mean"} == {"train", "val", "test"}
    targets[5, 0] = -torch.inf
    with pytest.raises(DataError, match="infinity in the target of sample 5"):
        Regression(train=(X, targets), allow_missing=True).prepare()
    targets[:, 0] = torch.nan
    with pytest.raises(DataError, match="`train` has no known value of target 0"):
        Regression(train=(X, targets), allow_missing=True).prepare()


@pytest.mark.parametrize(
    ("outputs", "targets", "message"),
    [
        ((4,), (4,), None),
        ((4, 1), (4,), None),
        ((4,), (4, 1), None),
        ((4, 3), (4, 3), None),
        ((4, 3), (4,), r"\[4, 3\] for targets of shape \[4\].*\[4\] or \[4, 1\]: put ReplaceHead"),
        ((3, 4), (4, 3), r"\[3, 4\] for targets of shape \[4, 3\]"),
        ((2, 2), (4,), r"\[2, 2\] for targets"),
    ],
)
def test_outputs_that_do_not_fit(
    outputs: tuple[int, ...], targets: tuple[int, ...], message: str | None
) -> None:
    batch = Batch((X[:4],), torch.zeros(targets), torch.arange(4))
    problem = Regression().problem_with(torch.zeros(outputs), batch)
    assert (problem is None) == (message is None)
    assert message is None or re.search(message, problem or "")


def test_outputs_by_name_do_not_fit() -> None:
    batch = Batch((X[:4],), torch.zeros(4), torch.arange(4))
    problem = Regression().problem_with({"a": torch.zeros(4)}, batch)
    assert problem is not None
    assert "MultiTask" in problem


def test_what_it_is() -> None:
    task = Regression()
    assert (task.output_kind, task.output_names) == ("values", None)
    assert task.higher_is_better
    assert task.predictions(X) is X
