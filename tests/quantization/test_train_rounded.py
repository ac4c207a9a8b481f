"""`Quantize` with a training: what it gains, with what it composes, and that it goes on."""

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from overhaul.core import (
    Context,
    ModelError,
    OrderError,
    Progress,
    SpecError,
    Trait,
    model_tensors,
    rebuild,
    trainable_names,
)
from overhaul.distillation import Distill
from overhaul.pruning import PruneWeights
from overhaul.quantization import Quantize
from overhaul.running import Recipe
from overhaul.testing import check_step, tiny_cnn, tiny_task
from overhaul.training import AdamW, BoundObserver, Observer, Train

MakeContext = Callable[..., Context]

TRAINING = Train(epochs=4, batch_size=8, optimizer=AdamW(lr=1e-2))


@pytest.fixture
def trained(make_context: MakeContext) -> nn.Module:
    model = tiny_cnn()
    return Train(epochs=6, batch_size=8, optimizer=AdamW(lr=1e-2)).apply(model, make_context(model))


def uneven(model: nn.Module) -> nn.Module:
    """Return the same function, with channels of very different size: one scale cannot do."""
    model = deepcopy(model).eval()
    factors = torch.tensor([1.0, 100.0, 1.0, 300.0, 1.0, 1.0])
    with torch.no_grad():
        model.get_parameter("bn.weight").mul_(factors)
        model.get_parameter("bn.bias").mul_(factors)
        model.get_parameter("fc.weight").div_(factors.repeat_interleave(16))
    return model


def facts_of(ctx: Context) -> dict[str, Any]:
    return {fact.name: fact.value for fact in ctx.facts}


@pytest.mark.parametrize("keep", ["best", "last"])
def test_training_recovers_what_rounding_lost(
    keep: str, trained: nn.Module, make_context: MakeContext
) -> None:
    model = uneven(trained)
    ctx = make_context(model)
    training = TRAINING.model_copy(update={"keep": keep, "epochs": 8})
    step = Quantize(weights="int4", granularity="tensor", search=False, training=training)
    found = step.apply(deepcopy(model), ctx)
    facts = facts_of(ctx)
    assert facts["before_training"] < 0.7
    assert facts["after_training"] > 0.9
    assert facts["scale_change"] > 0
    again = rebuild(model, ctx.edits, model_tensors(found), trainable_names(found))
    batch = ctx.data.val.read(torch.arange(24))
    with torch.no_grad():
        out = batch.forward(again.eval())
    assert ctx.task.metrics(out, batch.targets)["accuracy"] == facts["after_training"]


def test_training_without_gain_keeps_what_was_rounded(
    trained: nn.Module, make_context: MakeContext
) -> None:
    without, ctx = make_context(trained), make_context(trained)
    plain = Quantize().apply(deepcopy(trained), without)
    harmful = TRAINING.model_copy(update={"optimizer": AdamW(lr=1.0), "epochs": 1})
    found = Quantize(training=harmful).apply(deepcopy(trained), ctx)
    assert facts_of(ctx)["best_epoch"] == 0
    for name, tensor in model_tensors(plain).items():
        assert torch.equal(model_tensors(found)[name], tensor), name


def test_zeros_stay_and_a_teacher_teaches(trained: nn.Module, make_context: MakeContext) -> None:
    model = deepcopy(trained)
    ctx = make_context(trained)
    model = PruneWeights(sparsity=0.6).apply(model, ctx)
    zeros = {name: model.get_parameter(f"{name}.weight") == 0 for name in ("conv", "fc")}
    training = TRAINING.model_copy(update={"objective": Distill(), "keep": "last"})
    model = Quantize(training=training).apply(model, ctx)
    for name, mask in zeros.items():
        q = model.get_buffer(f"{name}.weight_q")
        assert bool((q[mask] == 0).all())
        assert bool((q[~mask] != 0).any())
    assert facts_of(ctx)["after_training"] > 0.9
    assert ctx.carried == []


class _Interrupt(Exception):  # noqa: N818
    pass


class _StopAt(Observer):
    step: int

    def bind(self, model: nn.Module, ctx: Context) -> BoundObserver:
        return _BoundStop(self.step)


class _BoundStop(BoundObserver):
    def __init__(self, step: int) -> None:
        self.at, self.resumed = step, False

    def after_step(self, step: int, loss: float) -> None:
        if step == self.at and not self.resumed:
            raise _Interrupt

    def load_(self, state: dict[str, Any]) -> None:
        self.resumed = True


def test_a_training_that_was_interrupted_ends_in_the_same_bits(
    trained: nn.Module, make_context: MakeContext
) -> None:
    step = Quantize(weights="int4", granularity="tensor", training=TRAINING)
    model = uneven(trained)
    straight = make_context(model)
    straight.checkpoints = straight.checkpoints.part("straight")
    expected = step.apply(deepcopy(model), straight)
    stopping = TRAINING.model_copy(update={"observers": (_StopAt(step=14),)})
    step = step.model_copy(update={"training": stopping})
    with pytest.raises(_Interrupt):
        step.apply(deepcopy(model), make_context(model))
    ctx = make_context(model)
    assert ctx.checkpoints.part("training").latest() is not None
    found = step.apply(deepcopy(model), ctx)
    for name, tensor in model_tensors(expected).items():
        assert torch.equal(model_tensors(found)[name], tensor), name
    assert [f for f in ctx.facts if f.reproducible] == [f for f in straight.facts if f.reproducible]


def test_the_control_is_the_same_training_in_float(tmp_path: Path) -> None:
    training = TRAINING.model_copy(update={"objective": Distill()})
    step = Quantize(training=training)
    assert step.control() == TRAINING
    assert Quantize().control() is None
    check_step(step)
    run = Recipe(step).run(
        tiny_cnn(), tiny_task(), out=tmp_path / "run", cost=False, progress=Progress(quiet=True)
    )
    labels = {fact.subject for fact in run.facts}
    assert "control/0 train" in labels
    assert "0 quantize, training" in labels


def test_a_training_asks_for_what_it_needs(tmp_path: Path) -> None:
    step = Quantize(training=TRAINING)
    with pytest.raises(OrderError, match="Train needs something to train"):
        step.check(frozenset({Trait.EDITABLE, Trait.FITS_TASK}))
    assert Quantize().check(frozenset({Trait.EDITABLE})) == {Trait.EDITABLE}
    with pytest.raises(SpecError, match="By how much faster scales learn"):
        Quantize(scale_rate=-1)
    missing = TRAINING.model_copy(update={"objective": Distill(teacher=str(tmp_path / "no.pt"))})
    task = tiny_task()
    with pytest.raises(ModelError, match=r"no\.pt"):
        Quantize(training=missing).preflight(tiny_cnn(), task, task.prepare())
