import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from overhaul.core import Batch, DataError, SealedTestError, SpecError, Splits, Task
from overhaul.multitask import MultiTask
from overhaul.tasks import Classification, MultiLabel, Regression
from overhaul.testing import check_spec, tiny_multi_task

X = torch.rand(60, 4, generator=torch.Generator().manual_seed(0))
DIGIT, ODD = torch.arange(60) % 3, torch.arange(60) % 2
PARTS = {"digit": Classification(classes=3), "odd": Classification(classes=2)}


def two(**fields: Any) -> MultiTask:
    return MultiTask(**{"tasks": PARTS, "train": (X, {"digit": DIGIT, "odd": ODD}), **fields})


def of_three_kinds() -> MultiTask:
    return MultiTask(
        tasks={"kind": Classification(classes=3), "size": Regression(), "tags": MultiLabel()}
    )


def drawn(seed: int, size: int = 12) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(seed)
    outputs = {
        "kind": torch.randn(size, 3, generator=draw),
        "size": torch.randn(size, 1, generator=draw),
        "tags": torch.randn(size, 2, generator=draw),
    }
    targets = {
        "kind": torch.randint(0, 3, (size,), generator=draw),
        "size": torch.randn(size, generator=draw),
        "tags": torch.randint(0, 2, (size, 2), generator=draw),
    }
    return outputs, targets


# Loss and metrics.


@given(seed=st.integers(0, 10_000))
def test_each_loss_is_that_of_the_task_alone_and_the_loss_is_their_sum(seed: int) -> None:
    task = of_three_kinds()
    outputs, targets = drawn(seed)
    losses = task.losses(outputs, targets)
    assert list(losses) == ["kind", "size", "tags"]
    for name, part in task.tasks.items():
        assert torch.allclose(losses[name], part.loss(outputs[name], targets[name]))
    assert torch.allclose(task.loss(outputs, targets), torch.stack(list(losses.values())).sum())


@given(seed=st.integers(0, 10_000), keep=st.integers(2, 11))
def test_unlabelled_samples_change_neither_loss_nor_metrics(seed: int, keep: int) -> None:
    task = of_three_kinds()
    outputs, targets = drawn(seed)
    missing = {"kind": -1, "size": torch.nan, "tags": -1}
    partly = {name: target.clone() for name, target in targets.items()}
    for name, target in partly.items():
        target[keep:] = missing[name]
    cut_outputs = {name: output[:keep] for name, output in outputs.items()}
    cut_targets = {name: target[:keep] for name, target in targets.items()}
    found, wanted = task.losses(outputs, partly), task.losses(cut_outputs, cut_targets)
    for name in wanted:
        assert torch.allclose(found[name], wanted[name], atol=1e-6)
    assert task.metrics(outputs, partly) == pytest.approx(
        task.metrics(cut_outputs, cut_targets), abs=1e-5, nan_ok=True
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_batch_without_labels_has_no_loss_and_no_gradient(dtype: torch.dtype) -> None:
    task = of_three_kinds()
    outputs, targets = drawn(0)
    leaves = {name: output.to(dtype).requires_grad_() for name, output in outputs.items()}
    none = {
        "kind": torch.full_like(targets["kind"], -1),
        "size": torch.full_like(targets["size"], torch.nan),
        "tags": torch.full_like(targets["tags"], -1),
    }
    losses = task.losses(leaves, none)
    assert {name: float(loss.detach()) for name, loss in losses.items()} == dict.fromkeys(none, 0.0)
    task.loss(leaves, none).backward()
    for leaf in leaves.values():
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, torch.zeros_like(leaf))


def test_a_missing_label_of_one_task_leaves_the_others_alone() -> None:
    task = of_three_kinds()
    outputs, targets = drawn(1)
    partly = {**targets, "size": torch.full_like(targets["size"], torch.nan)}
    whole, part = task.losses(outputs, targets), task.losses(outputs, partly)
    assert torch.equal(whole["kind"], part["kind"])
    assert torch.equal(whole["tags"], part["tags"])
    assert float(part["size"]) == 0.0


def test_metrics_stand_under_the_names_of_the_tasks() -> None:
    task = two()
    outputs = {"digit": torch.eye(3)[DIGIT], "odd": torch.eye(2)[1 - ODD]}
    metrics = task.metrics(outputs, {"digit": DIGIT, "odd": ODD})
    assert metrics["digit_accuracy"] == 1.0
    assert metrics["odd_accuracy"] == 0.0
    assert metrics["mean_accuracy"] == 0.5
    assert next(iter(metrics)) == task.selection_metric == "mean_accuracy"
    assert task.higher_is_better


def test_metrics_of_one_kind_keep_their_direction() -> None:
    task = MultiTask(tasks={"a": Regression(metric="mae"), "b": Regression(metric="mae")})
    outputs, targets = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 2.0, 3.0])
    metrics = task.metrics({"a": outputs, "b": targets}, {"a": targets, "b": targets})
    assert task.selection_metric == "mean_mae"
    assert not task.higher_is_better
    assert metrics["mean_mae"] == pytest.approx(1 / 6)


def test_in_a_mixed_score_less_is_better_counts_with_a_minus() -> None:
    task = MultiTask(tasks={"a": Classification(classes=2), "b": Regression(metric="mae")})
    labels, values = torch.tensor([0, 1]), torch.tensor([0.0, 1.0])
    outputs = {"a": torch.eye(2), "b": values + 0.5}
    metrics = task.metrics(outputs, {"a": labels, "b": values})
    assert task.selection_metric == "mean_score"
    assert task.higher_is_better
    assert metrics["mean_score"] == pytest.approx((1.0 - 0.5) / 2)
    scores = task.sample_scores(outputs, {"a": labels, "b": values})
    assert scores is not None
    assert scores.tolist() == pytest.approx([0.25, 0.25])


@given(seed=st.integers(0, 10_000))
def test_the_mean_of_sample_scores_is_the_number_to_choose_by(seed: int) -> None:
    task = MultiTask(
        tasks={"kind": Classification(), "size": Regression(metric="mse"), "tags": MultiLabel()}
    )
    exact = MultiTask(tasks={**task.tasks, "tags": MultiLabel(metric="exact_match")})
    outputs, targets = drawn(seed)
    assert task.sample_scores(outputs, targets) is None  # F1 is no mean
    scores = exact.sample_scores(outputs, targets)
    assert scores is not None
    assert scores.shape == (12,)
    metrics = exact.metrics(outputs, targets)
    assert float(scores.mean()) == pytest.approx(metrics[exact.selection_metric], abs=1e-5)
    targets["kind"][3] = -1
    assert exact.sample_scores(outputs, targets) is None


def test_predictions_are_those_of_each_task() -> None:
    outputs, _ = drawn(0)
    found = of_three_kinds().predictions(outputs)
    assert torch.equal(found["kind"], outputs["kind"].argmax(1))
    assert torch.equal(found["size"], outputs["size"])
    assert torch.equal(found["tags"], outputs["tags"] > 0)


# Data of the whole.


def test_data_is_read_split_and_described_by_task() -> None:
    data = two().prepare()
    assert (len(data.train), len(data.val), len(data.test)) == (42, 6, 12)
    facts = {fact.name: fact.value for fact in data.facts if fact.split in (None, "train")}
    assert (facts["digit_classes"], facts["odd_classes"]) == (3, 2)
    batch = next(data.train.in_order(5))
    assert isinstance(batch.targets, dict)
    assert {name: target.shape for name, target in batch.targets.items()} == {
        "digit": (5,),
        "odd": (5,),
    }


def test_splits_keep_the_shares_of_the_first_task_with_classes() -> None:
    tasks = {"size": Regression(), "digit": Classification(classes=3), "odd": Classification()}
    task = MultiTask(tasks=tasks, train=(X, {"size": X[:, 0], "digit": DIGIT, "odd": ODD}))
    targets = task.prepare().test.open().read(torch.arange(12)).targets
    assert isinstance(targets, dict)
    assert torch.bincount(targets["digit"]).tolist() == [4, 4, 4]


def test_dicts_with_several_target_keys_are_read() -> None:
    train = {"x": X, "digit": DIGIT, "odd": ODD}
    batch = next(two(train=train, target_key=("digit", "odd")).prepare().train.in_order(3))
    assert isinstance(batch.targets, dict)
    assert set(batch.targets) == {"digit", "odd"}


def test_partly_labelled_data_is_taken_and_counted() -> None:
    labels = DIGIT.clone()
    labels[::4] = -1
    data = two(train=(X, {"digit": labels, "odd": ODD})).prepare()
    counts = [f for f in data.facts if f.name == "digit_classes_present"]
    assert sum(f.n or 0 for f in counts) == 45
    assert sum(f.detail["missing"] for f in counts) == 15


def test_a_task_may_refuse_missing_labels() -> None:
    labels = DIGIT.clone()
    labels[7] = -1
    tasks = {**PARTS, "digit": Classification(classes=3, allow_missing=False)}
    task = two(tasks=tasks, train=(X, {"digit": labels, "odd": ODD}))
    with pytest.raises(DataError, match=r"task 'digit': labels of `train` .* -1 at sample 7"):
        task.prepare()


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (DIGIT, r"must have a target for each task \('digit', 'odd'\), by name"),
        ({"digit": DIGIT, "od": ODD}, r"targets for 'od', which is no task. Did you mean 'odd'"),
        ({"digit": DIGIT}, r"`train` has no targets for the task 'odd'. Known: digit"),
        ({"digit": DIGIT, "odd": ODD + 1}, r"task 'odd': labels .* in 0..1, got 2 at sample 1"),
        (
            {"digit": DIGIT, "odd": ODD.float()},
            r"task 'odd': labels of `train` must be whole numbers",
        ),
        (
            {"digit": DIGIT, "odd": torch.where(ODD == 1, torch.nan, 0.0)},
            r"task 'odd': .* have NaN. .* y.nan_to_num\(nan=-1\).long\(\)",
        ),
        (
            {"digit": DIGIT, "odd": ODD * 0},
            r"task 'odd': `train` must have samples of every class, and has none of class 1",
        ),
        ({"digit": DIGIT, "odd": ODD * 0 - 1}, r"task 'odd': `\w+` has no labelled sample"),
    ],
)
def test_wrong_targets_are_refused_by_task(targets: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        two(train=(X, targets)).prepare()


def test_a_constant_value_is_refused_by_task() -> None:
    task = MultiTask(
        tasks={"digit": Classification(classes=3), "size": Regression()},
        train=(X, {"digit": DIGIT, "size": torch.ones(60)}),
    )
    with pytest.raises(DataError, match=r"task 'size': target 0 of `train` is constant"):
        task.prepare()


def test_a_split_without_labels_of_a_task_is_refused() -> None:
    val = (torch.randn(4, 4), {"digit": torch.arange(4) % 3, "odd": torch.full((4,), -1)})
    with pytest.raises(DataError, match=r"task 'odd': `val` has no labelled sample"):
        two(val=val).prepare()


def test_the_test_split_stays_sealed() -> None:
    task = two(test=(torch.randn(9, 4), {"digit": DIGIT[:9], "odd": ODD[:9]}))
    with pytest.raises(SealedTestError, match="the test split is sealed"):
        task.test[0]
    assert len(task.prepare().test) == 9


def test_no_data_is_refused() -> None:
    with pytest.raises(DataError, match=r"this multi_task has no data"):
        MultiTask(tasks=PARTS).prepare()


# Data of each task.


def apart(**more: Any) -> MultiTask:
    fields: dict[str, Any] = {"first": {}, "second": {}, **more}
    return MultiTask(
        tasks={
            "digit": Classification(train=(X[:40], DIGIT[:40]), **fields.pop("first")),
            "size": Regression(**{"train": (X[40:], X[40:, 0]), **fields.pop("second")}),
        },
        **fields,
    )


def labelled(data: Splits) -> dict[str, int]:
    targets = [
        split.read(torch.arange(len(split))).targets
        for split in (data.train, data.val, data.test.open())
    ]
    counts = {"digit": 0, "size": 0, "both": 0}
    for each in targets:
        assert isinstance(each, dict)
        digit, size = each["digit"] >= 0, ~each["size"].isnan()
        counts["digit"] += int(digit.sum())
        counts["size"] += int(size.sum())
        counts["both"] += int((digit & size).sum())
    return counts


def test_data_of_each_task_is_joined_with_missing_targets() -> None:
    data = apart().prepare()
    assert labelled(data) == {"digit": 40, "size": 20, "both": 0}
    assert len(data.train) + len(data.val) + len(data.test) == 60


def test_equal_inputs_of_two_tasks_stay_on_one_side() -> None:
    task = MultiTask(
        tasks={
            "digit": Classification(train=(X, DIGIT)),
            "odd": Classification(train=(X.clone(), ODD)),
        }
    )
    data = task.prepare()
    assert len(data.train) + len(data.val) + len(data.test) == 120
    splits = (data.train, data.val, data.test.open())
    rows = []
    for split in splits:
        inputs = split.read(torch.arange(len(split))).inputs
        assert isinstance(inputs, tuple)
        rows.append({tuple(row) for row in inputs[0].tolist()})
    assert rows[0].isdisjoint(rows[1] | rows[2])
    assert rows[1].isdisjoint(rows[2])


def test_own_splits_of_each_task_are_joined() -> None:
    val, test = torch.randn(6, 4), torch.randn(8, 4)
    data = apart(
        first={"val": (val[:3], DIGIT[:3]), "test": (test[:4], DIGIT[:4])},
        second={"val": (val[3:], val[3:, 0]), "test": (test[4:], test[4:, 0])},
    ).prepare()
    assert (len(data.train), len(data.val), len(data.test)) == (60, 6, 8)


def test_different_splits_are_refused() -> None:
    with pytest.raises(DataError, match=r"'digit' brings train, val, and 'size' brings train"):
        apart(first={"val": (torch.randn(3, 4), DIGIT[:3])}).prepare()


def test_inputs_of_different_form_are_refused() -> None:
    with pytest.raises(
        DataError, match=r"'digit' has input 0 \[4\] float32, and 'size' has input 0 \[5\] float32"
    ):
        apart(second={"train": (torch.rand(9, 5), torch.rand(9))}).prepare()


def test_an_error_names_the_position_in_the_data_of_the_task() -> None:
    values = X[40:, 0].clone()
    values[3] = torch.nan
    second = {"train": (X[40:], values)}
    with pytest.raises(DataError, match=r"task 'size': `train` has NaN in the target of sample 3"):
        apart(second=second).prepare()
    counts = labelled(apart(second={**second, "allow_missing": True}).prepare())
    assert counts == {"digit": 40, "size": 19, "both": 0}


def test_labels_that_joining_leaves_out_are_missing_whatever_the_task_says() -> None:
    task = apart(first={"allow_missing": False})
    batch = next(task.prepare().train.in_order(42))
    outputs = {"digit": torch.zeros(42, 3), "size": torch.zeros(42, 1)}
    assert isinstance(batch.targets, dict)
    assert bool((batch.targets["digit"] == -1).any())
    assert float(task.losses(outputs, batch.targets)["digit"]) == pytest.approx(1.0986, abs=1e-4)


def test_built_in_data_of_a_task_brings_its_classes() -> None:
    images = torch.rand(30, 1, 8, 8)
    task = MultiTask(
        tasks={
            "digit": Classification(data="digits"),
            "light": Regression(train=(images, images.mean((1, 2, 3)))),
        },
        train_limit=200,
    )
    part = task.parts["digit"]
    assert isinstance(part, Classification)
    assert part.class_names == tuple("0123456789")
    assert task.output_sizes(task.prepare()) == {"digit": 10, "light": 1}


# What a model must give.


def test_outputs_are_sized_by_task() -> None:
    tags = torch.stack([ODD, 1 - ODD, ODD], 1)
    task = MultiTask(
        tasks={"kind": Classification(), "size": Regression(), "tags": MultiLabel()},
        train=(X, {"kind": DIGIT, "size": X[:, :2], "tags": tags}),
    )
    assert task.output_sizes(task.prepare()) == {"kind": 3, "size": 2, "tags": 3}


def problem(task: Task, outputs: Any) -> str:
    batch = next(task.prepare().train.in_order(2))
    return task.problem_with(outputs, batch) or "none"


def test_outputs_that_do_not_fit_are_described() -> None:
    task = two(tasks={**PARTS, "odd": Classification()})
    digit, odd = torch.zeros(2, 3), torch.zeros(2, 2)
    assert problem(task, {"digit": digit, "odd": odd}) == "none"
    assert "put AddHeads first" in problem(task, digit)
    assert "outputs named digit, and the task has digit, odd" in problem(task, {"digit": digit})
    wrong = problem(task, {"digit": digit, "odd": torch.zeros(2, 4)})
    assert wrong == "task 'odd': the model gives 4 outputs, and the task has 2 classes"


def test_what_only_the_parts_have_is_refused_of_the_whole() -> None:
    task = two()
    with pytest.raises(SpecError, match=r"a multi_task has no one kind of output"):
        _ = task.output_kind
    with pytest.raises(SpecError, match=r"no one number of outputs.* AddHeads instead of Replace"):
        task.output_size(task.prepare())
    with pytest.raises(DataError, match=r"by the name of each task, got one tensor"):
        task.loss(torch.zeros(1, 3), {"digit": DIGIT[:1], "odd": ODD[:1]})
    assert {name: part.output_kind for name, part in task.parts.items()} == dict.fromkeys(
        PARTS, "classes"
    )


# The description.


@pytest.mark.parametrize("task", [MultiTask(tasks=PARTS), of_three_kinds()])
def test_it_is_a_spec(task: MultiTask) -> None:
    check_spec(task)


def test_it_is_written_by_short_names() -> None:
    text = "multi_task: {tasks: {a: classification, b: {regression: {metric: mae}}}, seed: 3}"
    wanted = MultiTask(tasks={"a": Classification(), "b": Regression(metric="mae")}, seed=3)
    assert Task.from_yaml(text) == wanted


def test_tasks_with_built_in_data_are_written_too() -> None:
    task = MultiTask(tasks={"a": Classification(data="digits"), "b": Classification(data="digits")})
    assert Task.from_yaml(task.to_yaml()) == task


def test_an_unknown_task_is_refused_with_the_nearest() -> None:
    with pytest.raises(SpecError, match=r"Did you mean 'classification'"):
        MultiTask.from_data({"multi_task": {"tasks": {"a": "clasification", "b": "regression"}}})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tasks": {"digit": Classification()}}, r"`tasks` of multi_task .* at least 2"),
        ({"tasks": {"a.b": Classification(), "c": Classification()}}, r"one word .* got 'a.b'"),
        ({"tasks": {"type": Classification(), "c": Classification()}}, r"got 'type'"),
        ({"tasks": {"logits": Classification(), "c": Classification()}}, r"got 'logits'"),
        (
            {"tasks": {"a": Classification(seed=3), "b": Classification()}},
            r"`seed` of task 'a' belongs to MultiTask.*MultiTask\(seed=\.\.\.\)",
        ),
        (
            {"tasks": {"a": Classification(train=(X, ODD)), "b": Classification()}},
            r"'a' brings its own data and 'b' does not",
        ),
        (
            {
                "tasks": {"a": Classification(train=(X, ODD)), "b": Classification(data="digits")},
                "train": (X, ODD),
            },
            r"to MultiTask or to each of its tasks, not both: got `train` and data of 'a'",
        ),
    ],
)
def test_wrong_fields_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=re.compile(message, re.DOTALL)):
        MultiTask(**fields)


def test_the_tiny_task_has_two_parts() -> None:
    task = tiny_multi_task()
    assert list(task.parts) == ["number", "odd"]
    batch = next(task.prepare().val.in_order(4))
    assert isinstance(batch, Batch)
    assert task.output_sizes(task.prepare()) == {"number": 3, "odd": 2}
