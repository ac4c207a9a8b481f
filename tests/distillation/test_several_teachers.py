from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from overhaul.core import (
    Batch,
    CheckpointFolder,
    Context,
    Fact,
    ModelError,
    Network,
    SpecError,
    model_fingerprint,
    model_tensors,
)
from overhaul.distillation import (
    BoundMatch,
    CorrelationTargets,
    DecoupledTargets,
    Distill,
    GradientMatching,
    Hints,
    Match,
    Seen,
    SoftTargets,
)
from overhaul.testing import TinyCNN, check_spec, check_step, tiny_cnn, tiny_multi_task, tiny_task
from overhaul.training import SGD, AdamW, BoundObjective, Train
from tests.distillation.killing import KilledError, Killing

MakeContext = Callable[..., Context]


def teachers() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(5)
    return TinyCNN(width=4).eval(), TinyCNN(width=8).eval()


def bound_on(model: nn.Module, ctx: Context, **fields: Any) -> tuple[BoundObjective, Batch]:
    return Distill(**fields).bind(model, ctx), next(ctx.data.train.in_order(16))


def weights_of(ctx: Context) -> list[list[float]]:
    found = [fact for fact in ctx.facts if fact.name == "teacher_weight"]
    numbers = {fact.detail["teacher"] for fact in found}
    return [
        [float(fact.value or 0) for fact in found if fact.detail["teacher"] == number]
        for number in sorted(numbers)
    ]


def test_the_student_matches_the_mean_of_their_outputs(make_context: MakeContext) -> None:
    one, two = teachers()
    student, ctx = tiny_cnn().eval(), make_context(tiny_cnn())
    bound, batch = bound_on(student, ctx, teacher=(one, two), weight=1.0)
    mean = nn.ModuleList((one, two))

    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.both = mean

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = (self.both[0](x) + self.both[1](x)) / 2
            return found

    alone, _ = bound_on(student, ctx, teacher=Mean(), weight=1.0)
    losses = bound(student, batch)
    torch.testing.assert_close(losses["task_soft"], alone(student, batch)["task_soft"])
    assert set(losses) == {"task", "task_soft"}


def test_two_equal_teachers_are_as_one(make_context: MakeContext) -> None:
    one, _ = teachers()
    student, ctx = tiny_cnn().eval(), make_context(tiny_cnn())
    two, batch = bound_on(student, ctx, teacher=(one, one))
    alone, _ = bound_on(student, ctx, teacher=one)
    torch.testing.assert_close(two(student, batch)["task_soft"], alone(student, batch)["task_soft"])


def test_teachers_of_all_kinds_go_together(make_context: MakeContext, tmp_path: Path) -> None:
    save_file(TinyCNN().state_dict(), tmp_path / "other.safetensors")
    network = Network(factory=TinyCNN, arguments={"width": 2})
    plan = Distill(teacher=("original", network, str(tmp_path / "other.safetensors"), tiny_cnn(4)))
    task = tiny_task()
    plan.preflight(tiny_cnn(), task, task.prepare())
    ctx = make_context(tiny_cnn())
    student = tiny_cnn(3)
    assert plan.bind(student, ctx)(student, next(ctx.data.train.in_order(8)))


def test_they_are_in_eval_mode_without_gradients_and_untouched(make_context: MakeContext) -> None:
    given = teachers()
    for teacher in given:
        teacher.train()
    before = [model_fingerprint(teacher) for teacher in given]
    student, ctx = tiny_cnn(), make_context(tiny_cnn())
    bound, _ = bound_on(student, ctx, teacher=given, mix="learned")
    inner = [module for module in bound.modules() if isinstance(module, TinyCNN)]
    assert len(inner) == 2
    for teacher in inner:
        assert not any(module.training for module in teacher.modules())
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
    plan = Train(epochs=1, objective=Distill(teacher=given, mix="learned"))
    plan.apply(student, ctx)
    assert [model_fingerprint(teacher) for teacher in given] == before
    assert all(p.grad is None for teacher in given for p in teacher.parameters())


def test_the_loss_of_the_mixture_reaches_its_weights_alone(make_context: MakeContext) -> None:
    one, two = teachers()
    student, ctx = tiny_cnn().eval(), make_context(tiny_cnn())
    bound, batch = bound_on(student, ctx, teacher=(one, two), mix="learned")
    assert bound.beside == ("teacher_mixture",)
    [scores] = [p for p in bound.parameters() if p.requires_grad]
    losses = bound(student, batch)
    assert isinstance(batch.targets, Tensor)
    mixed = (one(*batch.inputs) + two(*batch.inputs)) / 2
    torch.testing.assert_close(losses["teacher_mixture"], F.cross_entropy(mixed, batch.targets))

    losses["teacher_mixture"].backward()
    assert scores.grad is not None
    assert float(scores.grad.norm()) > 0
    assert all(p.grad is None for p in student.parameters())
    scores.grad = None
    (losses["task"] + losses["task_soft"]).backward()
    assert scores.grad is None
    assert all(p.grad is not None for p in student.parameters())


def good_and_bad(make_context: MakeContext) -> tuple[nn.Module, nn.Module]:
    good = tiny_cnn()
    ctx = make_context(tiny_cnn())
    ctx.checkpoints._path = ctx.checkpoints._path / "teacher"
    Train(epochs=8, batch_size=8, optimizer=AdamW(lr=1e-2)).apply(good, ctx)
    torch.manual_seed(6)
    return good, TinyCNN()


def test_learned_weights_prefer_the_teacher_that_is_right(make_context: MakeContext) -> None:
    good, bad = good_and_bad(make_context)
    ctx = make_context(tiny_cnn())
    objective = Distill(teacher=(bad, good), mix="learned")
    Train(epochs=6, batch_size=4, objective=objective).apply(tiny_cnn(3), ctx)
    of_bad, of_good = weights_of(ctx)
    assert len(of_bad) == len(of_good) == 6
    assert of_good[0] > 0.5
    assert of_good[-1] > of_good[0]
    for one, other in zip(of_bad, of_good, strict=True):
        assert one + other == pytest.approx(1.0)


def test_learning_the_weights_does_not_change_how_the_student_learns_otherwise(
    make_context: MakeContext, tmp_path: Path
) -> None:
    """With equal teachers any weights give the same mixture, and clipping must not see them."""
    one, _ = teachers()
    found = []
    for mix in ("equal", "learned"):
        student = tiny_cnn(3)
        ctx = make_context(tiny_cnn(), checkpoints=CheckpointFolder(tmp_path / mix))
        objective = Distill(teacher=(one, one), mix=mix)
        Train(
            epochs=2, optimizer=SGD(lr=0.1), objective=objective, clip_norm=0.1, keep="last"
        ).apply(student, ctx)
        losses = [fact.value for fact in ctx.facts if fact.name == "train_loss"]
        found.append((student, losses))
    for name, tensor in model_tensors(found[0][0]).items():
        torch.testing.assert_close(model_tensors(found[1][0])[name], tensor)
    assert found[0][1] == pytest.approx(found[1][1])


def test_an_interrupted_training_keeps_the_weights(
    make_context: MakeContext, tmp_path: Path
) -> None:
    given = teachers()

    def run(folder: str) -> tuple[nn.Module, list[Fact]]:
        ctx = make_context(tiny_cnn(), checkpoints=CheckpointFolder(tmp_path / folder))
        student = tiny_cnn(3)
        objective = Distill(teacher=given, mix="learned")
        Train(epochs=3, batch_size=8, objective=objective, keep="last").apply(student, ctx)
        return student, [fact for fact in ctx.facts if fact.reproducible]

    whole, facts = run("whole")
    killing = Killing(2)
    with killing.armed(), pytest.raises(KilledError):
        run("parts")
    resumed, again = run("parts")
    assert again == facts
    for name, tensor in model_tensors(whole).items():
        assert torch.equal(model_tensors(resumed)[name], tensor)
    sizes = [path.stat().st_size for path in (tmp_path / "whole").rglob("tensors.safetensors")]
    own = sum(tensor.nbytes for tensor in model_tensors(whole).values())
    assert max(sizes) < 8 * own  # twice the weights, two moments each: no teacher among them


def test_several_tasks_at_once(make_context: MakeContext) -> None:
    torch.manual_seed(0)
    student, one, two = TwoHeads(), TwoHeads(), TwoHeads()
    ctx = make_context(student, task=tiny_multi_task())
    bound, batch = bound_on(student, ctx, teacher=(one, two), mix="learned")
    names = {"number", "odd", "number_soft", "odd_soft", "teacher_mixture"}
    assert set(bound(student, batch)) == names


class TwoHeads(nn.Module):
    def __init__(self, odd: int = 2) -> None:
        super().__init__()
        self.number, self.odd = nn.Linear(64, 3), nn.Linear(64, odd)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"number": self.number(x.flatten(1)), "odd": self.odd(x.flatten(1))}


class _InputGradient(Match):
    def bind(
        self, student: nn.Module, teacher: nn.Module, batch: Batch, ctx: Context
    ) -> BoundMatch:
        return _BoundInputGradient()


class _BoundInputGradient(BoundMatch):
    input_gradients = True

    def forward(self, student: Seen, teacher: Seen) -> dict[str, Tensor]:
        found: list[Tensor] = []
        for seen in (student, teacher):
            assert isinstance(seen.outputs, Tensor)
            assert isinstance(seen.batch.inputs, tuple)
            found += torch.autograd.grad(seen.outputs.sum(), seen.batch.inputs, create_graph=True)
        return {"slope": (found[0] - found[1]).square().mean()}


def test_input_gradients_of_a_mixture_can_be_matched(make_context: MakeContext) -> None:
    one, _ = teachers()
    student, ctx = deepcopy(one), make_context(tiny_cnn())
    bound, batch = bound_on(
        student, ctx, teacher=(one, one), match=[_InputGradient()], mix="learned"
    )
    assert float(bound(student, batch)["slope"].detach()) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    "match", [GradientMatching(), DecoupledTargets(), CorrelationTargets()], ids=repr
)
def test_each_match_of_outputs_goes_with_a_mixture(make_context: MakeContext, match: Match) -> None:
    objective = Distill(teacher=teachers(), match=[match], mix="learned")
    ctx, student = make_context(tiny_cnn()), tiny_cnn(3)
    Train(epochs=1, batch_size=16, objective=objective).apply(student, ctx)
    assert [len(each) for each in weights_of(ctx)] == [1, 1]


class _Layers(Match):
    def bind(
        self, student: nn.Module, teacher: nn.Module, batch: Batch, ctx: Context
    ) -> BoundMatch:
        bound = _BoundInputGradient()
        bound.teacher_paths = ("conv",)
        return bound


def test_layers_of_several_teachers_are_refused(make_context: MakeContext) -> None:
    network = Network(factory=TinyCNN)
    with pytest.raises(SpecError, match=r"hints matches layers, and several teachers have no lay"):
        Distill(teacher=("original", network), match=[SoftTargets(), Hints()])
    plan = Distill(teacher=("original", network), match=[_Layers()])
    with pytest.raises(SpecError, match=r"several teachers have no layers in common. Give one"):
        plan.bind(tiny_cnn(), make_context(tiny_cnn()))
    one = Distill(teacher=("original",), match=[Hints()])
    assert isinstance(one.bind(tiny_cnn(), make_context(tiny_cnn())), BoundObjective)


def test_no_teacher_and_a_mix_of_one_are_refused() -> None:
    with pytest.raises(SpecError, match=r"`teacher` is an empty list. Give at least one teacher"):
        Distill(teacher=())
    with pytest.raises(SpecError, match=r"`mix` is 'learned', and there is one teacher"):
        Distill(mix="learned")
    with pytest.raises(SpecError, match=r"`mix` of distill must be 'equal' or 'learned'"):
        Distill(teacher=("original", "original"), mix="best")


def test_the_teacher_that_does_not_fit_is_named() -> None:
    task = tiny_task()
    plan = Distill(teacher=("original", TinyCNN(classes=7)))
    with pytest.raises(ModelError, match=r"teacher 2 cannot teach this task"):
        plan.preflight(tiny_cnn(), task, task.prepare())


def test_teachers_of_other_outputs_are_refused(make_context: MakeContext) -> None:
    student, ctx = tiny_cnn(), make_context(tiny_cnn())
    bound, batch = bound_on(student, ctx, teacher=(tiny_cnn(), tiny_cnn(classes=4)))
    with pytest.raises(ModelError, match=r"of one shape, got \[16, 3\] and \[16, 4\]"):
        bound(student, batch)


def test_it_round_trips_and_keeps_the_contract() -> None:
    network = Network(factory="overhaul.testing:TinyCNN", arguments={"width": 2})
    plan = Distill(teacher=("original", network), mix="learned", weight=0.9)
    check_spec(plan)
    check_step(Train(epochs=2, batch_size=16, objective=plan))
