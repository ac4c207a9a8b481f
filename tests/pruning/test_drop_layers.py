from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import (
    Context,
    ModelError,
    SpecError,
    matching_names,
    model_tensors,
    rebuild,
    trainable_names,
)
from overhaul.pruning import DropLayers, ReplaceByIdentity
from overhaul.pruning._droppable import of_nested
from overhaul.tasks import Classification
from overhaul.testing import check_step, tiny_residual
from overhaul.training import Train

MakeContext = Callable[..., Context]


def dropped(ctx: Context) -> list[str]:
    return [str(fact.value) for fact in ctx.facts if fact.name == "dropped_layer"]


def sequences() -> Classification:
    """Return a task of two classes on sequences `[5, 8]`."""
    generator = torch.Generator().manual_seed(0)

    def part() -> tuple[Tensor, Tensor]:
        return torch.randn(20, 5, 8, generator=generator), torch.arange(20) % 2

    return Classification(train=part(), val=part(), test=part())


@torch.no_grad()
def test_the_block_that_does_nothing_goes_first(make_context: MakeContext) -> None:
    model = tiny_residual()
    block = model.get_submodule("blocks.1")
    for parameter in block.parameters():
        parameter.zero_()
    original = deepcopy(model)
    ctx = make_context(original)
    smaller = DropLayers(count=1).apply(model, ctx)
    assert dropped(ctx) == ["blocks.1"]
    x = torch.rand(4, 1, 8, 8)
    assert torch.equal(smaller.eval()(x), original.eval()(x))
    again = rebuild(original, ctx.edits, model_tensors(smaller), trainable_names(smaller))
    assert torch.equal(again.eval()(x), smaller(x))


def test_the_least_harmful_by_measured_loss_goes(make_context: MakeContext) -> None:
    original = tiny_residual()
    Train(epochs=6, batch_size=8).apply(original, make_context(deepcopy(original)))
    ctx = make_context(deepcopy(original))
    DropLayers(count=2).apply(deepcopy(original), ctx)
    first, second = [fact for fact in ctx.facts if fact.name == "dropped_layer"]
    assert (first.split, first.n) == ("val", 24)
    batch = next(ctx.data.val.in_order(24))
    losses = {}
    for path in ("blocks.0", "blocks.1", "blocks.2"):
        model = ReplaceByIdentity(path=path).apply(deepcopy(original)).eval()
        losses[path] = ctx.task.loss(batch.forward(model), batch.targets).item()
    assert first.detail["losses"] == pytest.approx(losses, rel=1e-4)
    assert first.value == min(losses, key=lambda path: losses[path])
    assert second.detail["before"] == first.detail["after"]
    assert len(second.detail["losses"]) == 2


@pytest.mark.parametrize(
    ("step", "count"),
    [
        (DropLayers(count=3), 3),
        (DropLayers(fraction=0.3), 1),
        (DropLayers(fraction=0.01), 1),
        (DropLayers(fraction=0.7), 2),
        (DropLayers(macs=0.8), 1),
        (DropLayers(macs=0.5), 2),
    ],
)
def test_each_target_is_met_and_not_more(
    make_context: MakeContext, step: DropLayers, count: int
) -> None:
    model = tiny_residual()
    ctx = make_context(deepcopy(model))
    step.apply(model, ctx)
    assert len(dropped(ctx)) == count
    (kept,) = [fact.value for fact in ctx.facts if fact.name == "kept_macs"]
    assert step.macs is None or (isinstance(kept, float) and kept <= step.macs)


def test_targets_out_of_reach_are_refused_before_any_change(make_context: MakeContext) -> None:
    model = tiny_residual()
    ctx = make_context(deepcopy(model))
    with pytest.raises(ModelError, match=r"keeps 0\.\d+ of its MACs when all 3 .* 0\.010 was"):
        DropLayers(macs=0.01).apply(model, ctx)
    with pytest.raises(ModelError, match=r"`count` is 4, and 3 layers can go: blocks.0"):
        DropLayers(count=4).apply(model, ctx)
    assert ctx.edits == []


@pytest.mark.parametrize("fields", [{}, {"count": 1, "macs": 0.5}])
def test_one_target_is_needed(fields: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=r"exactly one of `count`, `fraction` and `macs`"):
        DropLayers.from_data({"drop_layers": fields})
    with pytest.raises(SpecError, match=r"less than 1, got 1.5.* write 0.5"):
        DropLayers(macs=1.5)


def test_patterns_choose_and_spare(make_context: MakeContext) -> None:
    model = tiny_residual()
    ctx = make_context(deepcopy(model))
    DropLayers(count=1, exclude=("blocks.0", "blocks.2")).apply(deepcopy(model), ctx)
    assert dropped(ctx) == ["blocks.1"]
    ctx = make_context(deepcopy(model))
    DropLayers(count=1, layers=("blocks.2",)).apply(deepcopy(model), ctx)
    assert dropped(ctx) == ["blocks.2"]
    with pytest.raises(ModelError, match=r"`exclude` 'block' matches nothing. Did you mean"):
        DropLayers(count=1, exclude=("block",)).apply(model, ctx)
    with pytest.raises(ModelError, match=r"`layers` 'block' matches nothing. Did you mean"):
        DropLayers(count=1, layers=("block",)).apply(model, ctx)


def test_a_part_that_stays_keeps_what_it_is_in(make_context: MakeContext) -> None:
    model = tiny_residual()
    ctx = make_context(deepcopy(model))
    spared = ("blocks.0.conv", "blocks.1.bn")
    DropLayers(count=1, exclude=spared).apply(model, ctx)
    assert dropped(ctx) == ["blocks.2"]


def test_the_test_split_stays_sealed_and_flags_stay(make_context: MakeContext) -> None:
    model = tiny_residual().train()
    model.stem.eval()
    ctx = make_context(deepcopy(model))
    before = model_tensors(model)
    DropLayers(count=1).apply(model, ctx)
    assert (model.training, model.stem.training) == (True, False)
    assert all(module.training for module in model.blocks.modules())
    after = model_tensors(model)
    assert all(torch.equal(before[name], tensor) for name, tensor in after.items())


def test_encoder_layers_go(make_context: MakeContext) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder = nn.TransformerEncoder(layer, 3, enable_nested_tensor=False)
            self.fc = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.fc(self.encoder(x).mean(1))
            return logits

    model = Encoder()
    ctx = make_context(deepcopy(model), task=sequences())
    smaller = DropLayers(fraction=0.7).apply(model, ctx)
    (found,) = [fact for fact in ctx.facts if fact.name == "dropped_layers"]
    assert (found.value, found.detail) == (1, {"of": 2})
    (skipped,) = [fact for fact in ctx.facts if fact.name == "skipped"]
    assert skipped.value == "encoder.layers.0"  # torch's encoder looks into its first layer
    assert all(path.startswith("encoder.layers.") for path in dropped(ctx))
    logits = smaller(torch.randn(2, 5, 8))
    logits.sum().backward()
    assert logits.shape == (2, 2)


class Layer(nn.Module):
    """A layer that returns a tuple, takes its input by name and has a setting that is read."""

    def __init__(self, kind: str, more: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.linear = nn.Linear(8, 8)
        self.more = more

    def forward(self, hidden: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor | None]:
        hidden = hidden + scale * torch.tanh(self.linear(hidden))
        return hidden, hidden.mean() if self.more else None


class Stack(nn.Module):
    def __init__(self, *layers: Layer) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.fc = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            assert layer.kind == "full"
            x, _ = layer(hidden=x, scale=0.5)
        logits: Tensor = self.fc(x.mean(1))
        return logits


def test_tuples_named_inputs_and_settings_are_kept(make_context: MakeContext) -> None:
    model = Stack(Layer("full"), Layer("full"), Layer("full", more=True))
    ctx = make_context(deepcopy(model), task=sequences())
    smaller = DropLayers(count=2).apply(model, ctx)
    assert sorted(dropped(ctx)) == ["layers.0", "layers.1"]
    assert "tuple of 2" in repr(smaller)


def test_a_list_stays_a_list() -> None:
    model = nn.Sequential(nn.Linear(2, 2))
    edited = ReplaceByIdentity(path="0", form="list", outputs=2).apply(model)
    x = torch.rand(1, 2)
    outputs = edited(x)
    assert isinstance(outputs, list)
    assert outputs[0] is x
    assert outputs[1:] == [None]


def test_a_layer_that_the_program_needs_is_left_and_said(make_context: MakeContext) -> None:
    class Needs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(Layer("full") for _ in range(2))
            self.fc = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            first, second = self.layers
            x = second(first(x)[0], float(first.get_parameter("linear.weight").detach().sum()))[0]
            logits: Tensor = self.fc(x.mean(1))
            return logits

    model = Needs()
    ctx = make_context(deepcopy(model), task=sequences())
    DropLayers(count=1).apply(model, ctx)
    assert dropped(ctx) == ["layers.1"]
    (skipped,) = [fact for fact in ctx.facts if fact.name == "skipped"]
    assert skipped.value == "layers.0"
    assert "does not run without it" in (skipped.reason or "")


def test_layers_that_are_called_twice_or_change_the_shape_stay(make_context: MakeContext) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            body = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
            self.layers = nn.ModuleList([body, nn.Sequential(nn.Linear(8, 4), nn.ReLU())])
            self.again = nn.ModuleList([nn.Sequential(nn.Linear(4, 4), nn.ReLU())])
            self.other = self.again[0]
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.layers[1](self.layers[0](self.layers[0](x)))
            logits: Tensor = self.fc(self.other(x).mean(1))
            return logits

    model = Twice()
    with pytest.raises(ModelError, match=r"found no layer that can go"):
        DropLayers(count=1).apply(model, make_context(deepcopy(model), task=sequences()))


def test_of_nested_layers_those_with_more_siblings_are_taken() -> None:
    inner = ["stages.0", "stages.0.0", "stages.0.1", "stages.1.0"]
    assert of_nested(inner) == ["stages.0.0", "stages.0.1", "stages.1.0"]
    outer = ["f.1", "f.1.conv.1", "f.2", "f.2.conv.1"]
    assert of_nested(outer) == ["f.1", "f.2"]
    assert of_nested(["a.1", "a.10", "a.1.0"]) == ["a.1", "a.10"]


def test_what_is_carried_for_a_dropped_layer_is_gone() -> None:
    edit = ReplaceByIdentity(path="layers.1")
    names = ("layers.1.linear.weight", "layers.1", "layers.10.weight")
    assert [edit.rename(name) for name in names] == [None, "layers.1", "layers.10.weight"]
    with pytest.raises(ModelError, match=r"no layer 'blocks.9'. Did you mean 'blocks"):
        ReplaceByIdentity(path="blocks.9").apply(tiny_residual())
    assert matching_names(["layers.1"], ["layers"], "layers") == {"layers.1"}


def test_the_contract_holds_for_each_target() -> None:
    check_step(DropLayers(macs=0.7, samples=10), model=tiny_residual())


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_part_that_takes_no_hooks_stays(make_context: MakeContext) -> None:
    original = tiny_residual()
    original.blocks.append(torch.jit.script(nn.Sequential(nn.ReLU(), nn.ReLU())))
    ctx = make_context(deepcopy(original))
    smaller = DropLayers(count=3).apply(deepcopy(original), ctx)
    assert sorted(dropped(ctx)) == ["blocks.0", "blocks.1", "blocks.2"]
    assert isinstance(smaller.get_submodule("blocks.3"), torch.jit.ScriptModule)


def test_a_model_that_cannot_be_watched_is_refused(make_context: MakeContext) -> None:
    class Shy(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if any(module._forward_hooks for module in self.modules()):
                raise RuntimeError("no hooks\nplease")
            out: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return out

    model = Shy(tiny_residual())
    with pytest.raises(ModelError, match=r"while its layers are watched \(RuntimeError: no hooks"):
        DropLayers(count=1).apply(model, make_context(model))


class Gate(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = torch.sigmoid(self.fc(x.mean((2, 3))))[:, :, None, None]
        return x * scale


class Gated(nn.Module):
    """A block with a part that keeps the shape, whether or not the block does."""

    def __init__(self, width: int, stride: int = 1) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride, 1)
        self.se = Gate(width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.se(self.conv(x))
        return x + out if out.shape == x.shape else out


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.b1, self.b2, self.b3 = Gated(1), Gated(1, stride=2), Gated(1)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.b3(self.b2(self.b1(x))).flatten(1))
        return logits


@pytest.mark.parametrize(
    ("patterns", "goes", "stays"),
    [
        (("b3",), ["b3"], []),
        (("b3", "b3.se"), ["b3"], []),
        (("b3.se",), ["b3.se"], []),
        (("b?",), ["b1", "b3"], ["b2"]),
        (("*.se",), ["b1.se", "b2.se", "b3.se"], []),
    ],
)
def test_a_pattern_names_the_outermost_module_that_it_matches(
    make_context: MakeContext, patterns: tuple[str, ...], goes: list[str], stays: list[str]
) -> None:
    model = Named()
    ctx = make_context(deepcopy(model))
    DropLayers(count=len(goes), layers=patterns).apply(model, ctx)
    assert sorted(dropped(ctx)) == goes
    assert [fact.value for fact in ctx.facts if fact.name == "skipped"] == stays


@pytest.mark.parametrize("patterns", [("b2",), ("b1", "b2", "b3")])
def test_a_named_layer_that_cannot_go_is_refused_with_the_reason(
    make_context: MakeContext, patterns: tuple[str, ...]
) -> None:
    model = Named()
    ctx = make_context(deepcopy(model))
    with pytest.raises(ModelError, match=r"'b2' cannot go: it makes \[2, 1, 4, 4\] float32 of"):
        DropLayers(count=1, layers=patterns).apply(model, ctx)
    with pytest.raises(ModelError, match=r"'b3' cannot go: `exclude` names it, or a part of it"):
        DropLayers(count=1, layers=("b3",), exclude=("b3.se",)).apply(model, ctx)
    assert ctx.edits == []


def test_a_list_of_layers_stands_for_the_layers_in_it(make_context: MakeContext) -> None:
    model = Stack(Layer("full"), Layer("full"), Layer("full", more=True))
    ctx = make_context(deepcopy(model), task=sequences())
    DropLayers(count=2, layers=("layers",)).apply(model, ctx)
    assert sorted(dropped(ctx)) == ["layers.0", "layers.1"]
    (skipped,) = [fact for fact in ctx.facts if fact.name == "skipped"]
    assert (skipped.value, skipped.reason) == (
        "layers.2",
        "it returns more than one thing, and nothing could stand for the rest",
    )
