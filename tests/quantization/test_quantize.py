"""`Quantize` on the families of layers, and what it refuses."""

import pickle
from collections.abc import Callable
from copy import deepcopy
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overhaul.core import (
    Batch,
    Context,
    ModelError,
    SpecError,
    model_tensors,
    rebuild,
    trainable_names,
)
from overhaul.quantization import (
    AdaRound,
    Awq,
    BiasCorrection,
    Budget,
    CrossLayerEqualization,
    Gptq,
    LayerForm,
    MinMax,
    Percentile,
    Quantize,
    QuantizeLayers,
    SmoothQuant,
    WeightForm,
)
from overhaul.quantization._placement import find_places
from overhaul.running import Recipe
from overhaul.tasks import Classification
from overhaul.testing import tiny_cnn

MakeContext = Callable[..., Context]


class Residual(nn.Module):
    """Convolutions with norms, a shared activation in place, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1, groups=2)
        self.relu = nn.ReLU(inplace=True)
        self.up = nn.ConvTranspose2d(4, 3, 2, 2)
        self.head = nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(x + self.conv2(x))
        out: Tensor = self.head(self.up(x).mean((2, 3)))
        return out


class Words(nn.Module):
    """A table, a recurrent layer, attention and a head that shares the table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.lstm = nn.LSTM(8, 8, num_layers=2, batch_first=True)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.out = nn.Linear(8, 20, bias=False)
        self.out.weight = self.table.weight
        self.head = nn.Linear(20, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.lstm(self.table(x))[0]
        h = h + self.attention(h, h, h, need_weights=False)[0]
        out: Tensor = self.head(self.out(self.layer(h)).mean(1))
        return out


def data_for(model: nn.Module) -> Classification:
    torch.manual_seed(0)
    x = torch.randint(0, 20, (96, 6)) if isinstance(model, Words) else torch.rand(96, 1, 8, 8)
    return Classification(train=(x, torch.arange(96) % 3))


def settled(model: nn.Module) -> nn.Module:
    """Give norms statistics that are not those of a new network."""
    if isinstance(model, Residual):
        with torch.no_grad():
            for _ in range(3):
                model.train()(torch.rand(16, 1, 8, 8))
    return model.eval()


STEPS = {
    "int8": (Quantize(batches=2), 0.05),
    "int8, symmetric": (Quantize(batches=2, symmetric=True), 0.05),
    "int8, one scale": (Quantize(batches=2, granularity="tensor"), 0.08),
    "7 bits": (Quantize(batches=2, reduce_range=True), 0.08),
    "weights of int8": (Quantize(activations=None), 0.02),
    "int4": (Quantize(weights="int4", block_size=8), 0.4),
    "int4, channels": (Quantize(weights="int4", granularity="channel"), 0.5),
    "float16": (Quantize(weights="float16"), 2e-3),
    "bfloat16": (Quantize(weights="bfloat16"), 2e-2),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("network", [Residual, Words])
def test_every_layer_is_close_and_the_model_is_rebuilt_from_edits(
    network: type[nn.Module], name: str, make_context: MakeContext
) -> None:
    step, allowed = STEPS[name]
    torch.manual_seed(1)
    model = settled(network())
    ctx = make_context(model, task=data_for(model))
    batch = ctx.data.train.read(torch.arange(32))
    with torch.no_grad():
        expected = batch.forward(model)
        found_model = step.apply(deepcopy(model), ctx)
        found = batch.forward(found_model.eval())
        again = rebuild(
            deepcopy(model), ctx.edits, model_tensors(found_model), trainable_names(found_model)
        )
        copies = [again, deepcopy(found_model), pickle.loads(pickle.dumps(found_model))]
        others = [batch.forward(each.eval()) for each in copies]
    assert isinstance(expected, Tensor)
    assert isinstance(found, Tensor)
    assert float((found - expected).norm()) < allowed * float(expected.norm())
    assert all(isinstance(other, Tensor) and torch.equal(other, found) for other in others)


def test_a_table_that_is_shared_is_stored_once(make_context: MakeContext) -> None:
    model = settled(Words())
    ctx = make_context(model, task=data_for(model))
    found = Quantize(activations=None).apply(model, ctx)
    assert found.get_buffer("table.weight_q") is found.get_buffer("out.weight_q")


def test_bytes_are_what_was_promised(make_context: MakeContext) -> None:
    sizes = {}
    for weights in ("int8", "int4"):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 512), nn.ReLU(), nn.Linear(512, 3))
        before = sum(t.nbytes for t in model_tensors(model).values())
        ctx = make_context(model, task=data_for(model))
        found = Quantize(weights=weights, activations=None).apply(model, ctx)
        sizes[weights] = sum(t.nbytes for t in model_tensors(found).values()) / before
    assert sizes["int8"] < 0.32
    assert sizes["int4"] < 0.22


def test_activations_become_integers_once_for_all_that_read_them() -> None:
    model = settled(Residual())
    step = Quantize()
    for name in ("bn1",):
        setattr(model, name, nn.Identity())
    layers = {"conv1", "conv2", "up", "head"}
    x = torch.rand(2, 1, 8, 8)
    places = find_places(model, lambda m: m(x), layers)
    # The activation is called twice, so that what it makes has no module of its own; the sum is,
    # and so is the image of which the average is taken.
    assert places.inputs == {"conv1": (0,), "conv2": (0,), "up": (0,), "head": (0,)}
    assert places.outputs == ["conv2", "up"]
    assert step.activations == "int8"


class Blocks(nn.Sequential):
    """Each block ends in a module of its own."""

    def __init__(self) -> None:
        super().__init__(
            nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace=True)),
            nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU6()),
            nn.Conv2d(4, 3, 3),
        )


def test_the_outermost_module_makes_the_integers_after_what_is_done_in_place() -> None:
    x = torch.rand(2, 1, 8, 8)
    places = find_places(Blocks(), lambda m: m(x), {"0.0", "1.0", "2"})
    assert places.outputs == ["0", "1"]
    assert places.inputs == {"0.0": (0,), "1.0": (), "2": ()}


class Averaged(nn.Module):
    """An image of which the average is taken, and that may be read again."""

    def __init__(self, *, again: bool = False) -> None:
        super().__init__()
        self.conv, self.head, self.again = nn.Conv2d(1, 4, 3), nn.Linear(4, 2), again

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        mean = F.adaptive_avg_pool2d(x, 1)
        x = (x * mean).mean((2, 3)) if self.again else mean.flatten(1)
        out: Tensor = self.head(x)
        return out


def test_an_average_is_one_of_integers_if_nothing_else_reads_the_image() -> None:
    x = torch.rand(2, 1, 8, 8)
    for model, outputs in ((Averaged(), ["conv"]), (Averaged(again=True), [])):
        layers = {"conv", "head"}
        assert find_places(model, lambda m: m(x), layers).outputs == outputs
    returned = nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1))
    assert find_places(returned, lambda m: m(x), {"0"}).outputs == []


class Functional(nn.Module):
    """A tensor that no module returns, read by a block: its convolution and its shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.block = nn.Conv2d(1, 4, 3), nn.Sequential(Shortcut())

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.block(F.relu(self.conv(x)))
        return out


class Shortcut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.conv(x)
        return out


def test_what_no_module_returns_becomes_integers_where_all_begins_that_reads_it(
    make_context: MakeContext,
) -> None:
    model, x = Functional(), torch.rand(2, 1, 8, 8)
    places = find_places(model, lambda m: m(x), {"conv", "block.0.conv"})
    assert places.inputs == {"conv": (0,), "block.0.conv": (), "block": (0,)}
    assert places.outputs == ["block.0.conv"]
    plan = Quantize().plan(model, Batch((x,), torch.zeros(2), torch.arange(2)))
    quantized = plan.edit.apply(deepcopy(model))
    buffers = set(dict(quantized.named_buffers()))
    assert {"block.input_scale", "block.input_zero_point"} <= buffers
    assert "block.0.conv.input_scale" not in buffers


def test_what_is_left_and_how_exact_the_rest_is_become_facts(make_context: MakeContext) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = nn.Parameter(torch.randn(64, 4))
            self.spared, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.spared(x.flatten(1) @ self.own))
            return out

    ctx = make_context(Odd(), task=data_for(Odd()))
    Quantize(exclude=("spared",)).apply(Odd(), ctx)
    skipped = {fact.value: fact.reason for fact in ctx.facts if fact.name == "skipped"}
    assert skipped[""] == "there is no integer form of Odd"
    assert skipped["spared"] == "it is left out by `layers` or `exclude`"
    (exact,) = [fact for fact in ctx.facts if fact.name == "weight_sqnr_db"]
    assert exact.subject == "head.weight"
    assert isinstance(exact.value, float)
    assert 35 < exact.value < 60
    assert len(exact.detail["worst"]) == 3


def test_functional_weights_and_dtypes_are_read_as_real_numbers() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.layer.weight.t(), self.layer.bias)

    model = Functional()
    x = torch.randn(3, 4)
    expected = model(x)
    form = LayerForm(weights={"weight": WeightForm(type="int8")})
    found = QuantizeLayers(layers={"layer": form}).apply(model)(x)
    assert torch.allclose(found, expected, atol=0.03)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"weights": "int4", "activations": "int8"}, "need weights of int8, got int4"),
        ({"granularity": "block"}, "is for weights only"),
        ({"weights": "int2"}, "weights"),
        ({"batches": 0}, "How many batches"),
        ({"max_drop": float("inf")}, "must be a finite number"),
        ({"activations": "dynamic"}, r"so an engine does it.*OnnxRuntime\(round_inputs=True\)"),
        ({"activations": None, "symmetric": True}, "`symmetric` is for activations"),
        ({"weights": "float16", "reduce_range": "auto"}, "`reduce_range` is for activations"),
        ({"weights": "int4", "calibration": MinMax()}, "`calibration` is for activations"),
    ],
)
def test_what_no_engine_can_do_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        Quantize(**fields)


def test_a_model_without_weights_and_a_pattern_without_match_are_refused(
    make_context: MakeContext,
) -> None:
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :3]

    model = Nothing()
    with pytest.raises(ModelError, match="nothing of this model can be quantized"):
        Quantize().apply(model, make_context(model, task=data_for(model)))
    network = tiny_cnn()
    with pytest.raises(ModelError, match="'hed' matches nothing"):
        Quantize(exclude=("hed",)).apply(network, make_context(network))


def test_what_is_in_few_bits_already_is_left_and_said(make_context: MakeContext) -> None:
    network = tiny_cnn()
    once = Quantize(layers=("conv",), batches=1).apply(network, make_context(network))
    ctx = make_context(once)
    twice = Quantize(weights="int4").apply(once, ctx)
    assert ("conv", "its weights are in few bits already") in {
        (fact.value, fact.reason) for fact in ctx.facts
    }
    with pytest.raises(ModelError, match="'conv': its weights are in few bits already; 'fc'"):
        Quantize().apply(twice, make_context(twice))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_inputs_of_a_layer_that_is_not_float32_stay_real(
    dtype: torch.dtype, make_context: MakeContext
) -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(64, 8, dtype=dtype), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.inner(x.flatten(1).to(dtype)).float())
            return out

    ctx = make_context(Mixed())
    made = Quantize(batches=1).apply(Mixed(), ctx)
    assert made(torch.rand(2, 1, 8, 8)).isfinite().all()
    (reason,) = [str(f.reason) for f in ctx.facts if f.name == "skipped" and f.value == "inner"]
    assert "only its weights are integers: it computes in" in reason


def test_a_weight_that_float16_would_make_infinite_stays(make_context: MakeContext) -> None:
    network = tiny_cnn()
    with torch.no_grad():
        network.fc.weight[0, 0] = 1e6
    ctx = make_context(network)
    made = Quantize(weights="float16").apply(network, ctx)
    assert made.get_parameter("fc.weight")[0, 0] == 1e6
    assert any("float16 ends at 6.55e+04" in str(fact.reason) for fact in ctx.facts)


class Halves(nn.Module):
    """A layer of a type that is not float32, and a head that is."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(64, 8, dtype=dtype), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.inner(x.flatten(1).to(self.inner.bias.dtype)).float())
        return out


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_weights_of_float16_have_scales_of_their_size(
    weights: str, make_context: MakeContext
) -> None:
    torch.manual_seed(0)
    model = Halves(torch.float16)
    with torch.no_grad():
        model.inner.weight[0] = 0
    ctx = make_context(model)
    made = Quantize.model_validate({"weights": weights, "activations": None}).apply(
        deepcopy(model), ctx
    )
    wanted = model.inner.weight.detach()
    restored = cast(nn.Linear, made.get_submodule("inner")).weight
    error = restored.float() - wanted.float()
    assert float(error.abs().max()) < (0.001 if weights == "int8" else 0.02)
    exact = {fact.subject: fact.value for fact in ctx.facts if fact.name == "weight_sqnr_db"}
    decibels = exact["inner.weight"]
    assert isinstance(decibels, float)
    assert decibels > (40 if weights == "int8" else 15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("weights", ["float16", "bfloat16"])
def test_sixteen_bits_stand_for_float32_alone(
    weights: str, dtype: torch.dtype, make_context: MakeContext
) -> None:
    model = Halves(dtype)
    ctx = make_context(model)
    made = Quantize.model_validate({"weights": weights}).apply(deepcopy(model), ctx)
    assert made(torch.rand(2, 1, 8, 8)).isfinite().all()
    assert torch.equal(made.get_parameter("inner.weight"), model.inner.weight)
    (reason,) = [str(fact.reason) for fact in ctx.facts if fact.value == "inner"]
    assert f"{weights} stands for float32" in reason


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_stays(value: float, make_context: MakeContext) -> None:
    class Guarded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner, self.head = nn.Linear(64, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(self.inner(x.flatten(1)).nan_to_num(0, 0, 0))
            return out

    model = Guarded()
    with torch.no_grad():
        model.inner.weight[0, 0] = value
    ctx = make_context(model)
    made = Quantize(batches=1).apply(deepcopy(model), ctx)
    assert torch.equal(made.get_parameter("inner.weight")[:, 1:], model.inner.weight[:, 1:])
    assert any("no integer and no scale" in str(fact.reason) for fact in ctx.facts)


def test_a_layer_that_calibration_does_not_reach_is_refused(make_context: MakeContext) -> None:
    class Rare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(64, 64), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(1)
            out: Tensor = self.head(self.layer(x) if len(x) < 3 else x)
            return out

    model = Rare()
    with pytest.raises(ModelError, match=r"not with those.*range of 'layer\.input'"):
        Quantize(batches=1).apply(model, make_context(model))
    made = Quantize(activations=None).apply(model, make_context(model))
    assert made.get_buffer("layer.weight_q").dtype == torch.int8


def test_a_layer_may_be_given_its_input_by_name(make_context: MakeContext) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.head = nn.Linear(64, 64), nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(input=self.layer(input=self.layer(x.flatten(1))))
            return out

    torch.manual_seed(0)
    model, x = Named().eval(), torch.rand(8, 1, 8, 8)
    found = Quantize(batches=1).apply(deepcopy(model), make_context(model))
    assert largest_error(found, model, x) < 0.05


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_transformer_with_padding_is_watched_by_its_parts(make_context: MakeContext) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder, self.head = nn.TransformerEncoder(layer, 2), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            padding = torch.arange(8) >= 6
            found = self.encoder(x[:, 0], src_key_padding_mask=padding.expand(len(x), -1))
            out: Tensor = self.head(found[:, 0])
            return out

    torch.manual_seed(0)
    model = Padded().eval()
    step = Quantize(batches=1, repairs=(BiasCorrection(),))
    found = step.apply(deepcopy(model), make_context(model))
    assert largest_error(found, model, torch.rand(8, 1, 8, 8)) < 0.1


def test_activations_that_are_very_small_have_a_scale(make_context: MakeContext) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.Linear(8, 3, bias=False)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(1e20 if name == "2.weight" else 1e-20)
    found = Quantize(batches=1).apply(deepcopy(model), make_context(model))
    assert largest_error(found, model, torch.rand(8, 1, 8, 8)) < 0.05


@torch.no_grad()
def largest_error(found: nn.Module, model: nn.Module, x: Tensor) -> float:
    """Return the largest error of the outputs, as a part of the largest."""
    return float((found(x) - model(x)).abs().max() / model(x).abs().max())


@pytest.mark.parametrize(
    "step",
    [
        Quantize(),
        Quantize(activations=None),
        Quantize(weights="int4"),
        Quantize(weights="float16", exclude=("fc",)),
        Quantize(repairs=(CrossLayerEqualization(), SmoothQuant(alpha=0.3), BiasCorrection())),
        Quantize(weights="int4", repairs=(Awq(), Gptq(), AdaRound(iterations=7))),
        Quantize(calibration=Percentile(part=0.99), budget=Budget(bytes=0.2)),
    ],
    ids=repr,
)
def test_a_recipe_file_says_the_same(step: Quantize) -> None:
    recipe = Recipe(step)
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert eval(repr(step)) == step


def test_an_edit_for_another_model_is_refused() -> None:
    form = LayerForm(weights={"weight": WeightForm(type="int8")})
    with pytest.raises(ModelError, match="there is no module 'b'"):
        QuantizeLayers(layers={"b": form}).apply(nn.Sequential())
    with pytest.raises(ModelError, match="has no weight 'weight'"):
        QuantizeLayers(layers={"0": form}).apply(nn.Sequential(nn.ReLU()))
