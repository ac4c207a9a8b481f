"""`CrossLayerEqualization`, `SmoothQuant` and `Awq`: scales move, the model computes the same."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from overhaul.quantization import (
    Awq,
    CrossLayerEqualization,
    QuantizationRepair,
    Quantize,
    SmoothQuant,
)
from overhaul.quantization._channel_flow import ChannelFlow, watch_channels
from overhaul.testing import tiny_residual
from tests.quantization.repaired import (
    Images,
    MakeContext,
    Tokens,
    loss_by,
    network,
    output_of,
    repair_errors,
    samples,
    skipped,
    task,
)

REPAIRS: list[QuantizationRepair] = [CrossLayerEqualization(), SmoothQuant(), Awq(grid=8)]
by_name = pytest.mark.parametrize("repair", REPAIRS, ids=lambda repair: repair.spec_name())
networks = pytest.mark.parametrize("name", ["images", "tokens"])


def flow_of(model: nn.Module, maker: str, x: Tensor | None = None) -> ChannelFlow:
    x = torch.randn(2, 1, 8, 8) if x is None else x
    (found,) = [f for f in watch_channels(model, lambda m: m(x)) if f.makers[0].name == maker]
    return found


def stretched(model: nn.Module, by: float = 30.0) -> nn.Module:
    """Give channels very different ranges, without a change of what the model computes."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 1, 8, 8, dtype=next(model.parameters()).dtype)
    with torch.no_grad():
        for flow in watch_channels(model, lambda m: m(x)):
            if flow.blocked is not None:
                continue
            s = by ** (2 * torch.rand(flow.channels, generator=generator) - 1)
            for maker in flow.makers:
                p = model.get_parameter(maker.name)
                p.div_(s.view([-1 if d == maker.dim else 1 for d in range(p.ndim)]))
            for reader in flow.readers:
                p = model.get_parameter(reader.weight)
                factor = reader.geometry.spread(s.repeat_interleave(reader.repeat), p)
                p.copy_(reader.geometry.weight(reader.geometry.matrix(p) * factor, p))
    return model


@pytest.mark.parametrize("by", [1.5, 1000.0])
@networks
def test_every_scale_that_can_be_moved_changes_nothing(name: str, by: float) -> None:
    model = network(name).double()
    x = torch.randn(4, 1, 8, 8, dtype=torch.float64)
    expected = model(x)
    found = stretched(deepcopy(model), by)(x)
    assert torch.allclose(found, expected, rtol=1e-9, atol=1e-9)


@by_name
@networks
def test_the_real_model_computes_the_same(
    repair: QuantizationRepair, name: str, make_context: MakeContext
) -> None:
    model = stretched(network(name))
    ctx = make_context(model, task=task())
    plan = Quantize(granularity="tensor").plan(model, samples(ctx))
    model, batch = model.double(), samples(ctx).map_inputs(Tensor.double)
    expected = output_of(model, batch)
    before = {name: p.clone() for name, p in model.named_parameters()}
    repair.prepare_(model, plan, [batch], ctx)
    assert float((output_of(model, batch) - expected).norm()) < 1e-11 * float(expected.norm())
    changed = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert len(changed) >= 2


NEEDED: dict[str, tuple[dict[str, Any], dict[str, float]]] = {
    "cross_layer_equalization": (
        {"weights": "int8", "granularity": "tensor"},
        {"images": 0.5},
    ),
    "smooth_quant": ({"weights": "int8"}, {"images": 0.7, "tokens": 0.7}),
    "awq": ({"weights": "int4", "block_size": 8}, {"images": 0.9, "tokens": 0.9}),
}


@by_name
@networks
def test_a_model_that_needs_it_loses_less(
    repair: QuantizationRepair, name: str, make_context: MakeContext
) -> None:
    fields, allowed = NEEDED[repair.spec_name()]
    if name not in allowed:
        assert isinstance(repair, CrossLayerEqualization)  # it has no pair in a transformer
        return
    plain, _ = loss_by(stretched(network(name)), (), make_context, **fields)
    found, ctx = loss_by(stretched(network(name)), (repair,), make_context, **fields)
    errors = repair_errors(ctx, repair.spec_name())
    assert sum(after for _, after in errors.values()) < sum(b for b, _ in errors.values())
    assert found < allowed[name] * plain


@by_name
@networks
@pytest.mark.parametrize(
    "fields",
    [
        {"weights": "int8"},
        {"weights": "int8", "granularity": "tensor"},
        {"weights": "int4", "granularity": "channel"},
    ],
    ids=str,
)
def test_no_layer_gets_worse(
    repair: QuantizationRepair, name: str, fields: dict[str, Any], make_context: MakeContext
) -> None:
    _, ctx = loss_by(network(name), (repair,), make_context, **fields)
    errors = repair_errors(ctx, repair.spec_name())
    assert errors or skipped(ctx, repair.spec_name())
    assert all(after <= 1.01 * before for before, after in errors.values())


def test_where_channels_go_through_convolutions() -> None:
    model = Images()
    first = flow_of(model, "first.weight")
    assert first.blocked is None
    assert [(r.weight, r.geometry.groups) for r in first.readers] == [("depthwise.weight", 8)]
    assert flow_of(model, "depthwise.weight").readers[0].weight == "point.weight"
    assert flow_of(model, "point.weight").readers[0].geometry.groups == 2
    assert flow_of(model, "grouped.weight").readers[0].geometry.turned
    flat = flow_of(model, "up.weight")
    assert (flat.makers[0].dim, flat.readers[0].weight, flat.readers[0].repeat) == (
        1,
        "hidden.weight",
        9,
    )
    assert flow_of(model, "head.weight").blocked == "it is an output of the model"


def test_layers_that_share_a_norm_get_one_scale() -> None:
    model = Tokens().eval()
    assert [r.weight for r in flow_of(model, "norm.weight").readers] == [
        "gate.weight",
        "up.weight",
    ]
    assert [m.name for m in flow_of(model, "block.norm1.weight").makers] == [
        "block.norm1.weight",
        "block.norm1.bias",
    ]
    assert flow_of(model, "block.norm1.weight").readers[0].weight == (
        "block.self_attn.in_proj_weight"
    )
    assert [r.weight for r in flow_of(model, "up.weight").readers] == ["down.weight"]
    assert "silu" in str(flow_of(model, "gate.weight").blocked)
    assert [r.weight for r in flow_of(model, "last.weight").readers] == ["head.weight"]
    assert flow_of(model, "embed.weight").blocked is not None


class Hand(nn.Module):
    """A norm written by hand, and channels that are read in ways that forbid a scale."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.weight = nn.Parameter(torch.rand(8) + 0.5)
        self.conv = nn.Conv2d(1, 8, 3)
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 3)
        self.kept: Tensor | None = None

    def forward(self, x: Tensor) -> Any:
        h = x.flatten(1)[:, :8]
        n = self.weight * (h / h.norm(dim=-1, keepdim=True))
        a = self.one(n)
        if self.how == "relu6":
            return self.two(nn.functional.relu6(a))
        if self.how == "sum":
            return self.two(a + n)
        if self.how == "in place":
            a.relu_().add_(1)
            return self.two(a)
        if self.how == "square":
            return self.two(a * a)
        if self.how == "mask":
            a[a > 1] = 0
            return self.two(a)
        if self.how == "value":
            return self.two(a) if float(a.detach()[0, 0]) > 0 else self.two(-a)
        if self.how == "cast":
            return self.two(a.to(torch.int32).float())
        if self.how == "twice":
            return self.two(torch.relu(self.one(torch.relu(a))))
        if self.how == "output":
            return self.two(a), {"a": a.relu()}
        if self.how == "object":
            return Out(self.two(a), a)
        if self.how == "joined":
            return self.two(torch.cat([a])[:, :8])
        if self.how == "second":
            return self.two(torch.prelu(x.flatten(1)[:, :8], a[0]))
        if self.how == "mixed":
            return self.two(a.view(-1, 4, 2).transpose(1, 2).reshape(-1, 8))
        return self.two(torch.relu(a))


class Out:
    def __init__(self, logits: Tensor, hidden: Tensor) -> None:
        self.logits, self.hidden = logits, hidden


FORBIDDEN = [
    *("relu6", "sum", "in place", "square", "mask", "value", "cast", "twice", "output"),
    *("object", "mixed", "joined", "second"),
]


@pytest.mark.parametrize("how", FORBIDDEN)
def test_what_does_not_pass_a_scale_on_blocks_it(how: str) -> None:
    model = Hand(how)
    flows = [
        f
        for f in watch_channels(model, lambda m: m(torch.randn(2, 1, 8, 8)))
        if f.makers[0].name == "one.weight"
    ]
    assert flows
    assert all(flow.blocked is not None for flow in flows)


def test_a_norm_written_by_hand_takes_a_scale() -> None:
    flow = flow_of(Hand("plain"), "weight")
    assert flow.blocked is None
    assert [reader.weight for reader in flow.readers] == ["one.weight"]
    assert flow_of(Hand("plain"), "one.weight").blocked is None


def test_sums_of_a_residual_network_are_left(make_context: MakeContext) -> None:
    model = tiny_residual().eval()
    _, ctx = loss_by(model, (CrossLayerEqualization(),), make_context, granularity="tensor")
    reasons = skipped(ctx, "cross_layer_equalization")
    assert "blocks.1.conv.weight" in reasons


class Hidden(torch.autograd.Function):
    """Reads a tensor where no function of torch is called on it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.sin()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


class Reads(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(64, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.one(x.flatten(1)).relu()
        seen: Any = Hidden.apply(h)
        out: Tensor = self.two(h) + seen[:, :5].detach()
        return out


def test_a_reader_that_was_not_seen_undoes_all(make_context: MakeContext) -> None:
    model = stretched(Reads())
    ctx = make_context(model, task=task())
    batch = samples(ctx)
    before = output_of(model, batch)
    plan = Quantize(granularity="tensor").plan(model, batch)
    CrossLayerEqualization().prepare_(model, plan, [batch], ctx)
    assert torch.allclose(output_of(model, batch), before, rtol=1e-4, atol=1e-4)
    assert skipped(ctx, "cross_layer_equalization")


def test_smooth_quant_needs_activations_of_integers(make_context: MakeContext) -> None:
    _, ctx = loss_by(network("tokens"), (SmoothQuant(),), make_context, weights="int4")
    assert "no activation becomes an integer" in skipped(ctx, "smooth_quant")[""]
