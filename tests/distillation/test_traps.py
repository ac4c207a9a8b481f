"""What distillation is known to get wrong in silence, for every match at once."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn
from typer.testing import CliRunner

from overhaul.cli._app import app
from overhaul.core import Context, Network, Progress, concrete_subclasses, seeded
from overhaul.distillation import (
    AttentionTransfer,
    Contrastive,
    CorrelationTargets,
    DecoupledTargets,
    Distill,
    DistillInto,
    GradientMatching,
    Hints,
    Match,
    Mutual,
    Relational,
    SimilarityPreserving,
    SoftTargets,
    TeacherCache,
)
from overhaul.distillation._output_match import OutputMatch
from overhaul.running import Recipe, Run
from overhaul.testing import TinyCNN, tiny_cnn, tiny_task
from overhaul.training import AdamW, Flip, Objective, TaskLoss, Train
from tests.distillation.learning import output_loss, random

MakeContext = Callable[..., Context]

BRANCHES: dict[str, tuple[type[OutputMatch], dict[str, Any]]] = {
    "forward": (SoftTargets, {"divergence": "forward"}),
    "reverse": (SoftTargets, {"divergence": "reverse"}),
    "jensen_shannon": (SoftTargets, {"divergence": "jensen_shannon"}),
    "jensen_shannon, one side": (SoftTargets, {"divergence": "jensen_shannon", "mixture": 0.1}),
    "decoupled": (DecoupledTargets, {}),
    "decoupled, right class alone": (DecoupledTargets, {"beta": 0.0}),
    "decoupled, others alone": (DecoupledTargets, {"alpha": 0.0}),
    "correlation": (CorrelationTargets, {}),
    "correlation, inter alone": (CorrelationTargets, {"intra": 0.0}),
    "correlation, intra alone": (CorrelationTargets, {"inter": 0.0}),
}
LAYERS: tuple[Match, ...] = (
    *(Hints(), AttentionTransfer(), SimilarityPreserving(), Relational(), Contrastive()),
    GradientMatching(),
)
LABELS = torch.arange(64) % 3


def test_every_match_is_here() -> None:
    matches: type[Match] = Match  # type: ignore[type-abstract]
    ours = {each for each in concrete_subclasses(matches) if each.__module__.startswith("overhaul")}
    assert ours == {each for each, _ in BRANCHES.values()} | {type(each) for each in LAYERS}


@pytest.mark.parametrize(("match", "fields"), BRANCHES.values(), ids=BRANCHES)
@pytest.mark.parametrize("share", [0.1, 1.0])
def test_no_gradient_vanishes_with_the_temperature(
    make_context: MakeContext, match: type[OutputMatch], fields: dict[str, Any], share: float
) -> None:
    """Of the whole loss of `Distill` by the student's outputs, less what the task gives."""
    norms = []
    for temperature in (1.0, 4.0, 20.0):
        plan = match(temperature=temperature, **fields)
        student, ctx = nn.Linear(3, 3, bias=False), make_context(_teacher(), task=_rows())
        student.weight.data = random(3, 3)
        batch = next(ctx.data.train.in_order(64))
        bound = Distill(match=[plan], weight=share).bind(student, ctx)
        losses = bound(student, batch)
        [name] = [name for name in losses if name != "task"]
        (gradient,) = torch.autograd.grad(losses[name] / share, student.weight)
        norms.append(float(gradient.norm()))
    assert min(norms) > 1e-3
    assert max(norms) < 5 * min(norms)


def _teacher() -> nn.Module:
    teacher = nn.Linear(3, 3, bias=False)
    teacher.weight.data = random(3, 3, seed=1)
    return teacher


def _rows() -> Any:
    inputs = random(192, 3, seed=2)
    parts = [(part, LABELS) for part in inputs.split(64)]
    return type(tiny_task())(**dict(zip(("train", "val", "test"), parts, strict=True)))


@pytest.mark.parametrize(("match", "fields"), BRANCHES.values(), ids=BRANCHES)
@given(temperature=st.floats(0.5, 50), seed=st.integers(0, 99))
def test_equal_outputs_have_no_loss_and_no_gradient(
    match: type[OutputMatch], fields: dict[str, Any], temperature: float, seed: int
) -> None:
    """A cross-entropy in the place of a divergence would have one, whatever its gradient."""
    logits_BC = (3 * random(64, 3, seed=seed)).requires_grad_()
    plan = match(temperature=temperature, **fields)
    loss = output_loss(plan, _CONTEXT, logits_BC, logits_BC.detach(), LABELS)
    (gradient,) = torch.autograd.grad(loss, logits_BC)
    assert abs(float(loss.detach())) < 1e-4
    assert float(gradient.abs().max()) < 1e-4


_CONTEXT = Context(
    task=(_TASK := tiny_task()),
    data=_TASK.prepare(),
    original=tiny_cnn(),
    checkpoints=None,  # type: ignore[arg-type]
    artifact_folder=Path("none"),
)


def _objectives(folder: Path) -> Iterator[tuple[str, Objective]]:
    """Yield `Distill` with every match, every kind of teacher, and what else is around them."""
    other = Network(factory="tests.distillation.test_traps:other")
    save_file(other.build().state_dict(), folder / "other.safetensors")
    for match in (*(each(**fields) for each, fields in BRANCHES.values()), *LAYERS):
        yield f"{match}", Distill(match=[match])
    yield "network", Distill(teacher=other)
    yield "module", Distill(teacher=other.build().train())
    yield "file", Distill(teacher=str(folder / "other.safetensors"))
    yield "several", Distill(teacher=("original", other))
    yield "learned", Distill(teacher=("original", other), mix="learned")
    yield "cache", Distill(cache=TeacherCache(folder=str(folder / "cache")))
    yield "auto", Distill(weight="auto")


def other() -> nn.Module:
    with seeded(9):
        return TinyCNN()


def test_students_learn_and_teachers_only_teach(
    make_context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every epoch the student is in train mode; a teacher never is, nor gets a gradient."""
    forward = TinyCNN.forward
    seen: list[tuple[int, bool, bool]] = []

    def watched(self: TinyCNN, x: Tensor) -> Tensor:
        modes = {module.training for module in self.modules()}
        assert len(modes) == 1
        trains = all(parameter.requires_grad for parameter in self.parameters())
        seen.append((self.conv.out_channels, modes.pop(), trains))
        return forward(self, x)

    monkeypatch.setattr(TinyCNN, "forward", watched)
    for number, (name, objective) in enumerate(_objectives(tmp_path)):
        ctx = make_context(tiny_cnn())
        ctx.checkpoints._path = tmp_path / f"{number}"
        original, student = ctx.original, tiny_cnn(width=3)
        before = {key: value.clone() for key, value in original.state_dict().items()}
        seen.clear()
        Train(epochs=3, batch_size=16, objective=objective, optimizer=AdamW(lr=1e-2)).apply(
            student, ctx
        )
        learning = [trains and mode for width, mode, trains in seen if width == 3]
        trials = 4 if name == "auto" else 0
        assert learning.count(True) == 3 * (3 + trials), name  # batches, epochs
        teaching = {(mode, trains) for width, mode, trains in seen if width == 6}
        # The original itself, of which the teacher is a copy, is never called.
        assert teaching == {(False, False)}, name
        assert all(torch.equal(before[key], value) for key, value in original.state_dict().items())
        assert all(parameter.grad is None for parameter in original.parameters())


def test_no_cached_output_is_of_another_augmentation(
    make_context: MakeContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the student sees, the outputs beside it are the teacher's of the same numbers."""
    teacher = tiny_cnn().eval()
    compared = []

    class _Watching(SoftTargets):
        """Compares what it is given with what the teacher says of the batch.

        Example:
            >>> _Watching()
            _Watching()
        """

        def bind(self, student: nn.Module, teacher: nn.Module, batch: Any, ctx: Context) -> Any:
            bound = super().bind(student, teacher, batch, ctx)
            inner = bound.forward

            def forward(own: Any, theirs: Any) -> dict[str, Tensor]:
                with torch.no_grad():
                    torch.testing.assert_close(theirs.outputs, theirs.batch.forward(teacher))
                compared.append(theirs.batch.indices)
                return inner(own, theirs)

            monkeypatch.setattr(bound, "forward", forward)
            return bound

    objective = Distill(match=[_Watching()], cache=TeacherCache(folder=str(tmp_path / "cache")))
    plan = Train(epochs=3, batch_size=16, objective=objective, augmentations=[Flip()])
    for name in ("first", "second"):
        ctx = make_context(teacher)
        ctx.checkpoints._path = tmp_path / name
        plan.apply(tiny_cnn(width=3), ctx)
    found = [fact for fact in ctx.facts if fact.name == "teacher_cache"]
    assert [fact.value for fact in found] == [48] * 3  # all of the second came from the disk
    assert len(compared) == 2 * 3 * 3


def run_of(objective: Objective, folder: Path, **how: Any) -> Run:
    train = Train(epochs=8, batch_size=8, optimizer=AdamW(lr=1e-2), objective=objective)
    recipe = Recipe(train)
    quiet = Progress(quiet=True)
    return recipe.run(tiny_cnn(), tiny_task(), out=folder, cost=False, progress=quiet, **how)


def shown(run: Run) -> tuple[str, str]:
    """Return what `overhaul show` prints and the report's text above the steps."""
    printed = CliRunner().invoke(app, ["show", str(run.folder.path)]).stdout
    page = run.report().read_text("utf-8")
    return " ".join(printed.split()), page.partition('<section aria-labelledby="steps">')[0]


def loud() -> nn.Module:
    """Return a network that was never trained, and is sure of what it says."""
    with seeded(3):
        network = TinyCNN()
    network.fc.weight.data *= 5
    return network


def test_harm_is_said_where_everybody_looks(tmp_path: Path) -> None:
    wrong = Network(factory="tests.distillation.test_traps:loud")
    run = run_of(Distill(teacher=wrong, weight=0.95), tmp_path)
    assert run.verdict.control is not None
    assert run.verdict.control.effect == "harm shown"
    for text in shown(run):
        assert "harm shown against the control" in text
        assert "Against the control, which had the same training without the methods: harm" in text


def test_no_gain_is_said_where_everybody_looks(tmp_path: Path) -> None:
    run = run_of(Distill(weight=0.01), tmp_path)
    assert run.verdict.control is not None
    assert run.verdict.control.effect == "no gain shown"
    for text in shown(run):
        assert "no gain shown against the control" in text


def test_a_run_without_a_control_says_so(tmp_path: Path) -> None:
    run = run_of(Distill(), tmp_path, control=False)
    assert run.verdict.control is None
    for text in shown(run):
        assert "No comparison with the control: it was not asked for (control=False)." in text
        assert "against the control" not in text
    page = run.report().read_text("utf-8")
    assert "This run has no control, so a gain cannot be told from that of more training." in page


@pytest.mark.parametrize(
    "objective",
    [Distill(), Mutual(peers=[Network(factory="overhaul.testing:TinyCNN")])],
)
def test_every_distillation_has_a_control_that_learns_alone(objective: Objective) -> None:
    train = Train(epochs=2, objective=objective)
    assert Recipe(train).control() == Recipe(Train(epochs=2))
    if isinstance(objective, Distill):
        into = Recipe(DistillInto(student=TinyCNN, train=train)).control()
        assert into is not None
        [step] = into.steps
        assert isinstance(step, DistillInto)
        assert step._train_from(tiny_cnn()).objective == TaskLoss()
