"""Layers of different types: what falls back, and what a budget buys."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import (
    Batch,
    Context,
    Fact,
    ModelError,
    OrderError,
    SealedSplit,
    SpecError,
    Split,
    Trait,
    model_tensors,
)
from overhaul.quantization import (
    Budget,
    MinMax,
    QuantizationRepair,
    Quantize,
    WeightForm,
)
from overhaul.quantization._judge import Judge
from overhaul.quantization._plan import Plan
from overhaul.tasks import Classification
from overhaul.testing import check_spec, check_step

MakeContext = Callable[..., Context]


class Chain(nn.Module):
    """Layers that hand on four features; an outlier in front of an input that is always zero."""

    def __init__(self, *outliers: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(5, 5, bias=False) for _ in outliers))
        with torch.no_grad():
            for layer, outlier in zip(self.layers, outliers, strict=True):
                assert isinstance(layer, nn.Linear)
                layer.weight.copy_(torch.eye(5))
                layer.weight[:4, 4] = outlier
                layer.weight[4, 4] = 0

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layers(x)
        return out[:, :4]


def features() -> Classification:
    x = torch.rand(240, 5, generator=torch.Generator().manual_seed(0))
    x[:, 4] = 0
    return Classification(train=(x, x[:, :4].argmax(1)))


def named(ctx: Context, name: str) -> list[Fact]:
    return [fact for fact in ctx.facts if fact.name == name]


def types_of(model: nn.Module) -> dict[str, str]:
    found: dict[str, str] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear):
            forms: dict[str, WeightForm] = module.__dict__.get("_weight_forms", {})
            found[path] = forms["weight"].type if forms else "float32"
    return found


NO_SEARCH: dict[str, Any] = {"search": False, "activations": None}
FINE, HARD, HOPELESS = 0.0, 40.0, 1e4
"""Outliers with which four bits are enough, eight, or none."""


@pytest.mark.parametrize(
    ("outliers", "weights", "types"),
    [
        ((FINE, FINE), "int8", ("int8", "int8")),
        ((FINE, HOPELESS, FINE), "int8", ("int8", "float32", "int8")),
        ((FINE, HARD, FINE), "int4", ("int4", "int8", "int4")),
        ((HARD, FINE, FINE, HARD), "int4", ("int8", "int4", "int4", "int8")),
    ],
)
def test_only_the_layers_fall_back_that_have_to(
    outliers: tuple[float, ...], weights: str, types: tuple[str, ...], make_context: MakeContext
) -> None:
    model = Chain(*outliers)
    ctx = make_context(model, task=features())
    found = Quantize(weights=weights, max_drop=0.05, **NO_SEARCH).apply(model, ctx)
    assert tuple(types_of(found).values()) == types
    back = {fact.value: fact.detail["to"] for fact in named(ctx, "fell_back")}
    assert back == {f"layers.{n}": each for n, each in enumerate(types) if each != weights}
    (met,) = named(ctx, "max_drop_met")
    assert met.value is True
    assert met.detail["drop"] <= 0.05
    proved = met.detail["drop_at_most"] <= 0.05
    assert (met.reason is None) is proved
    assert proved or "not proved: the 95 % interval of the drop ends at" in str(met.reason)


def test_a_layer_that_needs_real_numbers_passes_by_eight_bits(make_context: MakeContext) -> None:
    model = Chain(FINE, HOPELESS, FINE)
    ctx = make_context(model, task=features())
    found = Quantize(weights="int4", max_drop=0.05, **NO_SEARCH).apply(model, ctx)
    assert types_of(found)["layers.1"] == "float32"
    (last,) = [fact for fact in named(ctx, "fell_back") if fact.detail["to"] == "float32"]
    assert last.value == "layers.1"
    assert last.detail["loss_rise"] > 0.1


def test_a_drop_of_just_what_is_allowed_is_allowed(make_context: MakeContext) -> None:
    judge = Judge(make_context(Chain(FINE), task=features()), samples=4)
    before, after = (float(torch.tensor(value)) for value in (0.503, 0.498))
    assert before - after > 0.005  # metrics are in single precision
    assert judge.drop(before, after) <= 0.005


def test_what_cannot_be_met_is_said_and_the_best_is_kept(make_context: MakeContext) -> None:
    model = Chain(HOPELESS, HOPELESS, HOPELESS)
    ctx = make_context(model, task=features())
    found = Quantize(max_drop=0.05, **NO_SEARCH).apply(model, ctx)
    (met,) = named(ctx, "max_drop_met")
    assert met.value is False
    assert met.reason is not None
    assert "cannot be met" in met.reason
    assert met.detail["drop"] > 0.3
    assert "int8" in types_of(found).values()


def test_without_max_drop_val_is_not_even_read(make_context: MakeContext) -> None:
    model = Chain(HOPELESS)
    ctx = make_context(model, task=features())
    Quantize(**NO_SEARCH).apply(model, ctx)
    assert named(ctx, "max_drop_met") == named(ctx, "sensitivity") == []


class ShiftBias(QuantizationRepair):
    """Mark every layer in integers, so that a test sees whether it is still the repaired one."""

    def finish_(
        self, model: nn.Module, quantized: nn.Module, plan: Plan, batches: Any, ctx: Context
    ) -> None:
        for path in plan.layers:
            quantized.get_buffer(f"{path}.weight_scale").mul_(1.001)


def test_a_layer_that_stays_keeps_its_repair_and_one_that_falls_back_is_as_before(
    make_context: MakeContext,
) -> None:
    model = Chain(FINE, HOPELESS, FINE)
    before = {name: tensor.clone() for name, tensor in model_tensors(model).items()}
    ctx = make_context(model, task=features())
    step = Quantize(max_drop=0.05, repairs=(ShiftBias(),), **NO_SEARCH)
    found = step.apply(model, ctx)
    assert torch.equal(found.get_parameter("layers.1.weight"), before["layers.1.weight"])
    for kept in ("layers.0", "layers.2"):
        scale = found.get_buffer(f"{kept}.weight_scale")[:4]
        assert torch.allclose(scale, torch.full_like(scale, 1.001 / 127))


@pytest.mark.parametrize(
    ("share", "types"),
    [(0.24, ("int4", "int8", "int4")), (0.21, ("int4", "int4", "int4"))],
)
def test_bytes_go_where_they_are_needed(
    share: float, types: tuple[str, ...], make_context: MakeContext
) -> None:
    model = Chain(FINE, HARD, FINE)
    size = sum(tensor.nbytes for tensor in model_tensors(model).values())
    ctx = make_context(model, task=features())
    found = Quantize(
        budget=Budget(bytes=share), block_size=8, granularity="tensor", **NO_SEARCH
    ).apply(model, ctx)
    assert tuple(types_of(found).values()) == types
    left = sum(tensor.nbytes for tensor in model_tensors(found).values()) / size
    assert left <= share
    (kept,) = named(ctx, "kept_bytes")
    assert kept.value == pytest.approx(left)
    table = named(ctx, "sensitivity")
    assert [(fact.detail["layers"], fact.detail["type"]) for fact in table] == [
        ([f"layers.{n}"], each) for n in range(3) for each in ("int4", "int8")
    ]
    (predicted,) = named(ctx, "predicted_loss_rise")
    rises: dict[Any, Any] = {
        (fact.detail["layers"][0], fact.detail["type"]): fact.value for fact in table
    }
    assert predicted.value == pytest.approx(sum(rises[each] for each in types_of(found).items()))
    assert predicted.reason is not None
    assert "assumed to add up" in predicted.reason
    assert isinstance(predicted.detail["measured"], float)


def test_the_fewest_bytes_are_found_that_keep_the_quality(make_context: MakeContext) -> None:
    model = Chain(FINE, HARD, FINE)
    ctx = make_context(model, task=features())
    step = Quantize(budget=Budget(max_drop=0.05), granularity="tensor", **NO_SEARCH)
    found = step.apply(model, ctx)
    assert tuple(types_of(found).values()) == ("int4", "int8", "int4")
    (met,) = named(ctx, "max_drop_met")
    assert met.value is True


def test_milliseconds_are_those_of_the_user(make_context: MakeContext) -> None:
    times = {f"layers.{n}": {"float32": 3.0, "int8": 1.0, "int4": 2.0} for n in range(3)}
    model = Chain(FINE, HARD, FINE)
    ctx = make_context(model, task=features())
    step = Quantize(budget=Budget(ms=5.5, layer_ms=times), **NO_SEARCH)
    found = step.apply(model, ctx)
    assert sum(times[path][each] for path, each in types_of(found).items()) <= 5.5
    assert types_of(found)["layers.1"] != "int4"


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (Budget(bytes=0.05), "needs .* times its bytes .* and 0.05 was asked for"),
        (
            Budget(ms=1.0, layer_ms={"layers.0": {"int8": 1.0}}),
            "has no time of 'layers.0' as float32 and int4",
        ),
        (
            Budget(ms=1.0, types=("int8",), layer_ms={"layers.0": {"int8": 2.0, "float32": 3.0}}),
            "needs 2 ms .* and 1 was asked for",
        ),
    ],
)
def test_a_budget_that_cannot_be_kept_is_refused(
    budget: Budget, message: str, make_context: MakeContext
) -> None:
    model = Chain(FINE)
    ctx = make_context(model, task=features())
    with pytest.raises(ModelError, match=message):
        Quantize(budget=budget, **NO_SEARCH).apply(model, ctx)


def test_layers_that_share_a_weight_have_one_type(make_context: MakeContext) -> None:
    model = Chain(FINE, FINE, FINE)
    first, last = model.layers[0], model.layers[2]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    last.weight = first.weight
    ctx = make_context(model, task=features())
    found = Quantize(budget=Budget(bytes=0.4), **NO_SEARCH).apply(model, ctx)
    assert [fact.detail["layers"] for fact in named(ctx, "sensitivity")][::2] == [
        ["layers.0", "layers.2"],
        ["layers.1"],
    ]
    types = types_of(found)
    assert types["layers.0"] == types["layers.2"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Budget(), "exactly one of `bytes`, `max_drop` and `ms`, got none"),
        (lambda: Budget(bytes=0.5, max_drop=0.1), "got bytes and max_drop"),
        (lambda: Budget(ms=3.0), "`ms` and `layer_ms` belong together"),
        (lambda: Budget(bytes=1.5), "bytes.*It is the fraction"),
        (lambda: Quantize(max_drop=0.1, budget=Budget(bytes=0.5)), "exclude each other"),
        (lambda: Quantize(max_drop=-0.1), "max_drop"),
        (lambda: Quantize(subsets=2, weights="int4"), "`subsets` are of the samples"),
        (lambda: Quantize(split="val"), "`split` .*'train', got 'val'. val chooses and test"),
        (lambda: Quantize(split="test"), "`split` .*'train', got 'test'"),
    ],
)
def test_fields_that_make_no_sense_are_refused(make: Callable[[], Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        make()


def test_choosing_by_val_needs_a_model_that_fits_the_task() -> None:
    traits = frozenset({Trait.EDITABLE})
    assert Quantize().check(traits) == traits
    with pytest.raises(OrderError, match="does not fit the task"):
        Quantize(max_drop=0.1).check(traits)


@pytest.mark.parametrize(
    "step",
    [
        Quantize(batches=1, max_drop=0.0),
        Quantize(batches=1, budget=Budget(bytes=0.5), subsets=2, reduce_range="auto"),
    ],
)
def test_the_contract(step: Quantize) -> None:
    check_step(step)


def test_the_budget_is_a_spec() -> None:
    check_spec(Budget(ms=2.0, layer_ms={"a": {"int8": 1.0, "int4": 1.0, "float32": 2.0}}))


def test_the_spread_has_one_value_for_each_subset_and_the_first_is_kept(
    make_context: MakeContext,
) -> None:
    found = []
    for subsets in (1, 3):
        model = Chain(FINE, FINE)
        ctx = make_context(model, task=features())
        step = Quantize(batches=1, batch_size=4, calibration=MinMax(), subsets=subsets)
        found.append(model_tensors(step.apply(model, ctx)))
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])
    (fact,) = named(ctx, "calibration_spread")
    values = fact.detail["values"]
    assert len(values) == 3
    assert (fact.detail["min"], fact.detail["max"]) == (min(values), max(values))
    assert fact.value == max(values) - min(values)
    assert fact.split == "val"


@dataclass
class Counted(Split):
    """A split that counts how many samples are read of it."""

    inner: Split
    reads: int = 0

    def __post_init__(self) -> None:
        self.name = self.inner.name

    def __len__(self) -> int:
        return len(self.inner)

    def read(self, indices: Tensor) -> Batch:
        self.reads += len(indices)
        return self.inner.read(indices)

    def batches(self, index_batches: list[Tensor], workers: int = 0) -> Iterator[Batch]:
        for indices in index_batches:
            yield self.read(indices)

    @property
    def fingerprint(self) -> str:
        return self.inner.fingerprint


class NeverOpened(SealedSplit):
    """A test split that fails the test when it is opened."""

    def __len__(self) -> int:
        return 1

    def open(self) -> Split:
        raise AssertionError("the test split was opened")

    @property
    def fingerprint(self) -> str:
        return ""


class Watching(MinMax):
    """Ranges as ever; notes how many samples of each split were read until then."""

    def search(self, seen: Any) -> tuple[float, float]:
        READS.append((TRAIN.reads, VAL.reads))
        return super().search(seen)


READS: list[tuple[int, int]] = []
DATA = features().prepare()
TRAIN, VAL = Counted(DATA.train), Counted(DATA.val)


def test_a_split_that_counts_counts() -> None:
    split = Counted(DATA.val)
    list(split.in_order(5))
    assert split.reads == len(split) > 0


@pytest.mark.parametrize(
    "fields", [{}, {"max_drop": 0.0}, {"budget": Budget(bytes=0.6)}, {"subsets": 2}]
)
def test_calibration_reads_no_sample_of_val_or_test(
    fields: dict[str, Any], make_context: MakeContext
) -> None:
    model = Chain(FINE, FINE)
    data = replace(DATA, train=TRAIN, val=VAL, test=NeverOpened())
    ctx = make_context(model, task=features(), data=data)
    step = Quantize(batches=2, batch_size=8, calibration=Watching(), **fields)
    plan = step.plan(model, DATA.train.read(torch.arange(2)))
    VAL.reads = TRAIN.reads = 0
    step.ranges(model, plan, step.calibration_batches(model, ctx, 0))
    assert (TRAIN.reads, VAL.reads) == (16, 0)
    READS.clear()
    step.apply(model, ctx)
    before = len(DATA.val) * step.judges
    assert READS[0][1] == before  # nothing since the quality of the float model
    assert (VAL.reads > 0) is bool(fields)


class Shortcut(nn.Module):
    """Two layers that read what no module returns, inside of a block."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.left(x) + self.right(x)
        return out


class Shortcuts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.block, self.head = nn.Linear(5, 6), Shortcut(), nn.Linear(6, 4)
        with torch.no_grad():
            self.head.weight.mul_(1000)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.block(0.01 * torch.relu(self.first(x))))
        return out


@pytest.mark.parametrize("kind", ["bytes", "max_drop"])
def test_where_integers_begin_follows_the_layers_that_stay(
    kind: str, make_context: MakeContext
) -> None:
    torch.manual_seed(0)
    model = Shortcuts().eval()
    ctx = make_context(model, task=features())
    budget = Budget(bytes=0.45) if kind == "bytes" else Budget(max_drop=0.9)
    made = Quantize(batches=1, budget=budget).apply(model, ctx)
    scales = {
        name: float(value)
        for name, value in made.named_buffers()
        if name.endswith(("input_scale", "output_scale"))
    }
    assert all(scale < 0.1 for scale in scales.values()), scales
    for fact in named(ctx, "sensitivity"):
        assert isinstance(fact.value, float)
        assert fact.value < 0.05, fact


@pytest.mark.parametrize("fields", [{"max_drop": 5}, {"budget": Budget(max_drop=1.0)}])
def test_a_drop_in_points_is_refused_before_work(
    fields: dict[str, Any], make_context: MakeContext
) -> None:
    model = Chain(FINE)
    ctx = make_context(model, task=features())
    with pytest.raises(SpecError, match=r"must be below 1, since accuracy.*points write"):
        Quantize(**fields).preflight(model, ctx.task, ctx.data)
