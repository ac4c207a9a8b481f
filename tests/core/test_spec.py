"""Specs print, compare, copy and travel through files as what they are."""

import json
from abc import ABC
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from overhaul.core import Spec, SpecError
from tests.core.samples import Apple, Basket, Colour, Fruit, FruitSalad, Net

apples = st.builds(
    Apple,
    weight_g=st.floats(min_value=0.01, max_value=1e9),
    colour=st.sampled_from(Colour),
)
fruits: st.SearchStrategy[Fruit] = st.recursive(
    apples,
    lambda inner: st.builds(
        Basket,
        fruits=st.lists(inner, max_size=3).map(tuple),
        labels=st.frozensets(st.text(max_size=5), max_size=3),
        limit=st.just(False) | st.integers(0, 3),
        options=st.dictionaries(
            st.text(max_size=3), st.none() | st.booleans() | st.integers() | st.text(max_size=3)
        ),
        folder=st.sampled_from([Path("here"), Path("there/and/back")]),
    ),
    max_leaves=5,
)


@given(fruit=fruits)
def test_a_spec_survives_every_form_of_writing(fruit: Fruit) -> None:
    assert Fruit.from_data(fruit.to_data()) == fruit
    assert Fruit.from_data(json.loads(json.dumps(fruit.to_data()))) == fruit
    assert Fruit.from_data(json.loads(fruit.model_dump_json())) == fruit
    assert Fruit.from_yaml(fruit.to_yaml()) == fruit
    names = {"Apple": Apple, "Basket": Basket}
    assert eval(repr(fruit), names) == fruit
    assert hash(eval(repr(fruit), names)) == hash(fruit)


@pytest.mark.parametrize(
    ("spec", "data"),
    [
        (Apple(), "apple"),
        (Apple(weight_g=100), {"apple": {"weight_g": 100.0}}),
        (Basket(fruits=()), {"basket": {"fruits": []}}),
        (
            Basket(fruits=(Apple(), Apple(colour=Colour.BLUE)), limit=0),
            {"basket": {"fruits": ["apple", {"apple": {"colour": "blue"}}], "limit": 0}},
        ),
        (
            FruitSalad(exact=Apple(weight_g=1)),
            {"fruit_salad": {"exact": {"apple": {"weight_g": 1.0}}}},
        ),
    ],
)
def test_the_short_form_has_what_differs_from_the_default(spec: Spec, data: Any) -> None:
    assert spec.to_data() == data


@pytest.mark.parametrize(
    ("data", "spec"),
    [
        ("apple", Apple()),
        ({"apple": None}, Apple()),
        ({"apple": {}}, Apple()),
        ({"basket": ["apple"]}, Basket(fruits=(Apple(),))),
        ({"tests.core.samples:Apple": {"weight_g": 2}}, Apple(weight_g=2)),
        ({"fruit_salad": {"exact": {"weight_g": 2}}}, FruitSalad(exact=Apple(weight_g=2))),
    ],
)
def test_every_short_form_is_read(data: Any, spec: Spec) -> None:
    assert Fruit.from_data(data) == spec


def test_a_set_is_written_in_the_same_order_by_every_process() -> None:
    labels = [f"label {i}" for i in range(20)]
    basket = Basket(fruits=(), labels=frozenset(labels))
    assert basket.to_data()["basket"]["labels"] == sorted(labels)
    assert repr(basket) == repr(Basket(fruits=(), labels=frozenset(reversed(labels))))


def test_numpy_numbers_become_plain_ones() -> None:
    specs = [Apple(weight_g=weight) for weight in np.linspace(1, 2, 2)]
    assert repr(specs) == "[Apple(weight_g=1.0), Apple(weight_g=2.0)]"
    basket = Basket(fruits=(), options={"a": np.float32(0.5), "b": np.int64(3), "c": np.True_})
    assert Fruit.from_yaml(basket.to_yaml()) == Basket(
        fruits=(), options={"a": 0.5, "b": 3, "c": True}
    )


def test_infinity_prints_as_code() -> None:
    endless = Apple(weight_g=float("inf"))
    assert eval(repr(endless), {"Apple": Apple}) == endless
    assert Fruit.from_yaml(endless.to_yaml()) == endless


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("aple", r"unknown fruit 'aple'. Did you mean 'apple'\? Known: apple, basket, fruit_salad"),
        ({"apple": {"wieght_g": 1}}, r"apple has no field 'wieght_g'. Did you mean 'weight_g'\?"),
        ({"apple": {"weight_g": 0}}, r"`weight_g` of apple must be greater than 0, got 0. A small"),
        (
            {"apple": {"weight_g": "much"}},
            r"`weight_g` of apple must be a (whole )?number, got 'much'",
        ),
        ({"apple": 3}, r"the fields of apple are a mapping, got 3. Known: weight_g, colour."),
        ({"basket": {}}, r"basket needs the field `fruits`."),
        ({"basket": ["apple", "pear"]}, r"in `fruits.1`: unknown fruit 'pear'"),
        ({"basket": {"fruits": [{"basket": ["pear"]}]}}, r"in `fruits.0`: in `fruits.0`: unknown"),
        (
            {"basket": {"fruits": [], "limit": "no"}},
            r"^`limit` of basket must be a whole number or must be False, got 'no'.$",
        ),
        ({"apple": {}, "basket": {}}, r"one name with its fields, .* got the keys"),
        (None, r"a fruit must be a mapping of fields .*, got None"),
        ("tests.core.samples:Net", r"'tests.core.samples:Net' is not a Fruit that can be made"),
        ("tests.core.samples:Fruit", r"'tests.core.samples:Fruit' is not a Fruit that can be made"),
        ("tests.core.samples:Aple", r"has no 'Aple'. Did you mean 'Apple'\?"),
        ("tests.core.sample:Apple", r"cannot import 'tests.core.sample'"),
        ({"fruit_salad": {"exact": "basket"}}, r"in `exact`: apple has no field 'basket'"),
        (
            {"fruit_salad": {"main": {"apple": {"weight_g": -1}}}},
            r"^in `main`: `weight_g` of apple must be greater than 0, got -1. A small one has .*$",
        ),
    ],
)
def test_what_is_wrong_is_named_with_what_to_do(data: Any, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Fruit.from_data(data)


def test_what_is_not_yaml_is_refused() -> None:
    with pytest.raises(SpecError, match="this is not YAML"):
        Fruit.from_yaml("apple: {")


def test_a_key_that_is_written_twice_is_refused() -> None:
    with pytest.raises(SpecError, match=r"'weight_g' is written 2 times .*line 2"):
        Apple.from_yaml("apple:\n  {weight_g: 1, colour: red, weight_g: 2}")


def test_every_wrong_field_is_named_at_once() -> None:
    with pytest.raises(SpecError, match="weight_g") as caught:
        Apple.from_data({"weight_g": -1, "colour": "green", "size": 3})
    lines = str(caught.value).splitlines()
    assert [line.split("`")[1] for line in lines[:2]] == ["weight_g", "colour"]
    assert lines[2] == "apple has no field 'size'. Known: colour, weight_g."


def test_a_field_with_the_name_of_its_own_class_is_refused() -> None:
    fields: dict[str, Any] = {"apple": {"weight_g": 1}}
    with pytest.raises(SpecError, match=r"apple has no field 'apple'. Known: colour, weight_g."):
        Apple(**fields)


@pytest.mark.parametrize(
    ("fruit", "message"),
    [
        (FruitSalad(knife=lambda: None), r"`fruit_salad.knife` holds '.*<lambda>'.* top level"),
        (FruitSalad(main=nn.Linear(1, 1)), r"`fruit_salad.main` holds a network \(Linear\)"),
        (FruitSalad(numbers=torch.zeros(2)), r"`fruit_salad.numbers` holds Tensor"),
        (Basket(fruits=(FruitSalad(numbers=torch.zeros(2)),)), r"`fruit_salad.numbers` holds"),
        (Basket(fruits=(), options={"a": [0, object()]}), r"`basket.options.a\[1\]` holds object"),
    ],
)
def test_what_a_file_cannot_hold_is_named_on_saving(fruit: Fruit, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        fruit.to_yaml()


def test_a_stand_in_is_written_for_what_a_file_cannot_hold() -> None:
    salad = FruitSalad(main=nn.Linear(1, 1), numbers=torch.zeros(2))
    data = salad.to_data(lambda value: type(value).__name__)
    assert data == {"fruit_salad": {"main": "Linear", "numbers": "Tensor"}}


def test_a_function_is_written_by_its_path_and_found_again() -> None:
    salad = FruitSalad(knife=torch.nn.init.zeros_, recipe=Net)
    assert salad.to_data() == {
        "fruit_salad": {"knife": "torch.nn.init:zeros_", "recipe": "tests.core.samples:Net"}
    }
    data = {"fruit_salad": {"recipe": "tests.core.samples:Net"}}
    assert Fruit.from_data(data) == FruitSalad(recipe=Net)


def test_a_copy_is_checked() -> None:
    apple = Apple(weight_g=100)
    assert apple.model_copy(update={"colour": "blue"}) == Apple(weight_g=100, colour=Colour.BLUE)
    assert apple == Apple(weight_g=100)
    with pytest.raises(SpecError, match="must be greater than 0, got -1"):
        apple.model_copy(update={"weight_g": -1})
    with pytest.raises(SpecError, match="apple has no field 'wieght_g'"):
        apple.model_copy(update={"wieght_g": 1})
    with pytest.raises(SpecError, match="immutable"):
        apple.model_copy(deep=True)


def test_a_spec_cannot_be_changed() -> None:
    apple: Any = Apple()
    with pytest.raises(ValueError, match="frozen"):
        apple.weight_g = 1


def test_two_objects_do_not_share_a_default() -> None:
    one, two = Basket(fruits=()), Basket(fruits=())
    assert one.options is not two.options


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (FruitSalad(numbers=torch.ones(2)), FruitSalad(numbers=torch.ones(2)), True),
        (FruitSalad(numbers=torch.ones(2)), FruitSalad(numbers=torch.zeros(2)), False),
        (FruitSalad(numbers=torch.ones(2)), FruitSalad(numbers=torch.ones(2).double()), False),
        (FruitSalad(numbers=torch.ones(2)), FruitSalad(), False),
        (
            Basket(fruits=(), options={"a": torch.ones(2)}),
            Basket(fruits=(), options={"a": torch.ones(2)}),
            True,
        ),
        (
            Basket(fruits=(), options={"a": np.ones(2)}),
            Basket(fruits=(), options={"a": np.zeros(2)}),
            False,
        ),
        (Basket(fruits=(), limit=0), Basket(fruits=(), limit=False), False),
        (Apple(), FruitSalad(), False),
    ],
)
def test_equality_is_by_class_and_value(left: Spec, right: Spec, same: bool) -> None:
    assert (left == right) is same
    assert not same or hash(left) == hash(right)


def test_values_without_the_name_of_their_field_are_refused() -> None:
    by_position: Any = Apple
    with pytest.raises(
        SpecError, match=r"Apple takes its fields by name, got 0.5 without one. Write"
    ):
        by_position(0.5)
    with pytest.raises(SpecError, match=r"Write Apple\(weight_g=...\). Known: weight_g, colour"):
        by_position(1, Colour.BLUE)


def test_one_spec_is_no_list_of_specs() -> None:
    with pytest.raises(
        SpecError, match=r"`fruits` of basket must be a list, got Apple\(\). Write fr"
    ):
        Basket(fruits=Apple())


def test_a_spec_of_another_kind_is_refused_with_the_kind_that_is_wanted() -> None:
    with pytest.raises(SpecError, match=r"`exact` of fruit_salad must be a Apple, got Basket"):
        FruitSalad(exact=Basket(fruits=()))


def test_a_kind_without_abstract_methods_is_written_by_the_name_of_one_of_it() -> None:
    class Seasoning(Spec, ABC):
        def season(self) -> str:
            return ""

    class Salt(Seasoning):
        grams: int = 1

    class Dish(Spec):
        seasonings: tuple[Seasoning, ...]

    dish = Dish(seasonings=(Salt(grams=2), Salt()))
    assert dish.to_data() == {"dish": {"seasonings": [{"salt": {"grams": 2}}, "salt"]}}
    assert Dish.model_validate(dish.to_data()) == dish
    with pytest.raises(SpecError, match="unknown seasoning 'pepper'"):
        Dish(seasonings=["pepper"])
