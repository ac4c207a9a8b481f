"""`AdaRound`, `Gptq` and `BiasCorrection`: other integers and biases for the same scales."""

import pytest
import torch
from torch import Tensor, nn

from overhaul.quantization import AdaRound, BiasCorrection, Gptq, QuantizationRepair
from overhaul.quantization._layer_inputs import layer_inputs
from tests.quantization.repaired import (
    MakeContext,
    loss_by,
    network,
    repair_errors,
    samples,
    skipped,
    task,
)

ROUNDING = [AdaRound(iterations=200), Gptq()]
REPAIRS: list[QuantizationRepair] = [*ROUNDING, BiasCorrection()]


@pytest.mark.parametrize("repair", ROUNDING, ids=lambda repair: repair.spec_name())
@pytest.mark.parametrize("name", ["images", "tokens"])
def test_four_bits_lose_less(
    repair: QuantizationRepair, name: str, make_context: MakeContext
) -> None:
    plain, _ = loss_by(network(name), (), make_context, weights="int4", block_size=8)
    found, ctx = loss_by(network(name), (repair,), make_context, weights="int4", block_size=8)
    assert found < plain
    errors = repair_errors(ctx, repair.spec_name())
    assert len(errors) >= 7
    assert all(after <= before for before, after in errors.values())
    assert sum(after for _, after in errors.values()) < 0.75 * sum(b for b, _ in errors.values())


@pytest.mark.parametrize("repair", REPAIRS, ids=lambda repair: repair.spec_name())
@pytest.mark.parametrize(
    "fields",
    [
        {"weights": "int8"},
        {"weights": "int8", "granularity": "tensor"},
        {"weights": "int8", "activations": None, "granularity": "block", "block_size": 8},
        {"weights": "int4", "granularity": "channel"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["images", "tokens"])
def test_no_layer_gets_worse(
    repair: QuantizationRepair, name: str, fields: dict[str, object], make_context: MakeContext
) -> None:
    plain, _ = loss_by(network(name), (), make_context, **fields)
    found, ctx = loss_by(network(name), (repair,), make_context, **fields)
    errors = repair_errors(ctx, repair.spec_name())
    assert errors
    assert all(after <= before for before, after in errors.values())
    assert found < 1.1 * plain


def test_a_shift_of_the_outputs_goes_into_the_bias(make_context: MakeContext) -> None:
    first = nn.Linear(64, 16)
    model = nn.Sequential(nn.Flatten(), first, nn.ReLU(), nn.Linear(16, 5))
    with torch.no_grad():
        first.bias.add_(3)  # inputs of the second layer whose mean is far from zero
    fields = {"weights": "int4", "granularity": "tensor"}
    plain, _ = loss_by(model, (), make_context, **fields)
    found, ctx = loss_by(model, (BiasCorrection(),), make_context, **fields)
    assert found < 0.6 * plain
    assert set(repair_errors(ctx, "bias_correction")) == {"1", "3"}


class Odd(nn.Module):
    """A table that is shared, a layer called twice, one without a bias and one never called."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 8)
        self.twice = nn.Linear(8, 8)
        self.tied = nn.Linear(8, 9, bias=False)
        self.tied.weight = self.table.weight
        self.lstm = nn.LSTM(9, 5, batch_first=True)
        self.unused = nn.Linear(2, 2)
        self.plain = nn.Linear(5, 5, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.table(x.flatten(1).abs().long().clamp(max=8))
        out: Tensor = self.plain(self.lstm(self.tied(self.twice(self.twice(h))))[0][:, -1])
        return out


def test_what_cannot_be_repaired_is_named(make_context: MakeContext) -> None:
    _, ctx = loss_by(Odd(), (Gptq(), BiasCorrection()), make_context)
    assert set(repair_errors(ctx, "gptq")) == {"plain.weight"}
    reasons = skipped(ctx, "gptq")
    assert reasons["table.weight"] == "its weight is used more than once"
    assert reasons["tied.weight"] == reasons["twice.weight"] == reasons["table.weight"]
    assert "not called as a layer" in reasons["unused.weight"]
    assert "not called as a layer" in reasons["lstm.weight_ih_l0"]
    reasons = skipped(ctx, "bias_correction")
    assert reasons["twice"] == "it is called more than once"
    assert reasons["unused"] == "it is called never"
    assert reasons["plain"] == reasons["tied"] == "it has no bias"
    assert "a table or recurrent" in reasons["lstm"]


class Again(nn.Module):
    """A layer that is called twice, on values of different size, and one after it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.head = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.twice(torch.relu(self.first(x.flatten(1)))))
        out: Tensor = self.head(torch.relu(self.twice(10 * h)))
        return out


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_a_layer_after_one_that_is_called_twice_is_corrected_for_what_it_sees(
    weights: str, make_context: MakeContext
) -> None:
    torch.manual_seed(0)
    model = Again()
    plain, _ = loss_by(model, (), make_context, weights=weights)
    found, ctx = loss_by(model, (BiasCorrection(),), make_context, weights=weights)
    assert found < 1.1 * plain
    assert set(repair_errors(ctx, "bias_correction")) == {"first", "head"}


def test_weights_that_are_no_integers_are_left(make_context: MakeContext) -> None:
    plain, _ = loss_by(network("images"), (), make_context, weights="float16")
    found, ctx = loss_by(network("images"), (Gptq(),), make_context, weights="float16")
    assert found == plain
    assert set(skipped(ctx, "gptq").values()) == {"it is no integer"}


@pytest.mark.parametrize("name", ["images", "tokens"])
def test_rows_times_the_matrix_are_what_the_layer_computes(
    name: str, make_context: MakeContext
) -> None:
    model = network(name)
    batch = samples(make_context(model, task=task()))
    seen: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.register_forward_hook(
                lambda m, args, out, path=path: seen.setdefault(path, out.detach())
            )
    weights = [name for name, _ in model.named_parameters() if name.endswith("weight")]
    found, _ = layer_inputs(model, weights, [batch], 10**9, torch.Generator())
    checked = 0
    for path, out in seen.items():
        module = model.get_submodule(path)
        assert isinstance(module, nn.Linear | nn.Conv2d)
        inputs = found[f"{path}.weight"]
        product = inputs.rows @ inputs.geometry.matrix(module.weight.detach()).mT
        flat = product.transpose(0, 1).flatten(1)
        if module.bias is not None:
            flat = flat + module.bias.detach()
        dim = 1 if isinstance(module, nn.Conv2d) else -1
        right = out.movedim(dim, -1).reshape(flat.shape)
        assert torch.allclose(flat, right, atol=1e-4), path
        checked += 1
    assert checked >= 5


def test_gptq_of_independent_inputs_is_plain_rounding(make_context: MakeContext) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5))
    repair = Gptq(damping=1e6)
    plain, _ = loss_by(model, (), make_context, weights="int4")
    found, ctx = loss_by(model, (repair,), make_context, weights="int4")
    assert found == pytest.approx(plain)
    assert len(repair_errors(ctx, "gptq")) == 1


def test_the_block_of_gptq_is_for_speed_alone(make_context: MakeContext) -> None:
    results = {
        block: loss_by(network("images"), (Gptq(block=block),), make_context, weights="int4")[0]
        for block in (1, 7, 128)
    }
    assert max(results.values()) == pytest.approx(min(results.values()), rel=1e-6)
