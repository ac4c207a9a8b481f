from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from overhaul.core import (
    CheckpointFolder,
    Context,
    Fact,
    ModelError,
    Network,
    OrderError,
    Progress,
    SpecError,
    Step,
    Trait,
    derived_seed,
    model_fingerprint,
    model_tensors,
    rebuild,
    trainable_names,
)
from overhaul.distillation import (
    DecoupledTargets,
    Distill,
    DistillInto,
    Hints,
    SoftTargets,
    SwapModel,
)
from overhaul.evaluation import predict
from overhaul.pruning import DropLayers, KeepZeros, PruneChannels, PruneWeights
from overhaul.running import Recipe
from overhaul.tasks import Regression
from overhaul.testing import TinyCNN, check_step, tiny_cnn, tiny_residual, tiny_task
from overhaul.training import SGD, AdamW, BoundObjective, Objective, Sum, TaskLoss, Train
from overhaul.transfer import ReplaceHead
from tests.distillation.killing import KilledError, Killing

MakeContext = Callable[..., Context]
TRAITS = frozenset({Trait.EDITABLE, Trait.TRAINABLE, Trait.FITS_TASK})
SMALL = Network(factory="overhaul.testing:TinyCNN", arguments={"width": 2})
MIDDLE = Network(factory="overhaul.testing:TinyCNN", arguments={"width": 4})
SHORT = Train(epochs=1, batch_size=16)


def values(ctx: Context, name: str) -> list[Any]:
    return [fact.value for fact in ctx.facts if fact.name == name]


def stages(ctx: Context) -> list[str]:
    return [fact.detail["stage"] for fact in ctx.facts if fact.name == "stage_quality"]


def same(left: nn.Module, right: nn.Module) -> bool:
    one, two = model_tensors(left), model_tensors(right)
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_network_takes_the_place_and_is_taught_by_the_model(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(deepcopy(model))
    student = DistillInto(student=SMALL, train=SHORT).apply(model, ctx)
    assert isinstance(student, TinyCNN)
    assert student.conv.out_channels == 2
    assert len(ctx.edits) == 1
    assert stages(ctx) == ["teacher", "student 1"]
    rebuilt = rebuild(ctx.original, ctx.edits, model_tensors(student), trainable_names(student))
    assert same(rebuilt, student)


def test_it_is_what_swap_model_and_train_do(make_context: MakeContext, tmp_path: Path) -> None:
    model, ctx = tiny_cnn(), make_context(tiny_cnn())
    train = Train(epochs=2, batch_size=16, optimizer=SGD(lr=0.05), objective=Distill(weight=0.9))
    ours = DistillInto(student=SMALL, train=train).apply(model, ctx)

    inner = replace(ctx, seed=derived_seed(ctx.seed, "student", 1), edits=[], facts=[])
    inner = replace(inner, checkpoints=CheckpointFolder(tmp_path / "by hand"))
    theirs = SwapModel(**dict(SMALL)).apply(tiny_cnn(), inner)
    theirs = train.apply(theirs, inner)
    assert same(ours, theirs)


def test_the_teacher_is_the_model_that_comes_in_and_not_the_original(
    make_context: MakeContext,
) -> None:
    torch.manual_seed(7)
    model, original = TinyCNN(), tiny_cnn()
    before = model_fingerprint(model)
    seen = _teachers_of(DistillInto(student=SMALL, train=SHORT), model, make_context(original))
    assert seen == [before]
    assert model_fingerprint(model) == before


_SEEN: list[str] = []


class _Witness(Distill):
    """Notes its teacher.

    Example:
        >>> _Witness()
        _Witness()
    """

    def bind(self, model: nn.Module, ctx: Context) -> BoundObjective:
        assert isinstance(self.teacher, nn.Module)
        _SEEN.append(model_fingerprint(self.teacher))
        return super().bind(model, ctx)


def _teachers_of(step: DistillInto, model: nn.Module, ctx: Context) -> list[str]:
    _SEEN.clear()
    objective = _Witness(match=step._objective.match)
    train = step.train.model_copy(update={"objective": objective})
    step.model_copy(update={"train": train}).apply(model, ctx)
    return list(_SEEN)


def test_a_pruned_student_inherits_the_weights_that_are_left(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(deepcopy(model))
    plan = DistillInto(
        student=PruneChannels(macs=0.5), train=Train(epochs=1, optimizer=SGD(lr=1e-9), keep="last")
    )
    student = plan.apply(model, ctx)
    assert isinstance(student, TinyCNN)
    assert student.conv.out_channels == 3
    kept = [
        any(torch.allclose(row, own, atol=1e-6) for own in tiny_cnn().conv.weight)
        for row in student.conv.weight
    ]
    assert all(kept)
    assert values(ctx, "kept_macs") == [0.5]


@pytest.mark.parametrize("student", [PruneChannels(fraction=0.5), SMALL, MIDDLE])
def test_it_keeps_the_contract_of_a_step(student: Any) -> None:
    check_step(DistillInto(student=student, train=SHORT))


def test_a_student_with_fewer_layers_and_a_recipe_as_student() -> None:
    check_step(
        DistillInto(student=DropLayers(count=1, samples=8), train=SHORT), model=tiny_residual()
    )
    check_step(
        DistillInto(
            student=Recipe(PruneChannels(macs=0.6), PruneWeights(sparsity=0.5)), train=SHORT
        )
    )


def test_each_learns_from_the_one_before(make_context: MakeContext) -> None:
    model = tiny_cnn()
    plan = DistillInto(student=SMALL, assistants=(MIDDLE,), generations=3, train=SHORT)
    ctx = make_context(deepcopy(model))
    seen = _teachers_of(plan, model, ctx)
    assert stages(ctx) == ["teacher", "assistant 1", "student 1", "student 2", "student 3"]
    assert seen[0] == model_fingerprint(model)
    assert len(set(seen)) == 4
    sizes = [f.detail["parameters"] for f in ctx.facts if f.name == "stage_quality"]
    assert sizes[0] > sizes[1] > sizes[2] == sizes[3] == sizes[4]


def test_generations_start_anew_and_the_best_is_kept(make_context: MakeContext) -> None:
    model = tiny_cnn()
    ctx = make_context(deepcopy(model))
    plan = DistillInto(student=SMALL, generations=3, train=Train(epochs=2, batch_size=16))
    student = plan.apply(model, ctx)
    quality = [f.value for f in ctx.facts if f.name == "stage_quality"][1:]
    assert len(set(quality)) > 1  # they did not all start from the same weights
    [best] = values(ctx, "best_generation")
    assert quality[best - 1] == max(float(value or 0) for value in quality)
    assert best == 1 + quality.index(quality[best - 1])
    found = predict(student, ctx.data.val)
    assert ctx.task.metrics(found.outputs, found.targets)["accuracy"] == quality[best - 1]


def test_the_mode_and_the_carried_constraints_hold(make_context: MakeContext) -> None:
    ctx = make_context(tiny_cnn())
    model = PruneWeights(sparsity=0.5).apply(tiny_cnn().eval(), ctx)
    assert [type(item) for item in ctx.carried] == [KeepZeros]
    step = DistillInto(
        student=PruneChannels(fraction=0.5), train=Train(epochs=2, optimizer=SGD(lr=0.05))
    )
    student = step.apply(model, ctx)
    assert not student.training
    [held] = ctx.carried
    assert isinstance(held, KeepZeros)
    zeros = [int((student.get_parameter(name) == 0).sum()) for name in held.parameters]
    assert sum(zeros) > 0
    other = make_context(tiny_cnn())
    PruneWeights(sparsity=0.5).apply(tiny_cnn(), other)
    other.checkpoints._path = other.checkpoints._path / "other"
    DistillInto(student=SMALL, train=SHORT).apply(tiny_cnn(), other)
    assert other.carried == []


@pytest.mark.parametrize("after", range(1, 9))
def test_an_interrupted_step_goes_on_bit_for_bit(
    make_context: MakeContext, tmp_path: Path, after: int
) -> None:
    plan = DistillInto(
        student=PruneChannels(fraction=0.5), assistants=(MIDDLE,), generations=2, train=SHORT
    )

    def run(folder: str) -> tuple[nn.Module, list[Fact]]:
        ctx = make_context(tiny_cnn(), checkpoints=CheckpointFolder(tmp_path / folder))
        model = plan.apply(tiny_cnn(), ctx)
        return model, [fact for fact in ctx.facts if fact.reproducible]

    whole, facts = run("whole")
    killing = Killing(after)
    with killing.armed():
        if after <= 6:  # three networks are made and trained
            with pytest.raises(KilledError):
                run("parts")
        else:
            run("parts")
    resumed, again = run("parts")
    assert same(whole, resumed)
    assert again == facts


def test_what_was_made_is_not_made_again(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = DistillInto(student=PruneChannels(fraction=0.5), train=SHORT)
    plan.apply(tiny_cnn(), make_context(tiny_cnn()))

    def fails(*args: Any) -> nn.Module:
        raise AssertionError("it was made again")

    monkeypatch.setattr(PruneChannels, "apply", fails)
    assert isinstance(plan.apply(tiny_cnn(), make_context(tiny_cnn())), TinyCNN)


def test_the_control_is_the_student_alone_with_all_epochs(make_context: MakeContext) -> None:
    train = Train(epochs=2, objective=Distill(match=[SoftTargets()]), combiner=Sum(), clip_norm=1.0)
    plan = DistillInto(student=SMALL, assistants=(MIDDLE,), generations=3, train=train)
    control = plan.control()
    assert control == DistillInto(
        student=SMALL, train=Train(epochs=8, objective=Distill(weight=0.0), clip_norm=1.0)
    )
    assert isinstance(control, DistillInto)
    assert control._train_from(tiny_cnn()).objective == TaskLoss()


def test_the_control_starts_from_the_weights_of_the_first_student(
    make_context: MakeContext, tmp_path: Path
) -> None:
    train = Train(epochs=1, optimizer=SGD(lr=1e-12), keep="last")
    plan = DistillInto(student=SMALL, generations=2, train=train)
    first, control = (
        step.apply(tiny_cnn(), make_context(tiny_cnn(), checkpoints=CheckpointFolder(folder)))
        for step, folder in (
            (plan.model_copy(update={"generations": 1}), tmp_path / "one"),
            (plan.control(), tmp_path / "control"),
        )
    )
    for one, two in zip(first.parameters(), control.parameters(), strict=True):
        torch.testing.assert_close(one, two)


def test_a_run_has_this_control(tmp_path: Path) -> None:
    recipe = Recipe(DistillInto(student=PruneChannels(macs=0.5), train=SHORT))
    run = recipe.run(
        tiny_cnn(), tiny_task(), out=tmp_path, cost=False, progress=Progress(quiet=True)
    )
    assert isinstance(run.model, TinyCNN)
    assert run.model.conv.out_channels == 3
    assert {"control/0 distill_into"} <= {fact.subject for fact in run.facts}
    assert run.verdict.control is not None


def test_another_objective_and_another_teacher_are_refused() -> None:
    with pytest.raises(SpecError, match=r"must be a Distill, got _Other\(\)"):
        DistillInto(student=SMALL, train=Train(epochs=1, objective=_Other()))
    with pytest.raises(SpecError, match=r"the teacher in DistillInto is the model that comes in"):
        DistillInto(student=SMALL, train=Train(epochs=1, objective=Distill(teacher=tiny_cnn())))


class _Other(Objective):
    def bind(self, model: nn.Module, ctx: Context) -> BoundObjective:
        raise NotImplementedError


def test_a_factory_is_enough_and_a_network_is_refused() -> None:
    plan = DistillInto(student=TinyCNN, assistants=[TinyCNN], train=SHORT)
    assert plan.student == Network(factory=TinyCNN)
    assert plan.assistants == (Network(factory=TinyCNN),)
    with pytest.raises(
        SpecError, match=r"a network is given here by how it is made, got one \(TinyCNN"
    ):
        DistillInto(student=tiny_cnn(), train=SHORT)
    with pytest.raises(SpecError, match=r"in `student`: unknown step 'prune_chanels'"):
        DistillInto(student="prune_chanels", train=SHORT)
    with pytest.raises(SpecError, match=r"It is how many students learn one after the other"):
        DistillInto(student=SMALL, train=SHORT, generations=0)


@pytest.mark.parametrize("student", [SMALL, PruneChannels(macs=0.5), SwapModel(factory=TinyCNN)])
def test_it_round_trips(student: Any) -> None:
    train = Train(epochs=1, objective=Distill(match=[SoftTargets(), Hints()], weight=0.3))
    plan = DistillInto(student=student, assistants=(MIDDLE, student), train=train)
    assert DistillInto.from_yaml(plan.to_yaml()) == plan
    assert eval(repr(plan)) == plan


def test_networks_that_do_not_fit_are_refused_before_work() -> None:
    task = tiny_task()
    data = task.prepare()
    wrong = Network(factory=TinyCNN, arguments={"classes": 7})
    missing = Network(factory=TinyCNN, weights="no.safetensors")
    for plan, error in (
        (DistillInto(student=wrong, train=SHORT), "the student of DistillInto does not fit"),
        (
            DistillInto(student=SMALL, assistants=(MIDDLE, wrong), train=SHORT),
            "assistant 2 of DistillInto does not fit the task",
        ),
        (DistillInto(student=missing, train=SHORT), "there is no weights file"),
        (
            DistillInto(student=SwapModel(**dict(wrong)), train=SHORT),
            "the student of DistillInto: the network of SwapModel does not fit",
        ),
        (
            DistillInto(
                student=SMALL,
                assistants=(MIDDLE,),
                train=Train(epochs=1, objective=Distill(match=[Hints(layers=[("conv", "none")])])),
            ),
            "the teacher has no layer 'none'",
        ),
    ):
        with pytest.raises((ModelError, SpecError), match=error):
            plan.preflight(tiny_cnn(), task, data)


def test_a_match_that_is_not_for_this_task_is_refused_before_work() -> None:
    images, values = torch.randn(12, 1, 8, 8), torch.randn(12)
    task = Regression(train=(images, values), val=(images + 1, values), test=(images + 2, values))
    train = Train(epochs=1, objective=Distill(match=[DecoupledTargets()]))
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1))
    with pytest.raises(SpecError, match=r"decoupled_targets needs classes"):
        DistillInto(student=PruneChannels(macs=0.5), train=train).preflight(
            model, task, task.prepare()
        )


def test_a_student_that_cannot_be_made_is_refused_before_an_assistant_is_trained(
    make_context: MakeContext,
) -> None:
    ctx = make_context(tiny_cnn())
    plan = DistillInto(student=PruneChannels(macs=0.001), assistants=(MIDDLE,), train=SHORT)
    with pytest.raises(ModelError, match="when all goes that may go"):
        plan.apply(tiny_cnn(), ctx)
    assert values(ctx, "train_loss") == []


def test_the_order_of_steps_is_checked_for_the_student() -> None:
    with pytest.raises(OrderError, match=r"the student of DistillInto: Train needs something to"):
        DistillInto(student=_FreezeAll(), train=SHORT).check(TRAITS)
    with pytest.raises(OrderError, match=r"assistant 1 of DistillInto: Train needs something to"):
        DistillInto(student=SMALL, assistants=(_FreezeAll(),), train=SHORT).check(TRAITS)
    assert DistillInto(student=PruneChannels(macs=0.5), train=SHORT).check(TRAITS) >= TRAITS
    frozen = TRAITS - {Trait.TRAINABLE}
    assert DistillInto(student=SMALL, train=SHORT).check(frozen) >= TRAITS
    with pytest.raises(OrderError, match=r"DistillInto needs outputs of the shape .*ReplaceHead"):
        DistillInto(student=ReplaceHead(), train=SHORT).check(TRAITS - {Trait.FITS_TASK})


class _FreezeAll(Step):
    takes = frozenset({Trait.TRAINABLE})

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        return model.requires_grad_(False)


def test_students_learn_in_train_mode_from_teachers_in_evaluation_mode(
    make_context: MakeContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every epoch: an evaluation between two epochs must not leave its mode behind."""
    learning, teaching = [], []
    forward = TinyCNN.forward

    def watched(self: TinyCNN, x: torch.Tensor) -> torch.Tensor:
        modes = {module.training for module in self.modules()}
        if torch.is_grad_enabled():
            learning.append(modes)
        else:
            teaching.append(modes)
        return forward(self, x)

    monkeypatch.setattr(TinyCNN, "forward", watched)
    plan = DistillInto(
        student=SMALL, assistants=(MIDDLE,), generations=2, train=Train(epochs=3, batch_size=16)
    )
    plan.apply(tiny_cnn(), make_context(tiny_cnn()))
    assert learning == [{True}] * (3 * 3 * 3)  # networks, epochs, batches
    assert len(teaching) > len(learning)
    assert teaching == [{False}] * len(teaching)


def test_a_student_may_be_larger_than_its_teacher(make_context: MakeContext) -> None:
    large = Network(factory=TinyCNN, arguments={"width": 12})
    student = DistillInto(student=large, train=SHORT).apply(tiny_cnn(), make_context(tiny_cnn()))
    assert isinstance(student, TinyCNN)
    assert student.conv.out_channels == 12


def test_a_distilled_student_learns(make_context: MakeContext) -> None:
    model = tiny_cnn()
    Train(epochs=10, batch_size=8, optimizer=AdamW(lr=1e-2)).apply(model, make_context(tiny_cnn()))
    ctx = make_context(tiny_cnn())
    ctx.checkpoints._path = ctx.checkpoints._path / "student"
    train = Train(epochs=15, batch_size=8, optimizer=AdamW(lr=1e-2), objective=Distill(weight=1.0))
    DistillInto(student=MIDDLE, train=train).apply(model, ctx)
    assert float(values(ctx, "stage_quality")[-1]) > 0.9
