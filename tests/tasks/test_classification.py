import re
import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as reference
from torch import Tensor

from overhaul.core import Batch, DataError, check_model_fits
from overhaul.tasks import Classification

X = torch.rand(60, 4)


def batch(targets: Tensor) -> Batch:
    return Batch((torch.zeros(len(targets), 4),), targets, torch.arange(len(targets)))


def drawn(size: int, classes: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, classes, generator=generator)
    return logits, torch.randint(0, classes, (size,), generator=generator)


@given(seed=st.integers(0, 10_000), classes=st.integers(2, 12))
def test_metrics_are_those_of_scikit_learn(seed: int, classes: int) -> None:
    logits, labels = drawn(150, classes, seed)
    labels[:classes] = torch.arange(classes)
    found = Classification(classes=classes).metrics(logits, labels)
    predicted, one_hot = logits.argmax(1), torch.eye(classes)[labels]
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, predicted))
    assert found["f1"] == pytest.approx(reference.f1_score(labels, predicted, average="macro"))
    auroc = reference.roc_auc_score(one_hot, logits.softmax(1), average="macro")
    assert found["auroc"] == pytest.approx(auroc, abs=1e-5)
    assert found["loss"] == pytest.approx(
        reference.log_loss(labels, logits.double().softmax(1)), abs=1e-4
    )
    assert ("top5_accuracy" in found) == (classes > 10)
    if classes > 10:
        assert found["top5_accuracy"] == pytest.approx(
            reference.top_k_accuracy_score(labels, logits, k=5)
        )


def test_classes_that_do_not_occur_are_left_out_of_auroc_without_a_warning() -> None:
    logits, labels = drawn(50, 5, 0)
    labels = labels.clamp(max=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = Classification(classes=5).metrics(logits, labels)
        alone = Classification(classes=5).metrics(logits, torch.zeros(50).long())
    one_hot = torch.eye(5)[labels][:, :3]
    assert found["auroc"] == pytest.approx(
        reference.roc_auc_score(one_hot, logits.softmax(1)[:, :3]), abs=1e-5
    )
    assert alone["auroc"] != alone["auroc"]
    assert alone["accuracy"] == pytest.approx(float((logits.argmax(1) == 0).float().mean()))


def test_auroc_of_many_classes_only_when_chosen_by() -> None:
    logits, labels = drawn(50, 101, 0)
    assert "auroc" not in Classification().metrics(logits, labels)
    assert "auroc" in Classification(metric="auroc").metrics(logits, labels)


def test_top5_of_few_classes_only_when_chosen_by() -> None:
    logits, labels = drawn(50, 6, 0)
    assert "top5_accuracy" not in Classification().metrics(logits, labels)
    found = Classification(metric="top5_accuracy").metrics(logits, labels)
    assert found["top5_accuracy"] > found["accuracy"]


@pytest.mark.parametrize("metric", ["accuracy", "top5_accuracy", "loss"])
@pytest.mark.parametrize("allow_missing", [False, True])
def test_the_mean_of_sample_scores_is_the_metric(metric: str, allow_missing: bool) -> None:
    task = Classification(metric=metric, label_smoothing=0.1, allow_missing=allow_missing)
    logits, labels = drawn(200, 11, 3)
    if allow_missing:
        labels[::3] = -1
    scores = task.sample_scores(logits, labels)
    assert scores is not None
    assert float(scores.mean()) == pytest.approx(task.metrics(logits, labels)[metric], abs=1e-5)
    assert task.selection_metric == metric
    assert task.higher_is_better == (metric != "loss")


@pytest.mark.parametrize("metric", ["f1", "auroc"])
def test_what_is_no_mean_has_no_sample_scores(metric: str) -> None:
    assert Classification(metric=metric).sample_scores(*drawn(9, 3, 0)) is None


@given(seed=st.integers(0, 10_000), smoothing=st.sampled_from([0.0, 0.1]))
def test_missing_labels_change_nothing(seed: int, smoothing: float) -> None:
    logits, labels = drawn(40, 4, seed)
    labels[::4] = -1
    known = labels >= 0
    some = Classification(allow_missing=True, label_smoothing=smoothing)
    every = Classification(label_smoothing=smoothing)
    assert torch.allclose(some.loss(logits, labels), every.loss(logits[known], labels[known]))
    assert some.metrics(logits, labels) == pytest.approx(
        every.metrics(logits[known], labels[known]), nan_ok=True
    )


def test_a_batch_without_labels_has_loss_zero_and_gradient_zero() -> None:
    logits = torch.randn(3, 4, requires_grad=True)
    task = Classification(allow_missing=True)
    loss = task.losses(logits, torch.full((3,), -1))["task"]
    loss.backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert bool((logits.grad == 0).all())
    values = task.metrics(logits, torch.full((3,), -1)).values()
    assert all(value != value for value in values)


def test_a_confident_right_answer_costs_nothing_and_smoothing_costs_something() -> None:
    logits, labels = 100 * torch.eye(3), torch.arange(3)
    assert float(Classification().loss(logits, labels)) == pytest.approx(0, abs=1e-6)
    assert float(Classification(label_smoothing=0.1).loss(logits, labels)) > 1


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.rand(60), r"must be whole numbers .* got float32\. Pass y\.long\(\)"),
        (torch.zeros(60, 1).long(), r"got the shape \[60, 1\]\. Pass y\.squeeze\(1\)"),
        (torch.eye(3)[torch.arange(60) % 3].long(), r"\[60, 3\].*y\.argmax\(1\).*MultiLabel"),
        (torch.arange(60) % 3 - 1, r"0 or above, got -1 at sample 0 \(20 such.*allow_missing=True"),
        (torch.arange(60) % 3 - 2, r"got -2 at sample 0 \(40 such labels\)\. Classes are numbered"),
        (torch.zeros(60).long(), r"all labels are the same"),
        (torch.tensor([0, 2] * 30), r"must have samples of every class, and has none of class 1"),
    ],
)
def test_labels_that_cannot_be_used(labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        Classification(train=(X, labels)).prepare()


def test_a_label_above_the_number_of_classes_is_named() -> None:
    labels = torch.arange(60) % 3
    labels[17] = 3
    with pytest.raises(DataError, match=r"`train` must be in 0\.\.2, got 3 at sample 17 \(1 such"):
        Classification(train=(X, labels), classes=3).prepare()


def test_a_class_without_samples_is_called_by_its_name() -> None:
    with pytest.raises(DataError, match=r"none of class 2 \('bird'\) \(of 3 classes\)"):
        Classification(
            train=(X, torch.arange(60) % 2), class_names=("cat", "dog", "bird")
        ).prepare()


def test_a_class_may_be_absent_where_that_is_said() -> None:
    labels = torch.arange(60) % 3
    val = (torch.rand(6, 4), torch.arange(6) % 3)
    task = Classification(
        train=(X[labels != 1], labels[labels != 1]), val=val, classes=3, allow_absent=True
    )
    found = next(f for f in task.prepare().facts if f.name == "classes_present")
    assert found.value == 2
    assert task.output_size(task.prepare()) == 3


def test_a_split_without_labels_is_refused() -> None:
    labels = torch.arange(60) % 2
    val = (torch.rand(5, 4), torch.full((5,), -1))
    with pytest.raises(DataError, match="`val` has no labelled sample"):
        Classification(train=(X, labels), val=val, allow_missing=True).prepare()


def test_few_samples_of_a_class_are_a_fact() -> None:
    splits = Classification(train=(X, torch.arange(60) % 3)).prepare()
    fact = next(f for f in splits.facts if f.name == "classes_present" and f.split == "val")
    assert fact.detail["counts"] == [2, 2, 2]
    assert fact.reason is not None
    assert fact.reason.startswith("fewer than 5 samples of 3 classes (0, 1, 2)")


def test_missing_labels_are_counted() -> None:
    labels = torch.arange(60) % 3
    labels[:12] = -1
    splits = Classification(train=(X, labels), allow_missing=True).prepare()
    found = [f for f in splits.facts if f.name == "classes_present"]
    assert sum(fact.detail["missing"] for fact in found) == 12


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (torch.zeros(2, 3), None),
        (
            torch.zeros(2, 1000),
            "the model gives 1000 outputs, and the task has 3 classes: put Repl",
        ),
        (torch.zeros(2), r"gives \[2\] for 2 samples.*\[2, 3\]"),
        (torch.zeros(2, 3, 4), r"gives \[2, 3, 4\]"),
        (torch.zeros(3, 3), r"gives \[3, 3\] for 2 samples"),
        ({"a": torch.zeros(2, 3)}, r"several outputs by name \(a\).*MultiTask"),
    ],
)
@pytest.mark.parametrize(
    "make",
    [
        lambda: Classification(classes=3),
        lambda: Classification(class_names=("a", "b", "c")),
        lambda: Classification(train=(X, torch.arange(60) % 3)),
    ],
    ids=["classes", "names", "data"],
)
def test_outputs_that_do_not_fit(
    make: Callable[[], Classification], outputs: Tensor | dict[str, Tensor], message: str | None
) -> None:
    problem = make().problem_with(outputs, batch(torch.tensor([0, 1])))
    assert (problem is None) == (message is None)
    assert message is None or re.search(message, problem or "")


def test_a_model_for_other_inputs_does_not_fit() -> None:
    task = Classification(train=(X, torch.arange(60) % 3))
    problem = check_model_fits(
        task, torch.nn.Linear(5, 3), task.prepare().val.read(torch.arange(2))
    )
    assert problem is not None
    assert "the model fails on inputs of [2, 4]" in problem


def test_number_and_names_of_classes() -> None:
    counted = Classification(train=(X, torch.arange(60) % 3))
    assert counted.output_size(counted.prepare()) == 3
    assert counted.output_names is None
    assert Classification(data="digits").output_names == tuple("0123456789")
    assert Classification(data="digits", class_names=("a", "b")).output_names == ("a", "b")
    assert Classification().output_kind == "classes"


def test_predictions() -> None:
    assert Classification().predictions(torch.eye(3)[[2, 0]]).tolist() == [2, 0]
