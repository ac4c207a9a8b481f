"""Every public spec, found by walking `overhaul.__all__`, keeps the contract of its kind."""

import inspect
from typing import Any

import numpy as np
import pytest
from torch import nn

import overhaul
from overhaul.core import Context, Spec, Step
from overhaul.graph import Graph
from overhaul.pruning import Criterion, PruneChannels
from overhaul.testing import check_spec, check_step, example_of, tiny_multi_task, tiny_residual

SPECS = [
    cls
    for name in overhaul.__all__
    if inspect.isclass(cls := getattr(overhaul, name))
    and issubclass(cls, Spec)
    and not inspect.isabstract(cls)
]
STEPS = [cls for cls in SPECS if issubclass(cls, Step)]
TASKS = {"AddHeads": tiny_multi_task}
"""What makes the task of a step that is not for one of a single part."""
MODELS = {"DropLayers": tiny_residual}
"""What makes the model of a step that has nothing to do in a network without blocks."""
METHOD_ROOMS = ("pruning", "distillation", "transfer", "multitask")


def test_something_is_found() -> None:
    assert len(STEPS) >= 6
    assert len(SPECS) > len(STEPS)


@pytest.mark.parametrize("cls", SPECS, ids=lambda cls: cls.__name__)
def test_spec(cls: type[Spec]) -> None:
    check_spec(example_of(cls))


@pytest.mark.parametrize("cls", SPECS, ids=lambda cls: cls.__name__)
def test_every_field_is_described_in_the_docstring(cls: type[Spec]) -> None:
    text = "".join(inspect.getdoc(base) or "" for base in cls.__mro__ if issubclass(base, Spec))
    missing = [name for name in cls.model_fields if f"{name}:" not in text]
    assert missing == []


@pytest.mark.parametrize("cls", STEPS, ids=lambda cls: cls.__name__)
def test_step(cls: type[Step]) -> None:
    step = example_of(cls)
    assert isinstance(step, Step)
    make_task, make_model = TASKS.get(cls.__name__), MODELS.get(cls.__name__)
    check_step(
        step,
        model=make_model() if make_model is not None else None,
        task=make_task() if make_task is not None else None,
    )


@pytest.mark.parametrize("cls", STEPS, ids=lambda cls: cls.__name__)
def test_a_method_names_its_paper(cls: type[Step]) -> None:
    if cls.__module__.split(".")[1] in METHOD_ROOMS and cls.__name__ != "Unfreeze":
        assert "Paper:" in (inspect.getdoc(cls) or "")
    else:
        assert cls.__doc__


class Countdown(Criterion):
    """A plug of the user's own: the last unit is worth least.

    Example:
        >>> Countdown()
        Countdown()
    """

    def scores(self, graph: Graph, model: nn.Module, ctx: Context) -> dict[str, Any]:
        return {g.name: -np.arange(g.units, dtype=np.float64) for g in graph.groups}


class Bundle(Spec):
    """A spec of the user's own that holds plugs in all ways.

    Example:
        >>> Bundle(many=(Countdown(),))
        Bundle(many=(Countdown(),))
    """

    many: tuple[Criterion, ...] = ()
    named: tuple[tuple[str, Criterion], ...] = ()


def test_a_step_may_hold_a_plug_of_the_users_own() -> None:
    check_step(PruneChannels(fraction=0.5, criterion=Countdown()))


def test_a_plug_of_the_users_own_may_be_in_a_collection() -> None:
    check_spec(Bundle(many=(Countdown(),), named=(("one", Countdown()),)))
