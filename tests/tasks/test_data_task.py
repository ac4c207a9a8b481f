import json
from pathlib import Path
from typing import Any

import pytest
import torch

from overhaul.core import DataError, SpecError, Splits, Task
from overhaul.tasks import (
    Cifar10,
    Classification,
    DataSource,
    Digits,
    FashionMnist,
    MultiLabel,
    Normalize,
    Regression,
)

X, Y = torch.rand(30, 2), torch.arange(30) % 3


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("classification: {data: digits}", Classification(data=Digits())),
        ("classification: {data: fashion-mnist}", Classification(data=FashionMnist())),
        ("classification: {data: fashion_mnist}", Classification(data=FashionMnist())),
        (
            "classification: {data: {cifar10: {data_dir: pictures}}, train_limit: 9}",
            Classification(data=Cifar10(data_dir=Path("pictures")), train_limit=9),
        ),
        (
            "classification: {data: {fashion_mnist: {data_dir: pictures}}}",
            Classification(data=FashionMnist(data_dir=Path("pictures"))),
        ),
        (
            "classification: {data: digits, preprocess: {normalize: {mean: [0.5, 1], std: 2}}}",
            Classification(data="digits", preprocess=Normalize(mean=(0.5, 1.0), std=2.0)),
        ),
        ("regression: {metric: mae}", Regression(metric="mae")),
        ("multi_label: {class_names: [wet, cold]}", MultiLabel(class_names=("wet", "cold"))),
    ],
)
def test_recipe_files(text: str, wanted: Task) -> None:
    task = Task.from_yaml(text)
    assert task == wanted
    assert Task.from_yaml(task.to_yaml()) == task
    assert eval(repr(task)) == task


def test_names_of_built_in_data() -> None:
    names = {source.spec_name() for source in (Digits, FashionMnist, Cifar10)}
    assert names == {"digits", "fashion-mnist", "cifar10"}
    assert Classification(data="fashion-mnist").to_data() == {
        "classification": {"data": "fashion-mnist"}
    }


def test_a_new_source_is_one_class() -> None:
    class TwoMoons(DataSource):
        @property
        def class_names(self) -> None:
            return None

        def load(self) -> dict[Any, Any]:
            return {"train": (X, Y)}

    task = Task.from_yaml("classification: {data: two_moons}")
    assert len(task.prepare().train) == 21


def test_the_json_schema_has_no_runtime_data() -> None:
    fields = json.dumps(Classification.model_json_schema())
    assert '"train_limit"' in fields
    assert '"train"' not in fields
    assert '"test"' not in fields


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data": "digts"}, r"in `data`: unknown data source 'digts'. Did you mean 'digits'"),
        ({"data": "digits", "val": (X, Y)}, r"not both: got `data` and `val`"),
        ({"data": "digits", "test": (X, Y)}, r"not both: got `data` and `test`"),
        ({"val": (X, Y)}, r"`val` and `test` need `train`"),
        ({"val_fraction": 0.6, "test_fraction": 0.5}, r"must be below 1, got 0\.6 \+ 0\.5"),
        ({"val_fraction": 0}, r"`val_fraction` .* greater than 0, got 0"),
        ({"allow_overlap": 1.0}, r"`allow_overlap` .* less than 1, got 1\.0"),
        ({"train_limit": 0}, r"`train_limit` .* greater than or equal to 1, got 0"),
        ({"scan": "quick"}, r"`scan` .* 'full' or 'sample', got 'quick'"),
        ({"metric": "acuracy"}, r"in `metric`: 'acuracy' is not .* Did you mean 'accuracy'"),
        ({"labels": 3}, r"no field 'labels'"),
        ({"classes": 1}, r"`classes` .* greater than or equal to 2, got 1"),
        ({"classes": 3, "class_names": ("a", "b")}, r"each of the 3 classes, got 2"),
        ({"label_smoothing": 1.0}, r"`label_smoothing` .* less than 1, got 1\.0"),
    ],
)
def test_a_refused_field_is_named(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Classification(**fields)


def test_the_same_object_twice_is_refused() -> None:
    pair = (X, Y)
    with pytest.raises(SpecError, match=r"`test` and `val` are the same object|`test` and `train`"):
        Classification(train=(X + 1, Y), val=pair, test=pair)
    with pytest.raises(SpecError, match="`train` and `val` are the same object"):
        Classification(train=pair, val=pair)


@pytest.mark.parametrize("task", [Classification(classes=10), Regression(), MultiLabel()])
def test_a_task_without_data_is_made_and_says_what_to_pass(task: Task) -> None:
    with pytest.raises(
        DataError,
        match=r"has no data\. Pass train=.*data='\.\.\.' \(cifar10, digits, fashion-mnist",
    ):
        task.prepare()


def test_data_is_read_once_for_each_task_object() -> None:
    task = Classification(train=iter([(X, Y)]))
    first: Splits = task.prepare()
    assert task.prepare() is first
    assert task.parts == {"task": task}


def test_several_target_keys_are_refused_by_a_single_task() -> None:
    raw = {"x": X, "digit": Y, "parity": Y % 2}
    task = Classification(train=raw, target_key=("digit", "parity"))
    with pytest.raises(DataError, match=r"several targets by name \(digit, parity\).*MultiTask"):
        task.prepare()
    assert (
        Classification(train=raw, target_key="digit").output_size(
            Classification(train={"x": X, "digit": Y}, target_key="digit").prepare()
        )
        == 3
    )
