from collections.abc import Mapping
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.data import Dataset

from overhaul.core import (
    Batch,
    DataError,
    Fact,
    SplitName,
    Splits,
    Targets,
    check_model_fits,
    part_of,
)
from overhaul.tasks import (
    Classification,
    MultiLabel,
    Normalize,
    Regression,
    SplitPlan,
    as_samples,
    prepare_splits,
)


def inputs_of(batch: Batch) -> Tensor:
    assert isinstance(batch.inputs, tuple)
    only: Tensor = batch.inputs[0]
    return only


def data(size: int = 100, classes: int = 2, *, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, 3, generator=generator), torch.arange(size) % classes


def rows_of(splits: Splits) -> dict[str, set[tuple[float, ...]]]:
    parts = {"train": splits.train, "val": splits.val, "test": splits.test.open()}
    return {
        name: {tuple(row) for batch in part.in_order(7) for row in inputs_of(batch).tolist()}
        for name, part in parts.items()
    }


def facts_of(splits: Splits, name: str) -> dict[Any, Fact]:
    return {fact.split: fact for fact in splits.facts if fact.name == name}


@given(
    size=st.integers(60, 200),
    classes=st.integers(2, 4),
    val=st.floats(0.1, 0.3),
    test=st.floats(0.1, 0.3),
    seed=st.integers(0, 2**32 - 1),
)
def test_splits_are_disjoint_cover_everything_and_keep_proportions(
    size: int, classes: int, val: float, test: float, seed: int
) -> None:
    x, y = data(size, classes)
    splits = Classification(train=(x, y), val_fraction=val, test_fraction=test, seed=seed).prepare()
    rows = rows_of(splits)
    assert sum(map(len, rows.values())) == size
    assert set().union(*rows.values()) == {tuple(row) for row in x.tolist()}
    assert len(splits.val) == round(val * size)
    assert len(splits.test) == round(test * size)
    for fact in facts_of(splits, "classes_present").values():
        assert fact.detail["most"] - fact.detail["least"] <= 2


def test_the_same_seed_gives_the_same_splits_and_another_others() -> None:
    prints = [Classification(train=data(), seed=seed).prepare().fingerprint for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


def test_how_splits_were_made_is_recorded() -> None:
    splits = Classification(train=data(100), test=data(30, seed=1), seed=5).prepare()
    samples = facts_of(splits, "samples")
    assert samples["test"].detail == {"from": "given"}
    assert samples["val"].value == 10
    assert samples["val"].detail == {
        "from": "train",
        "method": "stratified",
        "fraction": 0.1,
        "seed": 5,
    }
    assert samples["train"].value == 90


def test_a_class_with_one_sample_makes_the_cut_random_and_says_why() -> None:
    x, y = data(100)
    y[50:] = torch.arange(50) % 2
    y[3] = 2
    splits = Classification(train=(x, y), seed=1).prepare()
    fact = facts_of(splits, "samples")["test"]
    assert fact.detail["method"] == "random"
    assert fact.reason == "class 2 has a single sample"


def test_train_limit_is_a_stratified_part_and_a_fact() -> None:
    splits = Classification(train=data(200, 4), train_limit=40).prepare()
    assert (len(splits.train), len(splits.val), len(splits.test)) == (40, 20, 40)
    assert facts_of(splits, "classes_present")["train"].detail["counts"] == [10] * 4
    assert facts_of(splits, "samples")["train"].detail["of"] == 140


def test_a_train_limit_above_the_size_takes_all() -> None:
    assert len(Classification(train=data(), train_limit=10_000).prepare().train) == 70


def test_samples_with_equal_inputs_stay_together_and_are_counted() -> None:
    x, y = data(100)
    x[50:] = x[:50]
    splits = Classification(train=(x, y)).prepare()
    rows = rows_of(splits)
    assert not rows["train"] & rows["val"]
    assert not rows["train"] & rows["test"]
    assert not rows["val"] & rows["test"]
    assert facts_of(splits, "repeats")["train"].value == 50


def test_positions_are_those_of_the_split() -> None:
    splits = Classification(train=data()).prepare()
    batches = [torch.tensor([3, 1]), torch.tensor([9])]
    for wanted, batch in zip(batches, splits.val.batches(batches), strict=True):
        assert torch.equal(batch.indices, wanted)
    one = splits.val.read(torch.tensor([1]))
    both = splits.val.read(torch.tensor([3, 1]))
    assert torch.equal(inputs_of(one)[0], inputs_of(both)[1])
    assert splits.val.name == "val"


def test_changing_a_batch_does_not_change_the_data() -> None:
    splits = Classification(train=data()).prepare()
    before = inputs_of(splits.train.read(torch.arange(5))).clone()
    inputs_of(next(splits.train.in_order(70))).zero_()
    assert torch.equal(inputs_of(splits.train.read(torch.arange(5))), before)


def test_pixels_are_refused_without_a_preprocess_and_read_as_floats_with_one() -> None:
    x = torch.arange(100 * 12, dtype=torch.int64).reshape(100, 3, 2, 2).remainder(251)
    raw = (x.to(torch.uint8), torch.arange(100) % 2)
    with pytest.raises(DataError, match=r"input 0 of `train` is uint8.*preprocess=Normalize\(\)"):
        Classification(train=raw).prepare()
    splits = Classification(train=raw, preprocess=Normalize()).prepare()
    batch = splits.train.read(torch.arange(70))
    assert inputs_of(batch).dtype == torch.float32
    assert 0.9 < float(inputs_of(batch).max()) <= 1


def test_preprocess_is_applied_once_and_changes_the_fingerprint() -> None:
    x, y = data()
    plain = Classification(train=(x, y)).prepare()
    changed = Classification(train=(x, y), preprocess=Normalize(mean=0.5, std=2.0)).prepare()
    wanted = (inputs_of(plain.train.read(torch.arange(5))) - 0.5) / 2
    assert torch.allclose(inputs_of(changed.train.read(torch.arange(5))), wanted)
    assert changed.fingerprint != plain.fingerprint


def test_a_preprocess_that_does_not_fit_is_refused_before_any_work() -> None:
    with pytest.raises(DataError, match=r"`mean` of normalize has 2 numbers.*\[B, 3\]"):
        Classification(train=data(), preprocess=Normalize(mean=(0.1, 0.2))).prepare()


def test_splits_of_different_form_are_refused() -> None:
    x, y = data(20, seed=1)
    with pytest.raises(DataError, match=r"`val` must have the same inputs .*input 0 of int64"):
        Classification(train=data(), val=((100 * x).long(), y)).prepare()


def test_val_equal_to_test_or_train_is_refused() -> None:
    x, y = data(30, seed=1)
    with pytest.raises(
        DataError, match=r"`test` and `val`.*They are the same data|`val` and `test`"
    ):
        Classification(train=data(), val=(x, y), test=(x.clone(), y.clone())).prepare()
    x, y = data()
    with pytest.raises(DataError, match="They are the same data"):
        Classification(train=(x, y), test=(x.clone(), y.clone())).prepare()
    with pytest.raises(DataError, match="They are the same data: leave `val` out"):
        Classification(train=(x, y), val=(x[:20].clone(), y[:20]), allow_overlap=0.99).prepare()


def test_allowed_overlap_is_recorded() -> None:
    x, y = data()
    x_val, y_val = data(20, seed=1)
    x_val[0] = x[4]
    with pytest.raises(DataError, match=r"1 of 20 .*val\[0\] = train\[4\]"):
        Classification(train=(x, y), val=(x_val, y_val)).prepare()
    splits = Classification(train=(x, y), val=(x_val, y_val), allow_overlap=0.05).prepare()
    assert facts_of(splits, "overlap")["val"].value == 1


class Long(Dataset[tuple[Tensor, int]]):
    """Counts how often it is read."""

    def __init__(self, size: int = 4000, *, offset: int = 0, known: bool = False) -> None:
        self.size, self.offset, self.reads = size, offset, 0
        if known:
            self.targets = [n % 2 for n in range(size)]

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads += 1
        return torch.tensor([float(index + self.offset)]), index % 2


def test_scan_sample_reads_a_part_only() -> None:
    long = Long(known=True)
    splits = Classification(train=long, scan="sample").prepare()
    assert long.reads <= 1001
    assert facts_of(splits, "samples")["val"].detail["method"] == "stratified"
    assert facts_of(splits, "classes_present")["val"].detail["counts"] == [200, 200]


def test_scan_sample_without_known_labels_says_what_it_does_not_know() -> None:
    with pytest.raises(DataError, match=r"the classes cannot be counted: pass classes="):
        Classification(train=Long(), scan="sample").prepare()
    splits = Classification(
        train=Long(), val=Long(2000, offset=9000), scan="sample", classes=2
    ).prepare()
    assert facts_of(splits, "samples")["test"].detail["method"] == "random"
    overlap = facts_of(splits, "overlap")["val"]
    assert overlap.n == 1000
    assert overlap.reason == "only evenly spaced samples were compared (scan='sample')"


def test_scan_full_reads_each_sample_once() -> None:
    long = Long(500)
    Classification(train=long).prepare()
    assert long.reads == 501


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Classification(train=data(1)), "too few to split"),
        (
            Classification(train=(torch.rand(0, 3), torch.zeros(0).long())),
            "`train` is empty",
        ),
        (Regression(train=(torch.ones(9, 2), torch.rand(9))), "`train` has a constant input"),
        (
            MultiLabel(train=(torch.tensor([[1.0], [torch.nan]]), torch.ones(2, 2))),
            "`train` has NaN in input 0 of sample 1",
        ),
    ],
)
def test_data_that_cannot_be_used_is_refused(task: Classification, message: str) -> None:
    with pytest.raises(DataError, match=message):
        task.prepare()


class TwoTasks:
    """What a task of named tasks demands: each part checks its own targets."""

    parts: ClassVar[dict[str, Classification]] = {
        "digit": Classification(classes=10),
        "parity": Classification(classes=2, allow_missing=True),
    }

    def check_targets(self, name: SplitName, targets: Targets, index_N: Tensor) -> None:
        assert isinstance(targets, dict)
        for part, task in self.parts.items():
            task.check_targets(name, targets[part], index_N)

    def strata(self, targets: Targets) -> Tensor | None:
        return part_of(targets, "digit")

    def describe_targets(
        self, targets: Mapping[SplitName, Targets], *, complete: bool
    ) -> list[Fact]:
        facts = []
        for part, task in self.parts.items():
            own = {name: part_of(values, part) for name, values in targets.items()}
            facts += task.describe_targets(own, complete=complete)
        return facts


def test_named_targets_are_split_and_checked_by_the_same_pieces() -> None:
    x, digit = data(200, 10)
    parity = digit % 2
    parity[::5] = -1
    samples = as_samples((x, {"digit": digit, "parity": parity}), "train")
    splits = prepare_splits({"train": samples}, SplitPlan(), TwoTasks())
    targets = splits.val.read(torch.arange(20)).targets
    assert isinstance(targets, dict)
    assert set(targets) == {"digit", "parity"}
    assert torch.bincount(targets["digit"]).tolist() == [2] * 10
    assert [fact.value for fact in splits.facts if fact.name == "classes"] == [10, 2]
    parity[7] = 2
    with pytest.raises(DataError, match=r"in 0\.\.1, got 2 at sample 7"):
        prepare_splits({"train": samples}, SplitPlan(), TwoTasks())


class TinyText(nn.Module):
    """Takes named inputs and returns an object with logits, as language models do."""

    class Output:
        def __init__(self, logits: Tensor) -> None:
            self.logits = logits

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 4), nn.Linear(4, 3)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> "TinyText.Output":
        embedded = self.embedding(input_ids) * attention_mask[..., None]
        return self.Output(self.head(embedded.mean(1)))


def test_dict_batches_go_through_a_model_with_named_inputs() -> None:
    raw = {
        "input_ids": torch.arange(60 * 5).reshape(60, 5) % 19,
        "attention_mask": torch.ones(60, 5, dtype=torch.long),
        "labels": torch.arange(60) % 3,
    }
    raw["input_ids"][:, 0] = torch.arange(60) % 20
    task = Classification(train=raw)
    splits = task.prepare()
    batch = splits.val.read(torch.arange(4))
    model = TinyText()
    assert check_model_fits(task, model, batch) is None
    task.loss(batch.forward(model), batch.targets).backward()
    gradient = model.head.weight.grad
    assert gradient is not None
    assert bool(gradient.abs().sum() > 0)
