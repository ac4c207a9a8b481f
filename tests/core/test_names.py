"""From class to short name and back."""

import math
from abc import ABC, abstractmethod

import pytest
from torch import nn

from overhaul.core import Spec, SpecError, find_class, import_object, import_path, snake_case
from overhaul.core._names import concrete_subclasses
from tests.core.samples import Net


class Tool(Spec, ABC):
    @abstractmethod
    def use(self) -> None: ...


class Saw(Tool):
    def use(self) -> None: ...


class FineSaw(Saw): ...


class _Secret(Tool):
    def use(self) -> None: ...


class Twin:
    class Saw(Tool):
        def use(self) -> None: ...


TOOL: type[Tool] = Tool  # type: ignore[type-abstract]


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("PruneWeights", "prune_weights"),
        ("KLDivergence", "kldivergence"),
        ("ReplaceHead", "replace_head"),
        ("SGD", "sgd"),
        ("AdamW", "adamw"),
        ("Int8Weights", "int8_weights"),
    ],
)
def test_snake_case(name: str, short: str) -> None:
    assert snake_case(name) == short


def test_known_are_the_public_classes_that_can_be_made() -> None:
    assert set(concrete_subclasses(TOOL)) == {Saw, FineSaw, Twin.Saw}


def test_an_ambiguous_name_asks_for_the_path() -> None:
    with pytest.raises(SpecError, match=r"'saw' is ambiguous. Write one of: .*:Saw, .*:Twin.Saw"):
        find_class(TOOL, "saw")
    assert find_class(TOOL, f"{__name__}:Saw") is Saw
    assert find_class(TOOL, f"{__name__}:Twin.Saw") is Twin.Saw
    assert find_class(TOOL, "fine_saw") is FineSaw


@pytest.mark.parametrize("path", ["x", ":x", "x:", "", "..x:y", "a b:c", "os.path:", "os:path j"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(SpecError, match=r"is not an import path. Write 'package.module:name'"):
        import_object(path)


def test_what_cannot_be_imported_is_refused() -> None:
    with pytest.raises(SpecError, match=r"cannot import 'no_such_module'.*PYTHONPATH"):
        import_object("no_such_module:f")
    with pytest.raises(SpecError, match=r"'math' has no 'sqr'. Did you mean 'sqrt'"):
        import_object("math:sqr")


@pytest.mark.parametrize("thing", [math.sqrt, nn.Linear, nn.Module.train, Net, Twin.Saw])
def test_a_path_leads_back_to_the_object(thing: type) -> None:
    path = import_path(thing)
    assert path is not None
    assert import_object(path) is thing


def test_what_cannot_be_found_again_has_no_path() -> None:
    def local() -> None: ...

    assert import_path(local) is None
    assert import_path(lambda: None) is None
    assert import_path(nn.Linear(1, 1).forward) is None
