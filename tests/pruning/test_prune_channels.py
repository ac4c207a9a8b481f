"""`PruneChannels`: targets, criteria, scopes, repairs, rounds, and what it refuses."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import CheckpointFolder, Context, ModelError, Progress, SpecError
from overhaul.evaluation import count_macs
from overhaul.pruning import (
    Activation,
    BatchNormScale,
    BiasCompensation,
    Criterion,
    Fisher,
    GeometricMedian,
    LeastSquares,
    Magnitude,
    PruneByTrial,
    PruneChannels,
    Random,
    Taylor,
)
from overhaul.running import Recipe, load_model
from overhaul.tasks import Classification
from overhaul.testing import check_step, tiny_cnn, tiny_task
from overhaul.training import Train


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 12, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(48, 16),
        nn.ReLU(),
        nn.Linear(16, 3),
    )


def context(tmp_path: Path, model: nn.Module, task: Classification | None = None) -> Context:
    task = task or tiny_task()
    return Context(
        task=task,
        data=task.prepare(),
        original=model,
        checkpoints=CheckpointFolder(tmp_path / "checkpoints"),
        artifact_folder=tmp_path / "artifact",
        progress=Progress(quiet=True),
    )


def values(ctx: Context, name: str) -> list[Any]:
    return [fact.value for fact in ctx.facts if fact.name == name]


@pytest.mark.parametrize("scope", ["layer", "global", "normalized"])
def test_the_macs_that_stay_are_at_most_those_asked_for(tmp_path: Path, scope: Any) -> None:
    model = net()
    ctx = context(tmp_path, model)
    batch = next(ctx.data.train.in_order(2))
    before = count_macs(model, batch).per_sample
    step = PruneChannels(macs=0.5, scope=scope)
    after = count_macs(step.apply(model, ctx), batch).per_sample
    (kept,) = values(ctx, "kept_macs")
    assert kept == pytest.approx(after / before, rel=1e-3)
    assert 0.3 < kept <= 0.5
    assert values(ctx, "removal_error")[0] < 1e-8


def test_the_parameters_that_stay_are_at_most_those_asked_for(tmp_path: Path) -> None:
    model = net()
    before = sum(p.numel() for p in model.parameters())
    ctx = context(tmp_path, model)
    after = sum(p.numel() for p in PruneChannels(params=0.4).apply(model, ctx).parameters())
    assert values(ctx, "kept_parameters") == [after / before]
    assert after <= 0.4 * before


def test_a_fraction_goes_of_every_group(tmp_path: Path) -> None:
    ctx = context(tmp_path, net())
    model = PruneChannels(fraction=0.25).apply(net(), ctx)
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters() if p.ndim > 1}
    assert shapes == {
        "0.weight": (6, 1, 3, 3),
        "3.weight": (9, 6, 3, 3),
        "7.weight": (12, 36),
        "9.weight": (3, 12),
    }


def test_rounding_keeps_multiples(tmp_path: Path) -> None:
    ctx = context(tmp_path, net())
    model = PruneChannels(fraction=0.6, multiple=4).apply(net(), ctx)
    assert [m.get_parameter("weight").shape[0] for m in (model.get_submodule("0"),)] == [4]
    assert model.get_parameter("3.weight").shape[0] == 8
    assert model.get_parameter("7.weight").shape[0] == 8


def test_measured_targets_leave_a_table(tmp_path: Path) -> None:
    ctx = context(tmp_path, net())
    model = PruneChannels(latency_ms=1000.0).apply(net(), ctx)
    assert model.get_parameter("0.weight").shape[0] == 8
    assert values(ctx, "removed_units") == [0]
    with pytest.raises(ModelError, match=r"and 0\.0001 ms was asked for"):
        PruneChannels(latency_ms=0.0001).apply(net(), ctx)
    ctx.facts.clear()
    PruneChannels(macs=0.5, multiple="measured").apply(net(), ctx)
    (chosen,) = [fact for fact in ctx.facts if fact.name == "multiple"]
    assert str(chosen.value) in chosen.detail


@pytest.mark.parametrize(
    "criterion",
    [
        Magnitude(),
        Magnitude(p=1),
        Taylor(batches=2),
        Fisher(samples=4),
        Activation(batches=2),
        Activation(of="nonzero", batches=2),
        GeometricMedian(),
    ],
    ids=repr,
)
def test_every_criterion_finds_the_dead_channel(tmp_path: Path, criterion: Criterion) -> None:
    model = net()
    with torch.no_grad():
        model.get_parameter("3.weight")[5] = 0
        model.get_parameter("3.bias")[5] = 0
        model.get_parameter("7.weight").view(16, 12, 4)[:, 5] = 0
        if isinstance(criterion, GeometricMedian):  # in the middle of the others, not at zero
            others = [i for i in range(12) if i != 5]
            model.get_parameter("3.weight")[5] = model.get_parameter("3.weight")[others].mean(0)
    ctx = context(tmp_path, model)
    kept = model.get_parameter("3.bias")[[i for i in range(12) if i != 5]].detach().clone()
    PruneChannels(fraction=0.1, layers=("3",), exclude=("0",), criterion=criterion).apply(
        model, ctx
    )
    assert torch.equal(model.get_parameter("3.bias"), kept)


def test_batch_norm_scale_prunes_what_has_a_batch_norm(tmp_path: Path) -> None:
    model = net()
    with torch.no_grad():
        model.get_parameter("1.weight").copy_(torch.arange(8).float() + 1)
    ctx = context(tmp_path, model)
    PruneChannels(fraction=0.5, criterion=BatchNormScale()).apply(model, ctx)
    assert model.get_parameter("1.weight").tolist() == [5, 6, 7, 8]
    assert sorted(values(ctx, "skipped")) == ["3", "7"]


def test_random_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    step = PruneChannels(fraction=0.5, criterion=Random())
    one, other = (step.apply(net(), context(tmp_path, net())) for _ in range(2))
    assert torch.equal(one.get_parameter("3.weight"), other.get_parameter("3.weight"))


def test_taylor_is_the_change_of_the_loss_to_first_order(tmp_path: Path) -> None:
    from overhaul.graph import Graph

    model = net()
    ctx = context(tmp_path, model)
    batch = next(ctx.data.train.in_order(len(ctx.data.train)))
    assert isinstance(batch.inputs, tuple)
    graph = Graph(model, batch.inputs)
    scores = Taylor(batches=1, batch_size=len(ctx.data.train)).scores(graph, model, ctx)["7"]
    model.eval()
    loss = ctx.task.loss(model(*batch.inputs), batch.targets).item()
    small = 1e-3
    weight = model.get_parameter("9.weight")
    for unit in range(16):
        before = weight[:, unit].detach().clone()
        with torch.no_grad():
            weight[:, unit] *= 1 - small
            change = ctx.task.loss(model(*batch.inputs), batch.targets).item() - loss
            weight[:, unit] = before
        assert abs(change) / small == pytest.approx(scores[unit], abs=5e-3)


@pytest.mark.parametrize("repair", [BiasCompensation(), LeastSquares()], ids=repr)
def test_a_repair_brings_the_outputs_nearer(tmp_path: Path, repair: Any) -> None:
    errors = {}
    for name, used in (("plain", None), ("repaired", repair)):
        model = net()
        ctx = context(tmp_path, model)
        batch = next(ctx.data.train.in_order(len(ctx.data.train)))
        wanted = model.eval()(*batch.inputs).detach()
        step = PruneChannels(fraction=0.25, layers=("7",), criterion=Random(), repair=used)
        smaller = step.apply(model, ctx).eval()
        errors[name] = float((smaller(*batch.inputs).detach() - wanted).square().mean())
    assert errors["repaired"] < 0.7 * errors["plain"]


def test_least_squares_is_exact_where_the_removed_is_a_sum_of_the_kept(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Linear(5, 3))
    with torch.no_grad():
        for name in ("1.weight", "1.bias"):
            rows = model.get_parameter(name)
            rows[4] = 0.5 * rows[0] - 0.25 * rows[1]
    ctx = context(tmp_path, model)
    batch = next(ctx.data.train.in_order(8))
    wanted = model(*batch.inputs).detach()
    step = PruneChannels(fraction=0.2, criterion=Smallest(), repair=LeastSquares(ridge=1e-9))
    smaller = step.apply(model, ctx)
    assert smaller.get_parameter("1.weight").shape[0] == 4
    torch.testing.assert_close(smaller(*batch.inputs), wanted, atol=1e-3, rtol=1e-3)


class Smallest(Criterion):
    """The last unit is worth least."""

    def scores(self, graph: Any, model: nn.Module, ctx: Context) -> dict[str, Any]:
        """Count down."""
        return {g.name: -torch.arange(g.units).double().numpy() for g in graph.groups}


def test_rounds_train_in_between_and_reach_the_same_target(tmp_path: Path) -> None:
    step = PruneChannels(macs=0.4, rounds=2, between=Train(epochs=1))
    ctx = context(tmp_path, net())
    step.apply(net(), ctx)
    kept = values(ctx, "kept_macs")
    assert len(kept) == 2
    assert 0.5 < kept[0] <= 0.7
    assert 0.25 < kept[1] <= 0.4
    assert len(values(ctx, "train_loss")) == 1
    assert step.control() == Train(epochs=1)
    assert PruneChannels(macs=0.5).control() is None


def test_a_pruned_model_is_rebuilt_from_the_class_and_the_edits(tmp_path: Path) -> None:
    recipe = Recipe(PruneChannels(macs=0.5), Train(epochs=1))
    run = recipe.run(
        tiny_cnn(), tiny_task(), out=tmp_path / "run", cost=False, progress=Progress(quiet=True)
    )
    again = load_model(tmp_path / "run", tiny_cnn())
    inputs = torch.rand(2, 1, 8, 8)
    assert torch.equal(again.eval()(inputs), run.model.eval()(inputs))
    assert type(run.model) is type(tiny_cnn())
    assert run.model.get_parameter("conv.weight").shape[0] < 6


def test_hidden_units_of_an_lstm_go_alone_when_asked(tmp_path: Path) -> None:
    class Rows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = nn.LSTM(8, 10, batch_first=True)
            self.middle = nn.Linear(10, 6)
            self.head = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.relu(self.middle(self.lstm(x.squeeze(1))[0][:, -1])))
            return out

    ctx = context(tmp_path, Rows())
    model = PruneChannels(fraction=0.5, kinds=("units",)).apply(Rows(), ctx)
    assert model.get_parameter("lstm.weight_hh_l0").shape == (20, 5)
    assert model.get_parameter("middle.weight").shape == (6, 5)
    check_step(PruneChannels(fraction=0.5), model=Rows())


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({}, "exactly one of"),
        ({"macs": 0.5, "params": 0.5}, "macs and params"),
        ({"macs": 1.2}, "fraction that is kept"),
        ({"macs": 0.5, "rounds": 2}, r"belong together, and only one .*`between: {train: {epochs"),
        ({"fraction": 0.95}, r"`fraction` must not be above `most`.* got 0.95 and 0.9. Write"),
        ({"fraction": 0.6, "most": 0.5, "scope": "global"}, r"got 0.6 and 0.5"),
        ({"macs": 0.5, "multiple": 0}, "`multiple` must be at least 1"),
        ({"macs": 0.5, "kinds": ()}, "`kinds` is empty"),
        ({"macs": 0.5, "criterion": "taylr"}, "taylor"),
    ],
)
def test_wrong_fields_are_refused(fields: dict[str, Any], match: str) -> None:
    with pytest.raises(SpecError, match=match):
        PruneChannels(**fields)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"macs": 0.5, "exclude": ("nowhere",)}, "`exclude` 'nowhere' matches nothing"),
        ({"macs": 0.5, "layers": ("nowhere",)}, "`layers` 'nowhere' matches nothing"),
        (
            {"macs": 0.5, "exclude": ("0", "3", "7", "9")},
            r"no group is left to prune: of 3 groups \(3 of channels\), `exclude` \(0, 3, 7, 9\) "
            "leaves none",
        ),
        (
            {"macs": 0.5, "layers": ("0",), "exclude": ("3",)},
            r"of 3 .*, `layers` \(0\) leaves 1 group \(1 of channels\), `exclude` \(3\) leaves",
        ),
        (
            {"macs": 0.5, "layers": ("7",), "criterion": BatchNormScale()},
            r"of 2 groups .*, BatchNormScale has nothing to judge one by. Take another `criterion`",
        ),
        (
            {"macs": 0.5, "multiple": 64},
            r"keeps at least 1.000 .* `multiple` \(64\) that is in the",
        ),
        ({"latency_ms": 1e-6}, r"takes 0\.[0-9]+ ms .* and 1e-06 ms was asked for"),
        ({"macs": 0.001}, "keeps at least"),
        ({"macs": 0.5, "kinds": ("heads",)}, r"`kinds` \(heads\) leaves none"),
    ],
)
def test_what_cannot_be_done_is_refused_before_anything_changes(
    tmp_path: Path, fields: dict[str, Any], match: str
) -> None:
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError, match=match):
        PruneChannels(**fields).apply(model, context(tmp_path, model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_failed_proof_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from overhaul.pruning import _prune_channels

    def fail(*_: Any) -> float:
        raise ModelError("the smaller model would compute something else")

    monkeypatch.setattr(_prune_channels, "check_removal", fail)
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelError, match="something else"):
        PruneChannels(macs=0.5, repair=BiasCompensation()).apply(model, context(tmp_path, model))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_the_config_of_a_transformer_follows_and_is_an_edit(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    from overhaul.graph import ConfigSizes

    config = transformers.ViTConfig(
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        image_size=8,
        patch_size=4,
        num_channels=1,
        num_labels=3,
    )
    torch.manual_seed(0)
    model: Any = transformers.ViTForImageClassification(config)
    ctx = context(tmp_path, model)
    step = PruneChannels(fraction=0.5, exclude=("vit.embeddings", "*.attention"))
    smaller: Any = step.apply(model, ctx)
    assert ConfigSizes(sizes={"intermediate_size": 16}) in ctx.edits
    smaller.save_pretrained(tmp_path / "saved")
    again = type(smaller).from_pretrained(tmp_path / "saved").eval()
    inputs = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(again(inputs).logits, smaller.eval()(inputs).logits)


def test_a_model_that_names_float32_is_pruned(tmp_path: Path) -> None:
    class Single(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = net()

        def forward(self, x: Tensor) -> Tensor:
            logits: Tensor = self.body(x.float())
            return logits

    model = Single()
    ctx = context(tmp_path, model)
    smaller = PruneChannels(macs=0.5).apply(model, ctx)
    assert values(ctx, "kept_macs")[0] <= 0.5
    assert 0 < values(ctx, "removal_error")[0] < 1e-4
    assert smaller(torch.rand(5, 1, 8, 8)).shape == (5, 3)


@pytest.mark.parametrize("target", [{"fraction": 0.5}, {"params": 0.5}])
@pytest.mark.parametrize("scope", ["layer", "global"])
def test_most_holds_over_all_rounds(tmp_path: Path, target: dict[str, Any], scope: Any) -> None:
    """Per round, a group of 8 of which half may go would have 2 left after two of them."""
    step = PruneChannels(**target, most=0.5, scope=scope, rounds=3, between=Train(epochs=1))
    smaller = step.apply(net(), context(tmp_path, net()))
    sizes = [len(smaller.get_parameter(f"{layer}.weight")) for layer in (0, 3, 7)]
    assert all(now >= before / 2 for now, before in zip(sizes, (8, 12, 16), strict=True))
    assert sum(sizes) < 36


def test_a_target_that_most_does_not_allow_is_refused_in_the_last_round(tmp_path: Path) -> None:
    step = PruneChannels(params=0.2, most=0.3, rounds=2, between=Train(epochs=1))
    with pytest.raises(
        ModelError, match=r"keeps at least 0\.\d+ of its parameters .* `most` \(0.3"
    ):
        step.apply(net(), context(tmp_path, net()))


def test_a_fraction_of_which_no_unit_is_whole_is_said(tmp_path: Path) -> None:
    ctx = context(tmp_path, net())
    PruneChannels(fraction=0.01).apply(net(), ctx)
    (fact,) = [fact for fact in ctx.facts if fact.name == "removed_units"]
    assert fact.reason == (
        "no group loses a whole unit: `fraction` is 0.01, and the largest group has 16 units"
    )
    ctx = context(tmp_path, net())
    PruneChannels(latency_ms=1e4).apply(net(), ctx)
    (fact,) = [fact for fact in ctx.facts if fact.name == "removed_units"]
    assert fact.reason == "the model meets the target as it is"


class Tables(nn.Module):
    """Two tables of which the columns can go, and one that makes the output."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(5, 8), nn.Embedding(6, 8)
        self.bias = nn.Embedding(5, 3)
        self.fc = nn.Linear(16, 3)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        both = torch.cat([self.user(user), self.item(item)], -1)
        logits: Tensor = self.fc(both) + self.bias(user)
        return logits


def test_a_table_of_which_columns_go_is_not_said_to_be_left(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    data = {
        "user": torch.randint(0, 5, (40,), generator=generator),
        "item": torch.randint(0, 6, (40,), generator=generator),
        "labels": torch.arange(40) % 3,
    }
    task = Classification(train=data)
    ctx = context(tmp_path, Tables(), task)
    smaller = PruneChannels(fraction=0.5).apply(Tables(), ctx)
    assert smaller.get_parameter("fc.weight").shape == (3, 8)
    assert values(ctx, "skipped") == []


class Viewed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.fc = nn.Linear(256, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.conv(x).view(-1, 256))
        return logits


@pytest.mark.parametrize("step", [PruneChannels(macs=0.5), PruneByTrial()])
def test_a_size_in_the_program_is_refused_with_what_to_write(tmp_path: Path, step: Any) -> None:
    with pytest.raises(ModelError, match=r"written as the number 256 .* `x.flatten\(1\)` for") as e:
        step.apply(Viewed(), context(tmp_path, Viewed()))
    assert str(e.value).count("conv(x)") == 1


def test_a_model_of_one_layer_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(ModelError, match=r"What its layers make is the model's output, and noth"):
        PruneChannels(macs=0.5).apply(model, context(tmp_path, model))


def test_a_group_that_stays_is_said_once_in_all_rounds(tmp_path: Path) -> None:
    step = PruneChannels(macs=0.9, criterion=BatchNormScale(), rounds=3, between=Train(epochs=1))
    ctx = context(tmp_path, net())
    step.apply(net(), ctx)
    assert sorted(values(ctx, "skipped")) == ["3", "7"]
