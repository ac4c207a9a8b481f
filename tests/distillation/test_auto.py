"""`auto`: a weight and temperatures chosen on `val`, by trials before the training."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from jsonschema import Draft202012Validator
from torch import Tensor, nn
from typer.testing import CliRunner

from overhaul.cli._app import app
from overhaul.core import (
    Batch,
    CheckpointFolder,
    Context,
    Fact,
    Network,
    NonFiniteLossError,
    Progress,
    SpecError,
    json_schema,
    model_fingerprint,
    model_tensors,
)
from overhaul.distillation import (
    CorrelationTargets,
    DecoupledTargets,
    Distill,
    DistillInto,
    Mutual,
    Peer,
    SoftTargets,
)
from overhaul.pruning import PruneChannels
from overhaul.quantization import Quantize
from overhaul.report import read_rows, step_table
from overhaul.running import Recipe
from overhaul.tasks import Regression
from overhaul.tasks._sealed import Sealed
from overhaul.testing import TinyCNN, check_step, tiny_cnn, tiny_task
from overhaul.training import (
    SGD,
    AdamW,
    BoundObjective,
    EarlyStop,
    Flip,
    Objective,
    OpenSetting,
    TaskLoss,
    Train,
)
from tests.distillation.killing import KilledError, Killing

MakeContext = Callable[..., Context]
AUTO = Distill(weight="auto", match=[SoftTargets(temperature="auto")])
SMALL = Network(factory="overhaul.testing:TinyCNN", arguments={"width": 2})


def plan_of(objective: Objective, **how: Any) -> Train:
    return Train(**{"epochs": 3, "batch_size": 16, "objective": objective, **how})


def facts_named(facts: list[Fact], name: str) -> list[Fact]:
    return [fact for fact in facts if fact.name == name]


def choices(facts: list[Fact]) -> dict[str, Any]:
    return {fact.detail["setting"]: fact.value for fact in facts_named(facts, "setting_chosen")}


def same(left: nn.Module, right: nn.Module) -> bool:
    one, two = model_tensors(left), model_tensors(right)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def trained_teacher(make_context: MakeContext) -> TinyCNN:
    teacher = tiny_cnn()
    ctx = make_context(teacher)
    ctx.checkpoints._path = ctx.checkpoints._path / "teacher"
    Train(epochs=10, batch_size=8, optimizer=AdamW(lr=1e-2)).apply(teacher, ctx)
    return teacher


def test_each_value_is_tried_once_and_has_a_fact(make_context: MakeContext) -> None:
    ctx = make_context(tiny_cnn())
    plan_of(AUTO).apply(tiny_cnn(width=3), ctx)
    trials = facts_named(ctx.facts, "trial_quality")
    tried = [(f.detail["soft_targets.temperature"], f.detail["weight"]) for f in trials]
    best = choices(ctx.facts)["soft_targets.temperature"]
    temperatures = [(1.0, 0.5), (2.0, 0.5), (4.0, 0.5), (8.0, 0.5)]
    assert tried == [*temperatures, (best, 0.0), (best, 0.25), (best, 0.9)]
    for fact in trials:
        assert (fact.split, fact.n, fact.detail["metric"]) == ("val", 24, "accuracy")
    assert list(choices(ctx.facts)) == ["soft_targets.temperature", "weight"]


def test_the_best_on_val_is_chosen_and_of_equals_the_first(make_context: MakeContext) -> None:
    ctx = make_context(tiny_cnn())
    plan_of(AUTO, epochs=1, optimizer=SGD(lr=1e-12)).apply(tiny_cnn(width=3), ctx)
    assert choices(ctx.facts) == {"soft_targets.temperature": 1.0, "weight": 0.0}
    ctx = make_context(tiny_cnn(), checkpoints=CheckpointFolder(ctx.checkpoints.path / "more"))
    plan_of(_Open(), epochs=1, optimizer=SGD(lr=0.5)).apply(tiny_cnn(), ctx)
    trials = {f.detail["rate"]: f.value for f in facts_named(ctx.facts, "trial_quality")}
    assert trials[1.0] == max(float(value or 0) for value in trials.values())
    assert trials[1.0] != trials[0.0]
    assert choices(ctx.facts) == {"rate": 1.0}


class _Open(Objective):
    """A loss of which any part may be taken; without it nothing is learned.

    Example:
        >>> _Open()
        _Open()
    """

    rate: float = -1.0

    @property
    def open_settings(self) -> tuple[OpenSetting, ...]:
        return (OpenSetting("rate", (0.0, 1.0), 0.0),) if self.rate < 0 else ()

    def settled(self, values: Any) -> Objective:
        return self.model_copy(update=values)

    def bind(self, model: nn.Module, ctx: Context) -> BoundObjective:
        return _Scaled(self.rate, TaskLoss().bind(model, ctx))


class _Overflowing(_Open):
    """Some of its values are so large that the loss is infinite.

    Example:
        >>> _Overflowing()
        _Overflowing()
    """

    values: tuple[float, ...] = (1e39, 1.0, 1e38)

    @property
    def open_settings(self) -> tuple[OpenSetting, ...]:
        return (OpenSetting("rate", self.values, self.values[0]),) if self.rate < 0 else ()


def test_a_value_with_an_infinite_loss_is_worse_than_all_others(make_context: MakeContext) -> None:
    ctx = make_context(tiny_cnn())
    model = plan_of(_Overflowing(), optimizer=SGD(lr=0.1)).apply(tiny_cnn(), ctx)
    assert choices(ctx.facts) == {"rate": 1.0}
    assert all(bool(tensor.isfinite().all()) for tensor in model_tensors(model).values())
    first, second, *_ = facts_named(ctx.facts, "trial_quality")
    assert first.value is None
    assert first.reason == "the loss of its training became infinite or no number"
    assert isinstance(second.value, float)
    (chosen,) = facts_named(ctx.facts, "setting_chosen")
    assert "not finite with 1e+39, " in str(chosen.reason)


def test_where_every_value_has_an_infinite_loss_the_training_says_so(
    make_context: MakeContext,
) -> None:
    with pytest.raises(NonFiniteLossError, match="the loss became inf at batch 0"):
        plan_of(_Overflowing(values=(1e39, 2e39))).apply(tiny_cnn(), make_context(tiny_cnn()))


class _Scaled(BoundObjective):
    def __init__(self, rate: float, inner: BoundObjective) -> None:
        super().__init__()
        self.rate, self.inner = rate, inner

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = self.inner(model, batch)
        return {name: self.rate * loss for name, loss in losses.items()}


def test_a_lower_metric_may_be_the_better_one(make_context: MakeContext) -> None:
    images = torch.rand(40, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    values = images.mean((1, 2, 3))[:, None]
    data = {"train": (images, values), "val": (images + 1, values), "test": (images + 2, values)}
    task = Regression(metric="mae", **data)
    assert not task.higher_is_better
    ctx = make_context(nn.Identity(), task=task)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    plan_of(_Open(), optimizer=SGD(lr=0.01)).apply(model, ctx)
    trials = {f.detail["rate"]: f.value for f in facts_named(ctx.facts, "trial_quality")}
    [chosen] = choices(ctx.facts).values()
    assert trials[chosen] == min(float(value or 0) for value in trials.values())
    assert len(set(trials.values())) == 2


@pytest.mark.parametrize("width", [3, 6])
def test_trials_leave_no_trace_in_the_training(
    make_context: MakeContext, tmp_path: Path, width: int
) -> None:
    """It ends with the weights of a training with the chosen values, bit for bit."""
    student = tiny_cnn(width=width)
    how = {"augmentations": [Flip()], "keep": "last", "epochs": 4}
    ctx = make_context(tiny_cnn())
    chosen = plan_of(AUTO, **how).apply(student, ctx)
    found = choices(ctx.facts)
    by_hand = Distill(
        weight=found["weight"],
        match=[SoftTargets(temperature=found["soft_targets.temperature"])],
    )
    other = make_context(tiny_cnn(), checkpoints=CheckpointFolder(tmp_path / "by hand"))
    given = plan_of(by_hand, **how).apply(tiny_cnn(width=width), other)
    assert same(chosen, given)
    epochs = [fact for fact in ctx.facts if "epoch" in fact.detail and fact.reproducible]
    assert epochs == [fact for fact in other.facts if "epoch" in fact.detail and fact.reproducible]


def test_every_trial_starts_from_the_state_of_the_training_and_leaves_it(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    student = tiny_cnn(width=3)
    for module in student.modules():
        module.training = False
    before, starts, seen = model_fingerprint(student), [], []
    bind = Distill.bind

    def watched(self: Distill, model: nn.Module, ctx: Context) -> BoundObjective:
        starts.append(model_fingerprint(model))
        seen.append((model is student, model_fingerprint(student), ctx.seed, self.weight))
        return bind(self, model, ctx)

    monkeypatch.setattr(Distill, "bind", watched)
    ctx = make_context(tiny_cnn())
    trained = plan_of(Distill(weight="auto")).apply(student, ctx)
    assert set(starts) == {before}
    assert {fingerprint for _, fingerprint, _, _ in seen} == {before}
    assert [is_own for is_own, _, _, _ in seen[:3]] == [False] * 3
    assert len({seed for _, _, seed, _ in seen[:3]}) == 1  # all trials see the same batches
    assert seen[0][2] != ctx.seed
    assert not trained.training
    assert [f.detail["epoch"] for f in facts_named(ctx.facts, "train_loss")] == [1, 2, 3]


def test_test_is_never_opened_by_a_choice(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opens(self: Sealed) -> None:
        raise AssertionError("test was opened")

    monkeypatch.setattr(Sealed, "open", opens)
    ctx = make_context(tiny_cnn())
    with pytest.raises(AssertionError, match="test was opened"):
        ctx.data.test.open()
    plan_of(AUTO).apply(tiny_cnn(width=3), ctx)
    assert len(choices(ctx.facts)) == 2


def test_a_run_opens_it_once_and_shows_the_choice(tmp_path: Path) -> None:
    recipe = Recipe(DistillInto(student=SMALL, train=plan_of(AUTO, optimizer=SGD(lr=1e-12))))
    runs = [
        recipe.run(
            tiny_cnn(), tiny_task(), out=tmp_path / name, cost=False, progress=Progress(quiet=True)
        )
        for name in ("one", "two")
    ]
    assert runs[0].folder.manifest()["test_opened"] == 1
    assert runs[0].verdict.control is not None
    one, two = ([f for f in run.facts if f.reproducible] for run in runs)
    assert one == two  # the same seed chooses the same
    assert same(runs[0].model, runs[1].model)
    [weight] = [f for f in one if f.detail.get("setting") == "weight"]
    assert weight.subject == "0 distill_into, student 1"
    assert "the teacher was found not to help on val" in str(weight.reason)
    page = runs[0].report().read_text("utf-8")
    body = page.partition("Every measurement")[0]  # not only in the list of everything
    assert "the teacher was found not to help on val" in body
    assert "trial quality" in body
    assert "stage quality" in body
    assert {row.subject for row in read_rows(one)} == {
        *("original", "0 distill_into", "final", "control"),
    }
    assert step_table(one).row_count == 4


def test_a_useless_teacher_gets_little_or_nothing(make_context: MakeContext) -> None:
    torch.manual_seed(5)
    ctx = make_context(TinyCNN())  # it was never trained
    how = {"epochs": 20, "batch_size": 8, "optimizer": AdamW(lr=1e-2)}
    plan_of(Distill(weight="auto"), **how).apply(tiny_cnn(width=3), ctx)
    trials = {
        f.detail["weight"]: float(f.value or 0) for f in facts_named(ctx.facts, "trial_quality")
    }
    assert trials[0.0] > trials[0.9] + 0.1
    assert choices(ctx.facts)["weight"] in (0.0, 0.25)


def test_a_teacher_that_knows_more_gets_a_share(make_context: MakeContext) -> None:
    """The labels of the training data are wrong, and the teacher knows the right ones."""
    teacher = trained_teacher(make_context)
    task = tiny_task()
    images, labels = task.train
    shuffled = labels[torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))]
    ctx = make_context(teacher, task=task.model_copy(update={"train": (images, shuffled)}))
    how = {"epochs": 20, "batch_size": 8, "optimizer": AdamW(lr=1e-2)}
    plan_of(Distill(weight="auto"), **how).apply(tiny_cnn(width=3), ctx)
    assert choices(ctx.facts)["weight"] == 0.9
    [fact] = facts_named(ctx.facts, "setting_chosen")
    assert "not to help" not in str(fact.reason)


def digits_net() -> nn.Module:
    return TinyCNN(classes=10)


def test_the_command_runs_it_and_its_schema_knows_it(tmp_path: Path) -> None:
    recipe = {
        "model": "tests.distillation.test_auto:digits_net",
        "task": {"classification": {"data": "digits"}},
        "steps": [plan_of(AUTO, epochs=1, batch_size=256).to_data()],
    }
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    command = CliRunner()
    schema = json.loads(command.invoke(app, ["schema"]).stdout)
    assert Draft202012Validator(schema).is_valid(recipe)
    where = ["-o", str(tmp_path / "run"), "--no-cost", "--quiet"]
    ran = command.invoke(app, ["run", str(tmp_path / "recipe.json"), *where])
    assert ran.exit_code == 0, ran.output
    shown = " ".join(command.invoke(app, ["show", str(tmp_path / "run")]).stdout.split())
    assert "soft_targets.temperature" in shown
    assert "chosen on val: " in shown
    assert "shown against the control" in shown
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["test_opened"] == 1


def test_it_goes_with_training_under_a_rounding(make_context: MakeContext) -> None:
    """There a constraint is at work in the trials, on copies that it has to let go."""
    ctx = make_context(tiny_cnn())
    step = Quantize(weights="int8", training=plan_of(Distill(weight="auto"), epochs=1))
    step.apply(tiny_cnn(), ctx)
    assert list(choices(ctx.facts)) == ["weight"]
    control = step.control()
    assert isinstance(control, Train)
    assert control.epochs == 5


@pytest.mark.parametrize("after", [1, 2, 3, 9, 14, 15, 16, 19])
def test_a_killed_run_goes_on_bit_for_bit(
    make_context: MakeContext, tmp_path: Path, after: int
) -> None:
    """Saved are an epoch of each of 7 trials, its quality after it, and 3 epochs, in this order."""
    plan = plan_of(AUTO, augmentations=[Flip()], optimizer=AdamW(lr=1e-2))

    def run(folder: str) -> tuple[nn.Module, list[Fact]]:
        ctx = make_context(tiny_cnn(), checkpoints=CheckpointFolder(tmp_path / folder))
        model = plan.apply(tiny_cnn(width=3), ctx)
        return model, [fact for fact in ctx.facts if fact.reproducible]

    whole, facts = run("whole")
    killing = Killing(after)
    with killing.armed():
        if after <= 17:
            with pytest.raises(KilledError):
                run("parts")
        else:
            run("parts")
    saved_before = killing.saved
    with killing.armed():
        resumed, again = run("parts")
    assert same(whole, resumed)
    assert again == facts
    assert killing.saved == max(17, saved_before)  # nothing is done twice


@pytest.mark.parametrize(
    ("objective", "trials"),
    [
        (Distill(), 0),
        (Distill(weight="auto"), 4),
        (Distill(match=[SoftTargets(temperature="auto")]), 4),
        (AUTO, 7),
        (
            Distill(
                weight="auto",
                match=[SoftTargets(temperature="auto"), CorrelationTargets(temperature="auto")],
            ),
            10,
        ),
        (Mutual(peers=[SMALL], temperature="auto"), 4),
    ],
)
@pytest.mark.parametrize("epochs", [1, 11])
def test_the_control_gets_the_epochs_of_the_trials(
    make_context: MakeContext, objective: Objective, trials: int, epochs: int
) -> None:
    plan = plan_of(objective, epochs=epochs)
    per_trial = {1: 1, 11: 2}[epochs]
    assert plan.control() == plan_of(TaskLoss(), epochs=epochs + trials * per_trial)
    if epochs == 1:
        ctx = make_context(tiny_cnn())
        plan.apply(tiny_cnn(width=3), ctx)
        assert len(facts_named(ctx.facts, "trial_quality")) == trials


def test_so_does_the_control_of_steps_that_train_several_times() -> None:
    train = plan_of(AUTO)
    into = DistillInto(student=SMALL, assistants=(SMALL,), generations=2, train=train)
    control = into.control()
    assert isinstance(control, DistillInto)
    assert control.train.epochs == 3 * (3 + 7)
    rounds = PruneChannels(macs=0.5, rounds=3, between=train).control()
    assert isinstance(rounds, Train)
    assert rounds.epochs == 2 * (3 + 7)


def test_trials_are_short_and_watched_by_nobody(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans = []
    apply = Train.apply

    def watched(self: Train, model: nn.Module, ctx: Context) -> nn.Module:
        plans.append(self)
        return apply(self, model, ctx)

    monkeypatch.setattr(Train, "apply", watched)
    plan = plan_of(Distill(weight="auto"), epochs=11, observers=[EarlyStop(patience=9)])
    plan.apply(tiny_cnn(width=3), make_context(tiny_cnn()))
    assert plans[0] == plan
    assert [each.epochs for each in plans[1:]] == [2] * 4
    assert {each.observers for each in plans[1:]} == {()}
    assert {each.keep for each in plans[1:]} == {"last"}
    assert [each.objective for each in plans[1:]] == [
        TaskLoss(),
        *(Distill(weight=weight) for weight in (0.25, 0.5, 0.9)),
    ]


@pytest.mark.parametrize("student", [SMALL, PruneChannels(fraction=0.5)])
def test_each_network_of_distill_into_chooses_for_itself(
    make_context: MakeContext, student: Any
) -> None:
    plan = DistillInto(student=student, generations=2, train=plan_of(Distill(weight="auto")))
    ctx = make_context(tiny_cnn())
    plan.apply(tiny_cnn(), ctx)
    subjects = [fact.subject for fact in facts_named(ctx.facts, "setting_chosen")]
    assert subjects == ["0 step, student 1", "0 step, student 2"]
    assert len(facts_named(ctx.facts, "trial_quality")) == 8


@pytest.mark.parametrize(
    "match",
    [SoftTargets, DecoupledTargets, CorrelationTargets],
)
def test_every_match_with_a_temperature_leaves_it_open(
    make_context: MakeContext, match: type[SoftTargets]
) -> None:
    plan = plan_of(Distill(match=[match(temperature="auto")]), epochs=1)
    ctx = make_context(tiny_cnn())
    plan.apply(tiny_cnn(width=3), ctx)
    [(setting, chosen)] = choices(ctx.facts).items()
    assert setting == f"{match.spec_name()}.temperature"
    assert chosen in (1.0, 2.0, 4.0, 8.0)


def test_two_matches_of_one_kind_are_told_apart() -> None:
    open_ = SoftTargets(temperature="auto")
    plan = Distill(match=[open_, SoftTargets(temperature=3.0), open_])
    first, second = (setting.name for setting in plan.open_settings)
    settled = plan.settled({first: 1.0, second: 8.0})
    assert settled == Distill(match=[SoftTargets(temperature=t) for t in (1.0, 3.0, 8.0)])


def test_peers_learn_with_a_temperature_of_their_choice(make_context: MakeContext) -> None:
    ctx = make_context(tiny_cnn())
    objective = Mutual(peers=[Peer(network=SMALL, optimizer=SGD(lr=0.01))], temperature="auto")
    plan_of(objective).apply(tiny_cnn(), ctx)
    assert list(choices(ctx.facts)) == ["temperature"]


def test_it_keeps_the_contract_and_goes_through_a_recipe_file() -> None:
    plan = plan_of(AUTO, epochs=1)
    check_step(plan)
    text = "train:\n  epochs: 1\n  batch_size: 16\n  objective:\n    distill:\n      weight: auto\n"
    text += "      match:\n      - soft_targets: {temperature: auto}\n"
    assert Train.from_yaml(text) == plan
    assert Train.from_yaml(plan.to_yaml()) == plan
    assert eval(repr(plan)) == plan
    definitions = json_schema(Train)["$defs"]
    for name, field in (("Distill", "weight"), ("SoftTargets", "temperature")):
        forms = definitions[name]["properties"][field]["anyOf"]
        assert {"const": "auto", "type": "string"} in forms


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (
            "distill: {weight: atuo}",
            "`weight` of distill must be a number or must be 'auto', got 'a",
        ),
        ("distill: {weight: 1.5}", "must be less than or equal to 1 or must be 'auto', got 1.5"),
        (
            "distill: {match: [soft_targets: {temperature: 0}]}",
            "`temperature` of soft_targets must be greater than 0 or must be 'auto', got 0",
        ),
        (
            "distill: {weight: 0, match: [soft_targets: {temperature: auto}]}",
            "a temperature is 'auto' and `weight` is 0, so that none makes a difference",
        ),
    ],
)
def test_errors_are_in_words(text: str, error: str) -> None:
    with pytest.raises(SpecError, match=error):
        Distill.from_yaml(text)


def test_what_no_train_has_chosen_is_refused(make_context: MakeContext) -> None:
    for objective in (
        Distill(weight="auto"),
        Distill(match=[SoftTargets(temperature="auto")]),
        Mutual(peers=[SMALL], temperature="auto"),
    ):
        with pytest.raises(SpecError, match="is 'auto', which `Train` replaces"):
            objective.bind(tiny_cnn(), make_context(tiny_cnn()))


def test_values_have_no_temperature_to_choose() -> None:
    images, values = torch.randn(12, 1, 8, 8), torch.randn(12, 1)
    task = Regression(train=(images, values), val=(images + 1, values), test=(images + 2, values))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with pytest.raises(SpecError, match="'auto', and plain values have none"):
        AUTO.preflight(model, task, task.prepare())
