from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from overhaul.core import Context, ModelError, SpecError
from overhaul.pruning import KeepZeros, PruneWeights
from overhaul.pruning._prune_weights import zero_smallest_
from overhaul.testing import tiny_cnn
from overhaul.training import SGD, AdamW, Train

MakeContext = Callable[..., Context]


@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    sparsity=st.floats(0, 0.99),
    seed=st.integers(0, 99),
)
def test_exactly_the_smallest_become_zero(sizes: list[int], sparsity: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = [torch.randn(size, generator=generator) for size in sizes]
    before = torch.cat(weights)
    zero_smallest_(weights, sparsity)
    after = torch.cat(weights)
    gone = after == 0
    assert int(gone.sum()) == round(sparsity * len(before))
    assert torch.equal(after[~gone], before[~gone])
    if gone.any() and not gone.all():
        assert before[gone].abs().max() <= before[~gone].abs().min()


def test_equal_magnitudes_still_give_the_exact_count() -> None:
    weights = [torch.ones(10), -torch.ones(10)]
    zero_smallest_(weights, 0.35)
    assert sum(int((w == 0).sum()) for w in weights) == 7


def test_global_and_per_layer_differ(make_context: MakeContext) -> None:
    model = tiny_cnn()
    with torch.no_grad():
        model.fc.weight.mul_(0.01)
    by_layer, together = deepcopy(model), deepcopy(model)
    PruneWeights(sparsity=0.5, scope="layer").apply(by_layer, make_context(model))
    PruneWeights(sparsity=0.5).apply(together, make_context(model))
    assert zeros(by_layer.conv.weight) == pytest.approx(0.5, abs=0.01)
    assert zeros(by_layer.fc.weight) == pytest.approx(0.5, abs=0.01)
    assert zeros(together.conv.weight) < 0.01 < zeros(together.fc.weight)


def zeros(weight: Tensor) -> float:
    return float((weight == 0).float().mean())


def test_threshold_takes_what_is_not_above_it(make_context: MakeContext) -> None:
    model = tiny_cnn()
    before = model.fc.weight.detach().clone()
    PruneWeights(threshold=0.05, layers=("fc",)).apply(model, make_context(deepcopy(model)))
    assert torch.equal(model.fc.weight == 0, before.abs() <= 0.05)


def test_biases_and_norms_are_left(make_context: MakeContext) -> None:
    model = tiny_cnn()
    PruneWeights(sparsity=0.9).apply(model, make_context(deepcopy(model)))
    assert (model.fc.bias != 0).all()
    assert (model.bn.weight != 0).all()


def test_zeros_survive_later_training(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(deepcopy(model))
    PruneWeights(sparsity=0.7).apply(model, ctx)
    masks = {name: p == 0 for name, p in model.named_parameters() if p.ndim >= 2}
    before = model.fc.weight.detach().clone()
    plan = Train(epochs=3, batch_size=8, optimizer=AdamW(lr=1e-2, weight_decay=0.1), keep="last")
    plan.apply(model, ctx)
    for name, mask in masks.items():
        assert torch.equal(model.get_parameter(name) == 0, mask), name
    assert not torch.equal(model.fc.weight, before)


def test_zeros_survive_momentum_from_before_the_pruning(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(deepcopy(model))
    PruneWeights(sparsity=0.5).apply(model, ctx)
    Train(epochs=2, batch_size=8, optimizer=SGD(lr=0.1), keep="last").apply(model, ctx)
    PruneWeights(sparsity=0.8).apply(model, ctx)
    assert [type(item) for item in ctx.carried] == [KeepZeros]
    ctx.checkpoints._path = ctx.checkpoints._path / "second"
    Train(epochs=2, batch_size=8, optimizer=SGD(lr=0.1), keep="last").apply(model, ctx)
    total = sum(p.numel() for p in (model.conv.weight, model.fc.weight))
    gone = sum(int((p == 0).sum()) for p in (model.conv.weight, model.fc.weight))
    assert gone == round(0.8 * total)


def test_recurrent_and_attention_matrices_are_pruned(make_context: MakeContext) -> None:
    model = nn.ModuleDict({"lstm": nn.LSTM(4, 5), "attention": nn.MultiheadAttention(8, 2)})
    ctx = make_context(model)
    PruneWeights(sparsity=0.5, scope="layer").apply(model, ctx)
    names = {fact.detail["parameter"] for fact in ctx.facts if fact.name == "layer_sparsity"}
    assert names == {
        "lstm.weight_ih_l0",
        "lstm.weight_hh_l0",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    }


def test_what_is_skipped_is_named_with_its_reason(make_context: MakeContext) -> None:
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    ctx = make_context(model)
    PruneWeights(sparsity=0.5).apply(model, ctx)
    (skipped,) = [fact for fact in ctx.facts if fact.name == "skipped"]
    assert skipped.value == "0.weight"
    assert "Embedding" in (skipped.reason or "")
    named = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 2))
    PruneWeights(sparsity=0.5, layers=("0",)).apply(named, make_context(named))
    assert zeros(named.get_parameter("0.weight")) == 0.5


def test_patterns_that_match_nothing_are_refused(make_context: MakeContext) -> None:
    model = tiny_cnn()
    with pytest.raises(ModelError, match=r"`layers` 'conv2' matches nothing. Did you mean 'conv'"):
        PruneWeights(sparsity=0.5, layers=("conv2",)).apply(model, make_context(model))
    with pytest.raises(ModelError, match=r"`exclude` 'head' matches nothing"):
        PruneWeights(sparsity=0.5, exclude=("head",)).apply(model, make_context(model))


def test_excluded_layers_stay(make_context: MakeContext) -> None:
    model = tiny_cnn()
    PruneWeights(sparsity=0.9, exclude=("fc",)).apply(model, make_context(deepcopy(model)))
    assert zeros(model.fc.weight) == 0.0
    assert zeros(model.conv.weight) == pytest.approx(0.9, abs=0.02)


def test_nan_weights_are_refused(make_context: MakeContext) -> None:
    model = tiny_cnn()
    with torch.no_grad():
        model.fc.weight[0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"'fc.weight' has NaN"):
        PruneWeights(sparsity=0.5).apply(model, make_context(model))


def test_wrong_targets_are_refused() -> None:
    with pytest.raises(SpecError, match=r"less than 1, got 1.2. .* write 0.9"):
        PruneWeights(sparsity=1.2)
    with pytest.raises(SpecError, match=r"one of `sparsity` and `threshold`"):
        PruneWeights(sparsity=0.5, threshold=0.1)
    with pytest.raises(SpecError, match=r"one of `sparsity` and `threshold`"):
        PruneWeights()


def test_masks_need_parameters_that_exist(make_context: MakeContext) -> None:
    model = tiny_cnn()
    with pytest.raises(ModelError, match=r"no 'fc.wieght'. Did you mean 'fc.weight'"):
        KeepZeros(parameters=("fc.wieght",)).bind(model, make_context(model))
