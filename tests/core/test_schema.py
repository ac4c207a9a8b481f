"""The JSON Schema accepts what `from_data` accepts, and no misspelt key."""

from typing import Any

import pytest
from hypothesis import given
from jsonschema import Draft202012Validator

import overhaul
from overhaul.core import Spec, Step, concrete_subclasses, json_schema
from overhaul.running import RecipeFile
from tests.core.samples import Apple, Basket, Fruit, Sequence
from tests.core.test_spec import fruits

FRUIT: type[Fruit] = Fruit  # type: ignore[type-abstract]
STEP: type[Step] = Step  # type: ignore[type-abstract]


def accepts(base: type[Spec], data: Any) -> bool:
    """Tell whether the schema of `base` accepts `data`."""
    schema = json_schema(base)
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema).is_valid(data)


@given(fruit=fruits)
def test_whatever_is_written_is_accepted(fruit: Fruit) -> None:
    assert accepts(FRUIT, fruit.to_data())


@pytest.mark.parametrize(
    "data",
    [
        "apple",
        {"apple": None},
        {"apple": {"weight_g": 3}},
        {"basket": ["apple", {"basket": []}]},
        {"basket": {"fruits": [], "limit": False, "options": {"anything": [1, 2]}}},
        {"fruit_salad": {"exact": {"weight_g": 3}}},
        {"fruit_salad": {"exact": {"apple": {"weight_g": 3}}, "main": "apple"}},
        {"fruit_salad": {"recipe": "torch.nn:Linear"}},
        "my_package.fruits:Mango",
        {"my_package.fruits:Mango": {"ripe": True}},
    ],
)
def test_every_form_is_accepted(data: Any) -> None:
    assert accepts(FRUIT, data)


@pytest.mark.parametrize(
    "data",
    [
        "aple",
        "basket",  # it needs a field
        {"basket": None},
        {"aple": {}},
        {"apple": {"wieght_g": 3}},
        {"apple": {"weight_g": 0}},
        {"apple": {"colour": "green"}},
        {"apple": {}, "basket": {"fruits": []}},
        {},
        3,
        {"basket": ["aple"]},
        {"basket": [{"basket": [{"apple": {"wieght_g": 3}}]}]},
        {"fruit_salad": {"exact": "basket"}},
        {"fruit_salad": {"numbers": [1, 2]}},
        {"apple": 3},
    ],
)
def test_what_would_be_refused_is_not_accepted(data: Any) -> None:
    assert not accepts(FRUIT, data)


def test_steps_that_hold_steps_are_followed_to_any_depth() -> None:
    nested: Any = ["pack_up", {"ship": None}]
    for _ in range(5):
        nested = [{"sequence": nested}]
    assert accepts(STEP, {"sequence": nested})
    assert accepts(Sequence, {"steps": nested})
    for _ in range(5):
        nested = nested[0]["sequence"] if isinstance(nested[0], dict) else nested
    nested.append({"ship": {"quickly": True}})
    assert not accepts(STEP, {"sequence": [{"sequence": nested}]})


def test_definitions_say_what_things_are() -> None:
    definitions = json_schema(FRUIT)["$defs"]
    apple = definitions["tests.core.samples:Apple"]
    assert apple["description"] == "An apple, with nothing that must be said."
    assert apple["properties"]["weight_g"] == {
        "type": "number",
        "exclusiveMinimum": 0,
        "default": 150.0,
        "description": "A small one has 100 g.",
    }
    assert definitions["tests.core.samples:fruit"]["description"] == "A kind of thing."
    assert definitions["tests.core.samples:Basket"]["required"] == ["fruits"]
    assert definitions["tests.core.samples:Basket"]["properties"]["fruits"]["items"] == {
        "$ref": "#/$defs/tests.core.samples:fruit"
    }


def test_a_concrete_class_is_written_with_or_without_its_name() -> None:
    for data in ("apple", {"apple": {"weight_g": 3}}, {"weight_g": 3}, {}):
        assert accepts(Apple, data)
        assert isinstance(Apple.from_data(data), Apple)
    assert not accepts(Apple, {"basket": {"fruits": []}})
    assert accepts(Basket, {"fruits": ["apple"]})


PUBLIC = [
    cls
    for cls in concrete_subclasses(Spec)
    if cls.__module__.startswith("overhaul.") and cls.__name__ in overhaul.__all__
]


@pytest.mark.parametrize("cls", PUBLIC, ids=lambda cls: cls.__name__)
def test_the_schema_of_every_public_spec_is_sound(cls: type[Spec]) -> None:
    required = [name for name, field in cls.model_fields.items() if field.is_required()]
    assert accepts(cls, cls.spec_name()) is (not required)
    assert not accepts(cls, {cls.spec_name(): {"no_such_field": 1}})


RECIPE: dict[str, Any] = {
    "model": "torchvision.models:resnet18",
    "task": {"classification": {"data": "digits"}},
    "steps": [
        {"prune_weights": {"sparsity": 0.5}},
        {"train": {"epochs": 3, "objective": {"distill": {"weight": 0.9}}}},
        {"recipe": [{"train": {"epochs": 1, "optimizer": "sgd"}}]},
        "deploy",
    ],
    "goal": {"max_drop": 0.005},
}


def test_a_recipe_file_is_accepted() -> None:
    errors = list(Draft202012Validator(json_schema(RecipeFile)).iter_errors(RECIPE))
    assert errors == []


@pytest.mark.parametrize(
    "change",
    [
        {"stepps": []},
        {"steps": [{"prune_weight": {"sparsity": 0.5}}]},
        {"steps": [{"prune_weights": {"sparsty": 0.5}}]},
        {"steps": [{"prune_weights": {"sparsity": 1.5}}]},
        {"steps": [{"recipe": [{"train": {"epochs": 1, "optimizer": "sdg"}}]}]},
        {"steps": [{"train": {"epochs": 3, "objective": {"distill": {"wieght": 0.9}}}}]},
        {"goal": {"max_dropp": 0.1}},
        {"model": "resnet18"},
        {"task": "train"},
    ],
)
def test_a_misspelt_recipe_file_is_not_accepted(change: dict[str, Any]) -> None:
    assert not accepts(RecipeFile, RECIPE | change)
