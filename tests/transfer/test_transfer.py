from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import Context, ModelError, SpecError, find_head, model_tensors
from overhaul.testing import TinyCNN, tiny_cnn
from overhaul.training import AdamW, Train
from overhaul.transfer import Freeze, Frozen, ReplaceHead, Unfreeze

MakeContext = Callable[..., Context]


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model_tensors(model).items()}


def test_frozen_layers_do_not_change_and_the_rest_does(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(deepcopy(model))
    Freeze(exclude=("fc",)).apply(model, ctx)
    before = tensors_of(model)
    plan = Train(epochs=3, batch_size=8, optimizer=AdamW(lr=1e-2, weight_decay=0.5), keep="last")
    plan.apply(model, ctx)
    after = model_tensors(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_without_freeze_batchnorm_statistics_do_move(make_context: MakeContext) -> None:
    model = tiny_cnn()
    before = tensors_of(model)
    Train(epochs=1, keep="last").apply(model, make_context(deepcopy(model)))
    assert not torch.equal(before["bn.running_mean"], model.bn.running_mean)  # type: ignore[arg-type]


def test_dropout_of_a_frozen_layer_is_off_while_training(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(deepcopy(model))
    Freeze(exclude=("fc",)).apply(model, ctx)
    (frozen,) = ctx.carried
    assert isinstance(frozen, Frozen)
    bound = frozen.bind(model, ctx)
    model.train()
    bound.set_mode_()
    assert not model.dropout.training
    assert not model.bn.training
    assert model.fc.training


def test_the_parent_of_an_excluded_layer_keeps_training(make_context: MakeContext) -> None:
    model = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.Dropout()), nn.Linear(2, 2))
    ctx = make_context(model)
    Freeze(exclude=("0.0",)).apply(model, ctx)
    (frozen,) = ctx.carried
    assert frozen == Frozen(modules=("0.1", "1"), parameters=("1.bias", "1.weight"))


def test_unfreeze_lets_a_layer_train_again(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(deepcopy(model))
    Freeze().apply(model, ctx)
    with pytest.raises(SpecError, match=r"Put Unfreeze before Train"):
        Train(epochs=1).apply(model, ctx)
    Unfreeze(layers=("conv",)).apply(model, ctx)
    before = tensors_of(model)
    Train(epochs=2, keep="last").apply(model, ctx)
    after = model_tensors(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"conv.weight", "conv.bias"}


def test_freezing_twice_adds_up_and_unfreezing_all_leaves_nothing(
    make_context: MakeContext,
) -> None:
    model = tiny_cnn()
    ctx = make_context(deepcopy(model))
    Freeze(layers=("conv",)).apply(model, ctx)
    Freeze(layers=("fc",)).apply(model, ctx)
    assert [n for n, p in model.named_parameters() if p.requires_grad] == ["bn.weight", "bn.bias"]
    Unfreeze().apply(model, ctx)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert ctx.carried == []


def test_a_pattern_that_matches_nothing_is_refused(make_context: MakeContext) -> None:
    model = tiny_cnn()
    with pytest.raises(ModelError, match=r"`layers` 'con' matches nothing. Did you mean 'conv'"):
        Freeze(layers=("con",)).apply(model, make_context(model))
    with pytest.raises(ModelError, match=r"`exclude` 'head' matches nothing"):
        Freeze(exclude=("head",)).apply(model, make_context(model))


def test_replace_head_finds_it_and_sizes_it_by_the_task(make_context: MakeContext) -> None:
    model = TinyCNN(classes=100)
    ctx = make_context(deepcopy(model))
    changed = ReplaceHead().apply(model, ctx)
    head = changed.get_submodule("fc")
    assert isinstance(head, nn.Linear)
    assert head.out_features == 3
    assert head.training == model.training
    assert [fact.value for fact in ctx.facts if fact.name == "head"] == ["fc"]


class _NamedHead(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
        self.score = nn.Conv2d(4, 5, 1)
        self.unused = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.score(self.body(x)[:, :, None, None])
        return scores.flatten(1)


def test_a_convolution_may_be_the_head(make_context: MakeContext) -> None:
    model = _NamedHead()
    ctx = make_context(deepcopy(model))
    assert find_head(model, next(ctx.data.train.in_order(2))) == "score"
    changed = ReplaceHead().apply(model, ctx)
    assert changed(torch.rand(2, 1, 8, 8)).shape == (2, 3)


def test_a_head_that_cannot_be_found_is_asked_for(make_context: MakeContext) -> None:
    class Scaled(TinyCNN):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = Scaled(classes=7)
    with pytest.raises(ModelError, match=r"Name it with `head`; .* conv, fc"):
        ReplaceHead().apply(model, make_context(model))
    changed = ReplaceHead(head="fc").apply(model, make_context(model))
    assert changed(torch.rand(2, 1, 8, 8)).shape == (2, 3)


def test_a_head_that_is_not_there_is_refused(make_context: MakeContext) -> None:
    model = tiny_cnn()
    with pytest.raises(ModelError, match=r"`head` 'fcc' is not in the model. Did you mean 'fc'"):
        ReplaceHead(head="fcc").apply(model, make_context(model))


def test_a_head_of_another_kind_is_refused(make_context: MakeContext) -> None:
    model = tiny_cnn()
    with pytest.raises(ModelError, match=r"'bn' is a BatchNorm2d"):
        ReplaceHead(head="bn").apply(model, make_context(model))


def test_a_frozen_body_with_a_new_head_learns(make_context: MakeContext) -> None:
    model = tiny_cnn()
    Train(epochs=8, batch_size=8, optimizer=AdamW(lr=1e-2)).apply(model, make_context(model))
    ctx = make_context(deepcopy(model))
    ctx.checkpoints._path = ctx.checkpoints._path / "head"
    fresh = ReplaceHead().apply(model, ctx)
    Freeze(exclude=("fc",)).apply(fresh, ctx)
    Train(epochs=10, batch_size=8, optimizer=AdamW(lr=3e-2)).apply(fresh, ctx)
    assert max(float(f.value or 0) for f in ctx.facts if f.name == "val_accuracy") > 0.9
