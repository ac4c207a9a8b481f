import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference
from torch import Tensor

from overhaul.core import Batch, DataError
from overhaul.tasks import MultiLabel

X = torch.rand(40, 3)
Y = torch.stack([torch.arange(40) % 2, torch.arange(40) % 3 == 0], 1).long()


def drawn(size: int, labels: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, labels, generator=generator)
    targets = torch.randint(0, 2, (size, labels), generator=generator)
    targets[0], targets[1] = 0, 1
    return logits, targets


@given(seed=st.integers(0, 10_000), labels=st.integers(1, 4))
def test_metrics_are_those_of_scikit_learn(seed: int, labels: int) -> None:
    logits, targets = drawn(60, labels, seed)
    found = MultiLabel().metrics(logits, targets)
    predicted = (logits > 0).long()
    average = "macro" if labels > 1 else "binary"
    assert found["f1"] == pytest.approx(
        reference.f1_score(targets, predicted, average=average), abs=1e-5
    )
    auroc = reference.roc_auc_score(targets, logits, average="macro")
    assert found["auroc"] == pytest.approx(auroc, abs=1e-5)
    assert found["exact_match"] == pytest.approx(reference.accuracy_score(targets, predicted))
    assert found["loss"] == pytest.approx(
        float(torch.nn.functional.binary_cross_entropy(logits.sigmoid(), targets.float())), abs=1e-5
    )


@given(seed=st.integers(0, 10_000))
def test_samples_without_any_label_known_change_nothing(seed: int) -> None:
    logits, targets = drawn(30, 3, seed)
    targets[2::4] = -1
    known = targets[:, 0] >= 0
    some, every = MultiLabel(allow_missing=True), MultiLabel()
    assert torch.allclose(some.loss(logits, targets), every.loss(logits[known], targets[known]))
    assert some.metrics(logits, targets) == pytest.approx(
        every.metrics(logits[known], targets[known]), abs=1e-6
    )


def test_a_single_missing_label_has_no_gradient() -> None:
    logits = torch.zeros(2, 2, requires_grad=True)
    loss = MultiLabel(allow_missing=True).losses(logits, torch.tensor([[1, -1], [-1, 0]]))["task"]
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.6931, abs=1e-4)
    assert logits.grad is not None
    assert logits.grad.tolist() == [[-0.25, 0], [0, 0.25]]


def test_nothing_known_is_nan() -> None:
    task = MultiLabel(allow_missing=True)
    missing = torch.full((3, 2), -1)
    assert float(task.loss(torch.zeros(3, 2), missing)) == 0
    assert all(value != value for value in task.metrics(torch.zeros(3, 2), missing).values())


@pytest.mark.parametrize("metric", ["exact_match", "loss"])
def test_the_mean_of_sample_scores_is_the_metric(metric: str) -> None:
    task = MultiLabel(metric=metric)
    logits, targets = drawn(30, 3, 1)
    scores = task.sample_scores(logits, targets)
    assert scores is not None
    assert float(scores.mean()) == pytest.approx(task.metrics(logits, targets)[metric], abs=1e-5)
    assert task.higher_is_better == (metric == "exact_match")


def test_what_is_no_mean_has_no_sample_scores() -> None:
    logits, targets = drawn(9, 3, 0)
    assert MultiLabel().sample_scores(logits, targets) is None
    targets[3, 1] = -1
    assert MultiLabel(metric="loss", allow_missing=True).sample_scores(logits, targets) is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (Y[:, 0], r"must be \[N, K\].*got the shape \[40\].*use Classification"),
        (Y * 2, r"must be 0 or 1, got 2 for label 1 of sample 0\. Turn"),
        (Y - 1, r"must be 0 or 1, got -1 for label 0 of sample 0\. If -1 .*allow_missing=True"),
        (Y * torch.tensor([1, 0]), r"none has label 1 \('cold'\)"),
        (torch.cat([Y, Y], 1), r"`train` has 4 labels a sample, and `class_names` has 2"),
    ],
)
def test_labels_that_cannot_be_used(labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        MultiLabel(train=(X, labels), class_names=("wet", "cold")).prepare()


@pytest.mark.parametrize("labels", [Y, Y.float(), Y.bool()], ids=["int", "float", "bool"])
def test_labels_of_each_type(labels: Tensor) -> None:
    task = MultiLabel(train=(X, labels))
    splits = task.prepare()
    batch = splits.train.read(torch.arange(4))
    assert task.problem_with(torch.zeros(4, 2), batch) is None
    assert float(task.loss(torch.zeros(4, 2), batch.targets)) == pytest.approx(0.6931, abs=1e-4)
    assert task.output_size(splits) == 2
    counts = [f.detail["counts"] for f in splits.facts if f.name == "labels_present"]
    assert torch.equal(torch.tensor(counts).sum(0), Y.sum(0))


def test_allowed_missing_labels() -> None:
    labels = Y.clone()
    labels[3, 1] = -1
    assert len(MultiLabel(train=(X, labels), allow_missing=True).prepare().train) == 28


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (torch.zeros(4, 3), r"gives \[4, 3\].*\[4, 2\]: put ReplaceHead first"),
        (torch.zeros(4), r"gives \[4\]"),
        ({"a": torch.zeros(4, 2)}, "MultiTask"),
    ],
)
def test_outputs_that_do_not_fit(outputs: Tensor | dict[str, Tensor], message: str) -> None:
    problem = MultiLabel().problem_with(outputs, Batch((X[:4],), Y[:4], torch.arange(4)))
    assert problem is not None
    assert re.search(message, problem)


def test_what_it_is() -> None:
    assert MultiLabel().output_kind == "labels"
    assert MultiLabel().output_names is None
    assert MultiLabel(class_names=("a",)).output_names == ("a",)
    assert MultiLabel(data="digits").output_names == tuple("0123456789")
