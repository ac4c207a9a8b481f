"""Training under the rounding: its gradients, and that its bits are those of the integers."""

import math
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import Context, ModelError, model_tensors
from overhaul.pruning import GroupLasso, KeepZeros
from overhaul.quantization import FakeQuantization, LayerForm, Quantize, WeightForm
from overhaul.quantization._integer_map import scales_of, spread
from overhaul.quantization._plan import Plan
from overhaul.quantization._straight_through import straight_through
from overhaul.quantization._train_rounded import constraint_of, in_integers
from overhaul.quantization._write import quantized
from overhaul.testing import tiny_cnn
from overhaul.training import SGD, AdamW, Train
from overhaul.transfer import Freeze
from tests.quantization.test_quantize import Residual, Words, data_for, settled

MakeContext = Callable[..., Context]

WISHES: dict[str, dict[str, Any]] = {
    "int8": {},
    "one scale": {"granularity": "tensor"},
    "7 bits": {"reduce_range": True},
    "int4": {"weights": "int4", "block_size": 8},
    "int4, channels": {"weights": "int4", "granularity": "channel"},
    "bfloat16": {"weights": "bfloat16"},
}


def bound_to(
    model: nn.Module, ctx: Context, wishes: dict[str, Any], rate: float = 1.0
) -> tuple[Plan, FakeQuantization]:
    """Return what becomes integers, and the constraint that computes alike."""
    step = Quantize(batches=2, fold_norms=False, **wishes)
    batch = next(ctx.data.train.in_order(2))
    plan = step.plan(model, batch)
    batches = step.calibration_batches(model, ctx, 0)
    smaller = quantized(model, plan, step.ranges(model, plan, batches), search=True)
    return plan, constraint_of(smaller, plan, rate)


def outputs(model: nn.Module, ctx: Context) -> Tensor:
    with torch.no_grad():
        found = ctx.data.train.read(torch.arange(32)).forward(model.eval())
    assert isinstance(found, Tensor)
    return found


def train_some(model: nn.Module, ctx: Context, steps: int = 3) -> None:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    model.train()
    for number in range(steps):
        batch = ctx.data.train.read(torch.arange(16) + 16 * number)
        optimizer.zero_grad()
        ctx.task.loss(batch.forward(model), batch.targets).backward()
        optimizer.step()


def by_hand(
    x: list[float], grads: list[float], scale: float, low: int, top: int
) -> tuple[list[float], float]:
    """Return the gradients of the numbers and of the logarithm of their scale, as in the papers."""
    of_x, of_scale = [], 0.0
    for value, grad in zip(x, grads, strict=True):
        ratio = value / scale
        if ratio < low:
            of_x.append(0.0)
            of_scale += grad * low
        elif ratio > top:
            of_x.append(0.0)
            of_scale += grad * top
        else:
            of_x.append(grad)
            of_scale += grad * (round(ratio) - ratio)
    q_max = max(top, -low - 1)
    return of_x, of_scale * scale / math.sqrt(len(x) * q_max)


FORMS = [
    WeightForm(type="int8", per_tensor=True),
    WeightForm(type="int8", axis=1),
    WeightForm(type="int4", axis=0, bits=4),
    WeightForm(type="int4", axis=1, block=4, bits=4),
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_gradients_are_those_of_the_papers(form: WeightForm) -> None:
    weight = torch.randn(3, 6, dtype=torch.float64, requires_grad=True)
    shape = scales_of(weight, form, search=False).shape
    scale = torch.rand(shape, dtype=torch.float64) * 0.01 + (0.002 if form.bits == 8 else 0.1)
    step = torch.zeros(scale.numel(), requires_grad=True, dtype=torch.float64)
    each = weight.numel() / scale.numel()
    out = straight_through(weight, step, scale, form, form.limits, each, torch.clone)
    grads = torch.randn_like(weight)
    out.backward(grads)
    assert weight.grad is not None
    assert step.grad is not None
    owner = spread(torch.arange(scale.numel()).view(shape), weight, form).expand(3, 6)
    for number, own in enumerate(scale.flatten().tolist()):
        mine = owner == number
        low, top = form.limits
        of_x, of_step = by_hand(weight[mine].tolist(), grads[mine].tolist(), own, low, top)
        assert weight.grad[mine].tolist() == pytest.approx(of_x)
        # The last block is short, and counts as the others.
        of_step *= math.sqrt(int(mine.sum()) / each)
        assert float(step.grad[number]) == pytest.approx(of_step)


@pytest.mark.parametrize("zero", [0, 100, 255])
def test_an_activation_gets_the_same_gradients_around_its_zero_point(
    zero: int, make_context: MakeContext
) -> None:
    layer = nn.Linear(5, 2)
    form = LayerForm(inputs=(0,))
    constraint = FakeQuantization(
        layers={"": form}, scales={"input": (0.01,)}, zero_points={"input": zero}
    )
    x = torch.randn(4, 5, requires_grad=True)
    bound = constraint.bind(layer, make_context(layer))
    out = layer(x)
    out.sum().backward()
    grads = layer.weight.detach().sum(0).expand(4, 5)
    of_x, of_step = by_hand(x.flatten().tolist(), grads.flatten().tolist(), 0.01, -zero, 255 - zero)
    found = layer.get_parameter("fake_input_step").grad
    bound.release_()
    assert x.grad is not None
    assert found is not None
    assert x.grad.flatten().tolist() == pytest.approx(of_x)
    # Of activations, the numbers of one sample are counted.
    assert float(found) == pytest.approx(of_step * 2, rel=1e-3)


@pytest.mark.parametrize("name", WISHES)
@pytest.mark.parametrize("network", [Residual, Words])
def test_the_integers_compute_what_the_training_computed_to_the_last_bit(
    network: type[nn.Module], name: str, make_context: MakeContext
) -> None:
    torch.manual_seed(1)
    model = settled(network())
    ctx = make_context(model, task=data_for(model))
    plan, constraint = bound_to(model, ctx, WISHES[name])
    plain = outputs(model, ctx)
    ctx.carried = [constraint]
    bound = constraint.bind(model, ctx)
    before = outputs(model, ctx)
    assert not torch.equal(before, plain)
    assert torch.equal(outputs(in_integers(real_of(model), plan, constraint), ctx), before)
    train_some(model, ctx)
    during = outputs(model, ctx)
    assert torch.equal(outputs(deepcopy(model), ctx), during)
    bound.release_()
    (learned,) = ctx.carried
    assert isinstance(learned, FakeQuantization)
    assert learned.scales.keys() == constraint.scales.keys()
    changed = {key for key, own in learned.scales.items() if own != constraint.scales[key]}
    assert len(changed) >= 0.8 * len(learned.scales)
    found = outputs(in_integers(model, plan, learned), ctx)
    assert torch.equal(found, during)
    assert not torch.equal(during, before)


def real_of(model: nn.Module) -> nn.Module:
    """Return a copy with the weights of a model that is being trained, without the rounding."""
    fresh = settled(type(model)())
    own = model_tensors(model)
    with torch.no_grad():
        for name, tensor in model_tensors(fresh).items():
            tensor.copy_(own[name])
    return fresh


@pytest.mark.parametrize("network", [Residual, Words])
def test_release_restores_the_model(network: type[nn.Module], make_context: MakeContext) -> None:
    model = settled(network())
    ctx = make_context(model, task=data_for(model))
    _, constraint = bound_to(model, ctx, {})
    expected = outputs(model, ctx)

    def structure() -> list[Any]:
        return [
            (
                path,
                type(module),
                sorted(vars(module)),
                {name: id(p) for name, p in module._parameters.items()},
                {name: id(b) for name, b in module._buffers.items()},
                getattr(module, "activation_relu_or_gelu", None),
                [id(each) for each in vars(module).get("_flat_weights", [])],
            )
            for path, module in model.named_modules()
        ]

    before = structure()
    bound = constraint.bind(model, ctx)
    assert not torch.equal(outputs(model, ctx), expected)
    assert structure() != before
    bound.release_()
    assert structure() == before
    assert torch.equal(outputs(model, ctx), expected)


def test_parameters_are_the_real_numbers_and_shared_weights_share_a_scale(
    make_context: MakeContext,
) -> None:
    model = settled(Words())
    ctx = make_context(model, task=data_for(model))
    real = {name: id(p) for name, p in model.named_parameters()}
    _, constraint = bound_to(model, ctx, {})
    bound = constraint.bind(model, ctx)
    now = {name: id(p) for name, p in model.named_parameters()}
    assert real.items() <= now.items()
    table, out = model.get_submodule("table"), model.get_submodule("out")
    assert table._parameters["fake_weight_step"] is out._parameters["fake_weight_step"]
    loss = outputs_with_gradient(model, ctx)
    loss.backward()
    assert all(p.grad is not None for name, p in model.named_parameters() if name in real)
    bound.release_()


def outputs_with_gradient(model: nn.Module, ctx: Context) -> Tensor:
    batch = ctx.data.train.read(torch.arange(16))
    return ctx.task.loss(batch.forward(model.train()), batch.targets)


def test_a_recurrent_layer_that_is_moved_keeps_no_old_weights(make_context: MakeContext) -> None:
    model = settled(Words())
    ctx = make_context(model, task=data_for(model))
    _, constraint = bound_to(model, ctx, {})
    bound = constraint.bind(model, ctx)
    model.to("cpu").float()
    before = outputs(model, ctx)
    with torch.no_grad():
        for parameter in model.get_submodule("lstm").parameters():
            parameter.add_(0.3)
    assert not torch.equal(outputs(model, ctx), before)
    bound.release_()


def test_the_best_epoch_is_chosen_and_its_scales_are_left(make_context: MakeContext) -> None:
    model: nn.Module = tiny_cnn()
    ctx = make_context(model)
    plan, constraint = bound_to(model, ctx, {"weights": "int4", "block_size": 8})
    ctx.carried = [KeepZeros(parameters=("fc.weight",)), constraint]
    model = Train(epochs=4, batch_size=8, optimizer=AdamW(lr=1e-2)).apply(model, ctx)
    kept, learned = ctx.carried
    assert isinstance(kept, KeepZeros)
    assert isinstance(learned, FakeQuantization)
    best = next(fact.value for fact in ctx.facts if fact.name == "best_epoch")
    assert isinstance(best, int)
    assert best > 0
    measured = {
        fact.detail["epoch"]: fact.value for fact in ctx.facts if fact.name == "val_accuracy"
    }
    found = in_integers(model, plan, learned).eval()
    batch = ctx.data.val.read(torch.arange(len(ctx.data.val)))
    with torch.no_grad():
        accuracy = ctx.task.metrics(batch.forward(found), batch.targets)["accuracy"]
    assert accuracy == measured[best]


def test_other_constraints_and_other_optimizers_go_with_it(make_context: MakeContext) -> None:
    model: nn.Module = tiny_cnn()
    ctx = make_context(model)
    model = Freeze(layers=("bn",)).apply(model, ctx)
    _, constraint = bound_to(model, ctx, {})
    before = model.get_parameter("bn.weight").clone()
    ctx.carried.append(GroupLasso(weight=1e-4))
    ctx.carried.append(constraint)
    Train(epochs=1, optimizer=SGD(lr=0.1), keep="last", clip_norm=1.0).apply(model, ctx)
    learned = ctx.carried[-1]
    assert isinstance(learned, FakeQuantization)
    assert torch.equal(model.get_parameter("bn.weight"), before)
    assert learned.scales["fc.weight"] != constraint.scales["fc.weight"]
    change = max(
        abs(now / then - 1)
        for now, then in zip(
            learned.scales["fc.weight"], constraint.scales["fc.weight"], strict=True
        )
    )
    assert change < 0.5


def test_half_precision_rounds_as_full_precision_does(make_context: MakeContext) -> None:
    form = LayerForm(inputs=(0,))
    layer = nn.Identity()
    constraint = FakeQuantization(
        layers={"": form}, scales={"input": (0.01,)}, zero_points={"input": 128}
    )
    model = nn.Linear(2, 2)
    bound = constraint.bind(layer, make_context(model))
    x = torch.randn(50).bfloat16().requires_grad_()
    out = layer(x)
    assert torch.equal(out, layer(x.detach().float()))
    out.sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16
    bound.release_()

    network: nn.Module = tiny_cnn()
    ctx = make_context(network)
    _, constraint = bound_to(network, ctx, {})
    ctx.carried = [constraint]
    Train(epochs=1, precision="bf16", keep="last").apply(network, ctx)
    assert ctx.carried != [constraint]


def test_a_rate_of_zero_keeps_the_scales(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(model)
    _, constraint = bound_to(model, ctx, {}, rate=0.0)
    ctx.carried = [constraint]
    Train(epochs=1, keep="last").apply(model, ctx)
    assert ctx.carried == [constraint]


def test_names_follow_the_model() -> None:
    form = LayerForm(weights={"weight": WeightForm(type="int8")}, inputs=(0,), output=True)
    constraint = FakeQuantization(
        layers={"a": form, "b": form},
        scales={"a.weight": (1.0,), "a.input": (2.0,), "b.weight": (3.0,)},
        zero_points={"a.input": 7},
    )
    moved = constraint.renamed(lambda name: None if name[0] == "b" else f"x.{name}")
    assert moved is not None
    assert moved.layers == {"x.a": form}
    assert moved.scales == {"x.a.weight": (1.0,), "x.a.input": (2.0,)}
    assert moved.zero_points == {"x.a.input": 7}
    assert constraint.renamed(lambda name: None) is None


FORM = LayerForm(weights={"weight": WeightForm(type="int8")}, inputs=(0,))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"layers": {"cnv": FORM}}, "no module 'cnv'. Did you mean 'conv'"),
        ({"layers": {"dropout": FORM}}, "has no weight 'weight'"),
        ({"layers": {"fc": FORM}}, "no scale for 'fc.weight'"),
        ({"layers": {"fc": FORM}, "scales": {"fc.weight": (1.0,)}}, "has 3 scales.*gives 1"),
        (
            {
                "layers": {"fc": FORM},
                "scales": {"fc.weight": (1.0, 1.0, 1.0), "fc.input": (1.0,)},
            },
            "no zero point for 'fc.input'",
        ),
    ],
)
def test_what_does_not_fit_is_refused_before_anything_changes(
    fields: dict[str, Any], message: str, make_context: MakeContext
) -> None:
    model = tiny_cnn()
    with pytest.raises(ModelError, match=message):
        FakeQuantization(**fields).bind(model, make_context(model))
    assert type(model.fc) is nn.Linear
    assert set(model_tensors(model)) == set(model_tensors(tiny_cnn()))


def test_two_at_once_are_refused(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(model)
    _, constraint = bound_to(model, ctx, {})
    bound = constraint.bind(model, ctx)
    with pytest.raises(ModelError, match="under a FakeQuantization already"):
        constraint.bind(model, ctx)
    bound.release_()
