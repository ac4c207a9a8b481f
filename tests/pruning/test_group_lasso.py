from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from overhaul.core import Context, ModelError, SpecError
from overhaul.distillation import Distill
from overhaul.graph import Graph
from overhaul.pruning import GroupLasso, RemoveRedundant
from overhaul.pruning._group_lasso import shrink_
from overhaul.pruning._unit_norms import squared_norms
from overhaul.testing import tiny_cnn
from overhaul.training import SGD, AdamW, Train

MakeContext = Callable[..., Context]


@given(weight=st.floats(0.001, 0.5), seed=st.integers(0, 20))
def test_it_is_the_proximal_step_of_the_penalty(weight: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).double()
    (group,) = Graph(model, (torch.zeros(1, 4, dtype=torch.float64),)).groups
    own = dict(model.named_parameters())
    before = {name: parameter.detach().clone() for name, parameter in own.items()}
    with torch.no_grad():
        shrink_(group, own, weight)
    size = 4 + 1 + 2
    for unit in range(6):
        w = torch.cat([before["0.weight"][unit], before["0.bias"][unit : unit + 1]])
        w = torch.cat([w, before["2.weight"][:, unit]])
        factor = max(0.0, 1 - weight * size**0.5 / float(w.norm()))
        torch.testing.assert_close(own["0.weight"][unit], factor * before["0.weight"][unit])
        torch.testing.assert_close(own["0.bias"][unit], factor * before["0.bias"][unit])
        torch.testing.assert_close(own["2.weight"][:, unit], factor * before["2.weight"][:, unit])
    assert torch.equal(own["2.bias"], before["2.bias"])


def norms_of(model: nn.Module) -> torch.Tensor:
    (group,) = Graph(model, (torch.zeros(1, 1, 8, 8),)).groups
    with torch.no_grad():
        return squared_norms(group, dict(model.named_parameters())).sqrt()


@pytest.mark.parametrize("optimizer", [SGD(lr=0.01), AdamW(lr=1e-3)], ids=["sgd", "adamw"])
def test_units_become_zero_and_are_removed_without_loss(
    make_context: MakeContext, optimizer: SGD | AdamW
) -> None:
    model = tiny_cnn()
    with torch.no_grad():
        for tensor in (model.conv.weight, model.conv.bias, model.bn.weight, model.bn.bias):
            assert tensor is not None
            tensor[:3] *= 1e-3
        model.fc.weight[:, :48] *= 1e-3
    ctx = make_context(deepcopy(model))
    plan = Train(
        epochs=4,
        batch_size=8,
        optimizer=optimizer,
        constraints=(GroupLasso(weight=2e-3),),
        keep="last",
    )
    plan.apply(model, ctx)
    norms = norms_of(model)
    assert (norms[:3] == 0).all()
    assert (norms[3:] > 0).all()
    x = torch.rand(4, 1, 8, 8)
    expected = deepcopy(model).eval()(x)
    smaller = RemoveRedundant().apply(model, ctx)
    assert len(smaller.get_parameter("conv.weight")) == 3
    torch.testing.assert_close(smaller.eval()(x), expected, rtol=1e-4, atol=1e-5)


def trained(make_context: MakeContext, *constraints: GroupLasso) -> nn.Module:
    model = tiny_cnn()
    ctx = make_context(deepcopy(model))
    ctx.checkpoints._path = ctx.checkpoints._path / str(constraints)
    plan = Train(epochs=2, batch_size=8, objective=Distill(), constraints=constraints, keep="last")
    assert plan.control() == Train(epochs=2, batch_size=8, keep="last")
    return plan.apply(model, ctx)


def test_a_growing_penalty_shrinks_more_and_goes_with_any_objective(
    make_context: MakeContext,
) -> None:
    plain = norms_of(trained(make_context)).sum()
    weak = norms_of(trained(make_context, GroupLasso(weight=1e-4))).sum()
    grown = norms_of(trained(make_context, GroupLasso(weight=1e-4, growth=1e-3))).sum()
    assert grown < weak < plain


def test_it_goes_on_where_it_was(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(model)
    plan = GroupLasso(weight=1e-3, growth=1e-2)
    first, twin = plan.bind(model, ctx), plan.bind(copy := deepcopy(model), ctx)
    for bound in (first, twin):
        bound.project_()
        bound.project_()
    resumed = plan.bind(copy, ctx)
    resumed.load_(twin.state())
    first.project_()
    resumed.project_()
    assert torch.equal(model.conv.weight, copy.conv.weight)
    assert first.state() == resumed.state() == {"steps": 3}


def test_excluded_and_frozen_parts_stay(make_context: MakeContext) -> None:
    model = tiny_cnn()
    before = deepcopy(model)
    ctx = make_context(before)
    with pytest.raises(ModelError, match=r"All 1 groups are in `exclude`, or frozen"):
        GroupLasso(weight=0.1, exclude=("fc",)).bind(model, ctx)
    assert torch.equal(model.conv.weight, before.conv.weight)
    model.fc.requires_grad_(False)
    GroupLasso(weight=0.1).bind(model, ctx).project_()
    assert torch.equal(model.fc.weight, before.fc.weight)
    assert not torch.equal(model.conv.weight, before.conv.weight)
    with pytest.raises(ModelError, match=r"`exclude` 'head' matches nothing"):
        GroupLasso(weight=0.1, exclude=("head",)).bind(model, ctx)


def test_wrong_values_are_refused() -> None:
    with pytest.raises(SpecError, match=r"greater than 0, got 0.* shrinkage"):
        GroupLasso(weight=0)
    with pytest.raises(SpecError, match=r"`growth` .* got -1"):
        GroupLasso(weight=1, growth=-1)


def zero_units(ctx: Context) -> tuple[object, dict[str, object], str | None]:
    (fact,) = [fact for fact in ctx.facts if fact.name == "zero_units"]
    return fact.value, fact.detail, fact.reason


def test_it_says_how_many_units_are_zero_in_the_weights_that_are_kept(
    make_context: MakeContext,
) -> None:
    strong = GroupLasso(weight=1.0)
    for keep, zeros in (("last", 6), ("best", 0)):
        ctx = make_context(tiny_cnn())
        ctx.checkpoints._path = ctx.checkpoints._path / keep
        plan = Train(epochs=1, batch_size=8, constraints=(strong,), keep=keep)
        plan.apply(tiny_cnn(), ctx)
        value, detail, reason = zero_units(ctx)
        assert (value, detail["of"]) == (zeros, 6)
        assert (reason is None) == (zeros > 0)
    assert detail["near_zero"] == 6  # those from before the training


@torch.no_grad()
def test_units_near_zero_are_counted(make_context: MakeContext) -> None:
    model = tiny_cnn()
    for tensor in (model.conv.weight, model.conv.bias, model.bn.weight, model.bn.bias):
        assert tensor is not None
        tensor[:2] *= 1e-6
    model.fc.weight[:, : 2 * 16] *= 1e-6
    ctx = make_context(model)
    GroupLasso(weight=1e-5).bind(model, ctx).release_()
    value, detail, reason = zero_units(ctx)
    assert (value, detail) == (0, {"of": 6, "near_zero": 2})
    assert reason is not None


def test_a_model_without_units_is_refused(make_context: MakeContext) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ModelError, match=r"no unit to shrink. Nothing of .* is the model's output"):
        GroupLasso(weight=0.1).bind(model, make_context(model))
    with pytest.raises(ModelError, match=r"All 1 groups are in `exclude`, or frozen"):
        GroupLasso(weight=0.1, exclude=("*",)).bind(tiny_cnn(), make_context(tiny_cnn()))
