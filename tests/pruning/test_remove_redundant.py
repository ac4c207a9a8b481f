from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from overhaul.core import Context, Fact, ModelError, model_tensors, rebuild, trainable_names
from overhaul.graph import FoldNorm
from overhaul.pruning import GiveBias, RemoveRedundant
from overhaul.tasks import Classification
from overhaul.testing import check_step, tiny_cnn

MakeContext = Callable[..., Context]
KINDS = ("dead", "constant", "duplicate", "proportional")


def task_for(*shape: int) -> Classification:
    """Return a task with random inputs of this shape, with negative values in them."""
    generator = torch.Generator().manual_seed(0)

    def part() -> tuple[Tensor, Tensor]:
        return torch.randn(24, *shape, generator=generator), torch.arange(24) % 3

    return Classification(train=part(), val=part(), test=part())


def value_of(facts: list[Fact], name: str) -> float:
    (found,) = [fact.value for fact in facts if fact.name == name]
    assert isinstance(found, int | float)
    return found


def removed(
    model: nn.Module, make_context: MakeContext, *shape: int, step: RemoveRedundant | None = None
) -> tuple[nn.Module, Context, dict[str, int]]:
    """Apply the step; check that outputs, on other inputs, and the rebuilt model are the same."""
    original = deepcopy(model)
    ctx = make_context(original, task=task_for(*shape))
    smaller = (step or RemoveRedundant()).apply(model, ctx)
    x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    expected, actual = (deepcopy(m).double().eval()(x) for m in (original, smaller))
    assert (expected - actual).abs().max() <= 1e-5 * expected.abs().max()
    again = rebuild(original, ctx.edits, model_tensors(smaller), trainable_names(smaller)).eval()
    inputs = x.float()
    assert torch.equal(again(inputs), deepcopy(smaller).eval()(inputs))
    return smaller, ctx, {kind: int(value_of(ctx.facts, f"{kind}_units")) for kind in KINDS}


def mlp(activation: nn.Module | None = None, *, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(5, 8, bias=bias), activation or nn.ReLU(), nn.Linear(8, 3, bias=bias)
    )


@torch.no_grad()
def copy_unit_(model: nn.Sequential, unit: int, of: int, factor: float = 1.0) -> None:
    """Let a hidden unit of `mlp` be a multiple of another one."""
    first = model[0]
    assert isinstance(first, nn.Linear)
    first.weight[unit] = factor * first.weight[of]
    if first.bias is not None:
        first.bias[unit] = factor * first.bias[of]


def width(model: nn.Module) -> int:
    return len(model.get_parameter("0.weight"))


@torch.no_grad()
def test_units_that_nothing_reads_go(make_context: MakeContext) -> None:
    model = mlp()
    model.get_parameter("2.weight")[:, [1, 4]] = 0
    smaller, ctx, counts = removed(model, make_context, 5)
    assert counts == {"dead": 2, "constant": 0, "duplicate": 0, "proportional": 0}
    assert width(smaller) == 6
    assert value_of(ctx.facts, "removed_parameters") == 2 * (5 + 1 + 3)


@torch.no_grad()
def test_units_that_are_zero_for_any_input_go(make_context: MakeContext) -> None:
    model = mlp()
    model.get_parameter("0.weight")[3] = 0
    model.get_parameter("0.bias")[3] = -0.5
    _, _, counts = removed(model, make_context, 5)
    assert counts == {"dead": 1, "constant": 0, "duplicate": 0, "proportional": 0}


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_a_constant_goes_into_the_bias_of_the_next_layer(
    make_context: MakeContext, bias: bool
) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 3, bias=bias))
    model.get_parameter("0.weight")[3] = 0
    smaller, ctx, counts = removed(model, make_context, 5)
    assert counts == {"dead": 0, "constant": 1, "duplicate": 0, "proportional": 0}
    assert width(smaller) == 7
    assert ([type(edit) for edit in ctx.edits][:-1] == [GiveBias]) is not bias


@torch.no_grad()
def test_a_new_bias_has_the_outputs_that_are_left(make_context: MakeContext) -> None:
    model = nn.Sequential(
        *(nn.Linear(5, 8), nn.Sigmoid(), nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 3))
    )
    model.get_parameter("0.weight")[3] = 0
    model.get_parameter("4.weight")[:, 2] = 0
    smaller, _, counts = removed(model, make_context, 5)
    assert counts == {"dead": 1, "constant": 1, "duplicate": 0, "proportional": 0}
    assert smaller.get_parameter("2.bias").shape == (5,)


PaddingMode = Literal["zeros", "reflect"]


def conv_net(padding: int, mode: PaddingMode = "zeros") -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3),
        nn.Sigmoid(),
        nn.Conv2d(6, 4, 3, padding=padding, padding_mode=mode),
        nn.Sigmoid(),
        nn.Flatten(),
        nn.Linear(4 * (4 + 2 * padding) ** 2, 3),
    )


@pytest.mark.parametrize(
    ("padding", "mode", "gone"), [(0, "zeros", 1), (1, "zeros", 0), (1, "reflect", 1)]
)
@torch.no_grad()
def test_a_constant_is_none_where_zeros_are_put_around_it(
    make_context: MakeContext, padding: int, mode: PaddingMode, gone: int
) -> None:
    model = conv_net(padding, mode)
    model.get_parameter("0.weight")[3] = 0
    smaller, _, counts = removed(model, make_context, 2, 8, 8)
    assert counts == {"dead": 0, "constant": gone, "duplicate": 0, "proportional": 0}
    assert width(smaller) == 6 - gone


@torch.no_grad()
def test_constants_before_padding_still_merge_with_their_like(make_context: MakeContext) -> None:
    model = conv_net(1)
    model.get_parameter("0.weight")[[3, 5]] = 0
    model.get_parameter("0.bias")[[3, 5]] = 0.25
    _, _, counts = removed(model, make_context, 2, 8, 8)
    assert counts == {"dead": 0, "constant": 0, "duplicate": 1, "proportional": 0}


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.Tanh(), nn.ReLU6()])
def test_duplicates_merge_through_any_activation(
    make_context: MakeContext, activation: nn.Module
) -> None:
    model = mlp(activation)
    copy_unit_(model, 6, of=2)
    copy_unit_(model, 7, of=2)
    smaller, _, counts = removed(model, make_context, 5)
    assert counts == {"dead": 0, "constant": 0, "duplicate": 2, "proportional": 0}
    assert width(smaller) == 6


@pytest.mark.parametrize(
    ("activation", "factor", "merges"),
    [
        (nn.ReLU(), 3.0, True),
        (nn.ReLU(inplace=True), 0.25, True),
        (nn.LeakyReLU(), 2.0, True),
        (nn.ReLU(), -3.0, False),
        (nn.Identity(), -3.0, True),
        (nn.Identity(), 2.0, True),
        (nn.GELU(), 3.0, False),
        (nn.Sigmoid(), 2.0, False),
        (nn.ReLU6(), 1.5, False),  # as ReLU on small values, so on all of these inputs
    ],
)
def test_multiples_merge_where_the_activation_lets_them(
    make_context: MakeContext, activation: nn.Module, factor: float, merges: bool
) -> None:
    model = mlp(activation)
    copy_unit_(model, 6, of=2, factor=factor)
    smaller, _, counts = removed(model, make_context, 5)
    assert counts["proportional"] == int(merges)
    assert width(smaller) == 8 - merges


@given(
    factors=st.lists(st.sampled_from([1.0, 0.5, 3.0]), min_size=1, max_size=5),
    of=st.integers(0, 2),
    bias=st.booleans(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_merged_outputs_are_those_of_the_larger_network(
    make_context: MakeContext, factors: list[float], of: int, bias: bool
) -> None:
    model = mlp(bias=bias)
    for place, factor in enumerate(factors):
        copy_unit_(model, 3 + place, of=of, factor=factor)
    original = deepcopy(model)
    smaller = RemoveRedundant().apply(model, make_context(original, task=task_for(5)))
    assert width(smaller) == 8 - len(factors)
    x = torch.randn(20, 5)
    torch.testing.assert_close(smaller(x), original(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_units_of_a_residual_stream_merge_only_if_all_of_them_agree(
    make_context: MakeContext,
) -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(5, 8)
            self.inner = nn.Linear(8, 8)
            self.last = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.first(x))
            logits: Tensor = self.last(x + torch.relu(self.inner(x)))
            return logits

    model = Residual()
    for layer in (model.first, model.inner):
        layer.weight[5], layer.bias[5] = layer.weight[2], layer.bias[2]
        layer.weight[4], layer.bias[4] = 0, -1
    model.first.weight[6], model.first.bias[6] = model.first.weight[1], model.first.bias[1]
    smaller, _, counts = removed(model, make_context, 5)
    assert counts == {"dead": 1, "constant": 0, "duplicate": 1, "proportional": 0}
    assert smaller.get_parameter("first.weight").shape == (6, 5)


class Depthwise(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand = nn.Conv2d(2, 8, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.bn2 = nn.BatchNorm2d(8)
        self.project = nn.Conv2d(8, 4, 1)
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.relu6(self.bn1(self.expand(x)))
        x = nn.functional.relu6(self.bn2(self.depthwise(x)))
        logits: Tensor = self.fc(self.project(x).mean((2, 3)))
        return logits


@torch.no_grad()
def randomize_norms_(model: nn.Module) -> None:
    """Give every BatchNorm the statistics and weights of a trained one."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            module.weight.uniform_(0.5, 1.5)
            module.bias.normal_()


@pytest.mark.parametrize("fold", [True, False])
@torch.no_grad()
def test_depthwise_channels(make_context: MakeContext, fold: bool) -> None:
    model = Depthwise()
    randomize_norms_(model)
    model.depthwise.weight[3] = 0  # its channel is constant after this layer
    for tensor in (
        *(model.expand.weight, model.bn1.weight, model.bn1.bias, model.bn1.running_mean),
        *(model.bn1.running_var, model.depthwise.weight, model.bn2.weight, model.bn2.bias),
        *(model.bn2.running_mean, model.bn2.running_var),
    ):
        assert tensor is not None
        tensor[6] = tensor[1]
    step = RemoveRedundant(fold_norms=fold)
    smaller, ctx, counts = removed(model, make_context, 2, 6, 6, step=step)
    assert counts["duplicate"] == 1
    assert counts["dead"] + counts["constant"] == 1
    assert value_of(ctx.facts, "folded_norms") == 2 * fold
    assert smaller.get_submodule("depthwise").extra_repr().startswith("6, 6")


NORMED = {
    "conv": (nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6), nn.ReLU()), (2, 8, 8)),
    "no bias": (nn.Sequential(nn.Conv2d(2, 6, 3, bias=False), nn.BatchNorm2d(6)), (2, 8, 8)),
    "not affine": (nn.Sequential(nn.Conv2d(2, 6, 3), nn.BatchNorm2d(6, affine=False)), (2, 8, 8)),
    "transposed": (nn.Sequential(nn.ConvTranspose2d(2, 6, 3), nn.BatchNorm2d(6)), (2, 8, 8)),
    "grouped": (nn.Sequential(nn.Conv2d(2, 6, 3, groups=2), nn.BatchNorm2d(6)), (2, 8, 8)),
    "linear": (nn.Sequential(nn.Linear(5, 6, bias=False), nn.BatchNorm1d(6)), (5,)),
}


@pytest.mark.parametrize("name", NORMED)
def test_norms_are_folded(make_context: MakeContext, name: str) -> None:
    body, shape = deepcopy(NORMED[name])
    for module in body.modules():
        if isinstance(module, nn.BatchNorm2d) and not module.affine:
            module.reset_running_stats()
        elif isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            randomize_norms_(module)
    model = nn.Sequential(body, nn.Flatten(), nn.LazyLinear(3))
    model.eval()(torch.zeros(2, *shape))
    smaller, ctx, _ = removed(model.train(), make_context, *shape)
    assert value_of(ctx.facts, "folded_norms") == 1
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in smaller.modules())
    assert smaller.training


class NormAfterUse(nn.Module):
    """The norm is not alone in getting the output of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3)
        self.bn = nn.BatchNorm2d(6)
        self.fc = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        logits: Tensor = self.fc((x + self.bn(x)).mean((2, 3)))
        return logits


class NormOverPlaces(nn.Module):
    """The norm's channels are not the outputs of the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 5)
        self.bn = nn.BatchNorm1d(5)
        self.fc = nn.Linear(25, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.bn(self.first(x)).flatten(1))
        return logits


class NormThatDoesMore(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (NormAfterUse(), (2, 8, 8)),
        (NormOverPlaces(), (5, 5)),
        (
            nn.Sequential(
                nn.Conv2d(2, 6, 3), NormThatDoesMore(6), nn.Flatten(), nn.Linear(6 * 36, 3)
            ),
            (2, 8, 8),
        ),
        (
            nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 6, 3), nn.Flatten(), nn.Linear(216, 3)),
            (2, 8, 8),
        ),
    ],
)
def test_other_norms_stay(
    make_context: MakeContext, model: nn.Module, shape: tuple[int, ...]
) -> None:
    randomize_norms_(model)
    _, ctx, _ = removed(model, make_context, *shape)
    assert value_of(ctx.facts, "folded_norms") == 0


def test_norms_stay_on_request(make_context: MakeContext) -> None:
    model = tiny_cnn()
    randomize_norms_(model)
    kept = RemoveRedundant(fold_norms=False).apply(deepcopy(model), make_context(model))
    assert isinstance(kept.get_submodule("bn"), nn.BatchNorm2d)
    excluded = RemoveRedundant(exclude=("bn",)).apply(deepcopy(model), make_context(model))
    assert isinstance(excluded.get_submodule("bn"), nn.BatchNorm2d)


@torch.no_grad()
def test_excluded_layers_keep_their_units(make_context: MakeContext) -> None:
    model = mlp()
    model.get_parameter("2.weight")[:, 1] = 0
    smaller, _, counts = removed(model, make_context, 5, step=RemoveRedundant(exclude=("2",)))
    assert sum(counts.values()) == 0
    assert width(smaller) == 8
    with pytest.raises(ModelError, match=r"`exclude` 'head' matches nothing"):
        RemoveRedundant(exclude=("head",)).apply(model, make_context(model, task=task_for(5)))


@torch.no_grad()
def test_one_removal_makes_another(make_context: MakeContext) -> None:
    model = nn.Sequential(
        *(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))
    )
    model.get_parameter("4.weight")[:, 0] = 0
    model.get_parameter("2.weight")[1:, 3] = 0  # the first unit of the second layer reads it
    _, ctx, counts = removed(model, make_context, 5)
    assert counts["dead"] == 2
    assert len(ctx.edits) == 2


@torch.no_grad()
def test_one_unit_of_a_layer_stays(make_context: MakeContext) -> None:
    model = mlp()
    model.get_parameter("2.weight").zero_()
    smaller, _, counts = removed(model, make_context, 5)
    assert counts["dead"] == 7
    assert width(smaller) == 1


@torch.no_grad()
def test_units_that_a_norm_computes_together_stay(make_context: MakeContext) -> None:
    model = nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    copy_unit_(model, 6, of=2)
    model.get_parameter("2.weight")[:, 1] = 0
    _, _, counts = removed(model, make_context, 5)
    assert sum(counts.values()) == 0


@torch.no_grad()
def test_a_layer_that_is_used_twice_is_left(make_context: MakeContext) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(5, 8)
            self.again = nn.Linear(8, 8)
            self.last = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.sigmoid(self.again(torch.sigmoid(self.first(x))))
            logits: Tensor = self.last(torch.sigmoid(self.again(x)))
            return logits

    model = Twice()
    model.first.weight[3] = model.again.weight[3] = 0
    _, _, counts = removed(model, make_context, 5)
    assert sum(counts.values()) == 0


@torch.no_grad()
def test_what_fails_the_proof_is_left_and_said(make_context: MakeContext) -> None:
    model = tiny_cnn()
    randomize_norms_(model)
    ctx = make_context(deepcopy(model))
    kept = RemoveRedundant(tolerance=1e-300).apply(model, ctx)
    assert torch.equal(kept.get_parameter("conv.weight"), ctx.original.get_parameter("conv.weight"))
    (skipped,) = [fact for fact in ctx.facts if fact.name == "skipped"]
    assert skipped.value == "bn"
    assert "outputs would differ by" in (skipped.reason or "")
    assert ctx.edits == []


@torch.no_grad()
def test_of_many_changes_only_the_bad_one_is_left(make_context: MakeContext) -> None:
    class ReadsItsNorm(nn.Module):
        """The program looks at one of its norms, so that this one cannot go."""

        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(2, 2, 1) for _ in range(4))
            self.norms = nn.ModuleList(nn.BatchNorm2d(2) for _ in range(4))
            self.fc = nn.Linear(2, 3)

        def forward(self, x: Tensor) -> Tensor:
            assert self.norms[2].num_features == 2
            for conv, norm in zip(self.convs, self.norms, strict=True):
                x = torch.relu(norm(conv(x)))
            logits: Tensor = self.fc(x.mean((2, 3)))
            return logits

    model = ReadsItsNorm()
    randomize_norms_(model)
    _, ctx, _ = removed(model, make_context, 2, 4, 4)
    assert value_of(ctx.facts, "folded_norms") == 3
    (skipped,) = [fact for fact in ctx.facts if fact.value == "norms.2"]
    assert "would not run (AttributeError" in (skipped.reason or "")


def test_a_program_that_reads_values_is_still_folded(make_context: MakeContext) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = tiny_cnn()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.inner(x)
            return -logits if logits.sum() > 1e9 else logits

    model = Branches()
    randomize_norms_(model)
    ctx = make_context(deepcopy(model))
    RemoveRedundant().apply(model, ctx)
    assert value_of(ctx.facts, "folded_norms") == 1
    (skipped,) = [fact for fact in ctx.facts if fact.name == "skipped"]
    assert skipped.value == "units"


@torch.no_grad()
def test_a_model_that_names_single_precision_is_judged_in_it(make_context: MakeContext) -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = tiny_cnn()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.body(x.float())
            return logits

    model = Single()
    randomize_norms_(model)
    model.body.fc.weight[:, :16] = 0
    ctx = make_context(deepcopy(model))
    smaller = RemoveRedundant().apply(model, ctx)
    assert value_of(ctx.facts, "folded_norms") == 1
    assert value_of(ctx.facts, "dead_units") == 1
    assert smaller.get_parameter("body.conv.weight").shape[0] == 5
    (error,) = [fact for fact in ctx.facts if fact.name == "output_error"]
    assert error.detail["type"] == "as it is"
    assert 0 < float(error.value or 0) < 1e-5


def test_the_edits_refuse_other_models() -> None:
    model = nn.Sequential(nn.ReLU(), nn.Linear(2, 2))
    with pytest.raises(ModelError, match=r"cannot be folded"):
        FoldNorm(layer="1", norm="0").apply(model)
    with pytest.raises(ModelError, match=r"without one, and '1' is Linear"):
        GiveBias(layer="1").apply(model)


def test_carried_names_of_a_folded_norm_are_gone() -> None:
    edit = FoldNorm(layer="conv", norm="bn")
    assert [edit.rename(name) for name in ("bn.weight", "bn", "bn2.weight")] == [
        *(None, "bn", "bn2.weight")
    ]


def test_the_contract_holds_with_something_to_remove() -> None:
    model = tiny_cnn()
    randomize_norms_(model)
    with torch.no_grad():
        model.conv.weight[2] = 0
        model.bn.bias[2] = -9
    check_step(RemoveRedundant(), model=model)


def test_the_config_of_a_transformer_follows(make_context: MakeContext, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=4,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=3,
    )
    torch.manual_seed(0)
    model: Any = transformers.ViTForImageClassification(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.shape == (16, 32):
                parameter[:, 7:] = 0
                assert "mlp" in name or "output" in name
    ctx = make_context(deepcopy(model))
    smaller: Any = RemoveRedundant(exclude=("vit.embeddings", "*.attention")).apply(model, ctx)
    assert smaller.config.intermediate_size == 7
    smaller.save_pretrained(tmp_path / "saved")
    again = type(smaller).from_pretrained(tmp_path / "saved").eval()
    inputs = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(again(inputs).logits, smaller.eval()(inputs).logits)


def test_a_model_that_cannot_be_watched_is_refused(make_context: MakeContext) -> None:
    class Shy(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            if torch.overrides._get_current_function_mode_stack():
                raise RuntimeError("nobody looks")
            out: Tensor = super().forward(x)  # type: ignore[no-untyped-call]
            return out

    model = Shy(tiny_cnn())
    with pytest.raises(ModelError, match=r"operations are watched \(RuntimeError: nobody looks"):
        RemoveRedundant().apply(model, make_context(deepcopy(model)))


class Recurrent(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        layer = {"lstm": nn.LSTM, "gru": nn.GRU, "rnn": nn.RNN}[kind]
        self.rnn = layer(4, 6, num_layers=2, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.rnn(x)[0].mean(1))
        return logits


@torch.no_grad()
def unread_(model: Recurrent, unit: int) -> None:
    """Let nothing read a unit: the graph has one for that of all layers and directions."""
    for name, weight in model.rnn.named_parameters():
        if weight.ndim > 1 and "ih_l0" not in name:
            weight[:, unit::6] = 0
    model.fc.weight[:, unit::6] = 0


@pytest.mark.parametrize("kind", ["lstm", "gru", "rnn"])
def test_recurrent_units_that_nothing_reads_go(make_context: MakeContext, kind: str) -> None:
    model = Recurrent(kind)
    unread_(model, 1)
    unread_(model, 4)
    with torch.no_grad():
        model.fc.weight[:, 3] = 0  # this one is still read by the layer itself
    smaller, _, counts = removed(model, make_context, 5, 4)
    assert counts == {"dead": 2, "constant": 0, "duplicate": 0, "proportional": 0}
    assert smaller.get_parameter("rnn.weight_hh_l1_reverse").shape[1] == 4
    assert smaller.get_parameter("fc.weight").shape == (3, 8)


def test_one_of_all_dead_recurrent_units_stays(make_context: MakeContext) -> None:
    model = Recurrent("gru")
    for unit in range(6):
        unread_(model, unit)
    smaller, _, counts = removed(model, make_context, 5, 4)
    assert counts["dead"] == 5
    assert smaller.get_parameter("rnn.weight_hh_l0").shape == (3, 1)


class Attention(nn.Module):
    def __init__(self, own: bool) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 8)
        if own:
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        else:
            self.attn = nn.MultiheadAttention(8, 4, batch_first=True)
        self.fc = nn.Linear(8, 3)
        self.width, self.own = 2, own

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if self.own:
            b, t, _ = x.shape
            q, k, v = (
                part.view(b, t, -1, self.width).transpose(1, 2)
                for part in self.qkv(x).chunk(3, dim=-1)
            )
            y = nn.functional.scaled_dot_product_attention(q, k, v)
            y = self.out(y.transpose(1, 2).reshape(b, t, -1))
        else:
            y = self.attn(x, x, x, need_weights=False)[0]
        logits: Tensor = self.fc((x + y).mean(1))
        return logits


@torch.no_grad()
@pytest.mark.parametrize(
    ("own", "makes", "reads"),
    [(False, "attn.in_proj_weight", "attn.out_proj.weight"), (True, "qkv.weight", "out.weight")],
    ids=["of torch", "of one's own"],
)
def test_heads_that_nothing_reads_go(
    make_context: MakeContext, own: bool, makes: str, reads: str
) -> None:
    model = Attention(own)
    model.get_parameter(reads)[:, 2:4] = 0
    smaller, _, counts = removed(model, make_context, 5, 4)
    assert counts["dead"] == 1
    assert smaller.get_parameter(makes).shape == (18, 8)


@torch.no_grad()
def test_units_that_something_besides_weights_reads_stay(make_context: MakeContext) -> None:
    class Summed(Recurrent):
        def forward(self, x: Tensor) -> Tensor:
            states = self.rnn(x)[0].mean(1)
            logits: Tensor = self.fc(states)
            total: Tensor = logits + states.sum(1, keepdim=True)
            return total

    model = Summed("gru")
    unread_(model, 2)
    _, ctx, counts = removed(model, make_context, 5, 4)
    assert counts["dead"] == 0
    (skipped,) = [fact for fact in ctx.facts if fact.name == "skipped"]
    assert "something else than the weights of the next layers reads" in (skipped.reason or "")


def test_that_nothing_was_found_is_said_with_the_reason(make_context: MakeContext) -> None:
    class Viewed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(256, 3)

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.fc(self.conv(x).view(-1, 256))
            return logits

    _, ctx, counts = removed(Viewed(), make_context, 1, 8, 8)
    assert sum(counts.values()) == 0
    (fact,) = [fact for fact in ctx.facts if fact.name == "removed_parameters"]
    assert "no unit is dead, constant, or equal" in (fact.reason or "")
    (skipped,) = [fact for fact in ctx.facts if fact.name == "skipped"]
    assert skipped.value == "conv"
    assert "written as the number 256" in (skipped.reason or "")
