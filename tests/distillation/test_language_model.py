"""Distillation of language models: matches of outputs see the tokens that count, and no padding."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import Batch, Network, Progress, SpecError
from overhaul.distillation import (
    CorrelationTargets,
    DecoupledTargets,
    Distill,
    GradientMatching,
    Match,
    Mutual,
    Seen,
    SoftTargets,
    SwapModel,
    TeacherCache,
    decoupled_distances,
    soft_distance,
)
from overhaul.running import Recipe
from overhaul.training import SGD, AdamW, Train
from tests.distillation.learning import MakeContext, losses_of_training, random
from tests.tasks.tiny_text import TinyGPT, tiny_gpt, tiny_gpt2, tiny_text

MATCHES: dict[str, Match] = {
    "forward": SoftTargets(),
    "reverse": SoftTargets(divergence="reverse"),
    "jensen_shannon": SoftTargets(divergence="jensen_shannon"),
    "decoupled": DecoupledTargets(),
    "correlation": CorrelationTargets(),
}
# Its samples are compared with each other, so that a part of a batch is another batch.
ADDING_UP = {name: match for name, match in MATCHES.items() if name != "correlation"}


def padded(*sizes: int) -> Tensor:
    """Return targets of which so many count in each sample."""
    position = torch.arange(6)
    return torch.stack([((position + 1) % 5).where(position < size, -100) for size in sizes])


def token_loss(
    match: Match, make_context: MakeContext, student: Tensor, teacher: Tensor, targets: Tensor
) -> Tensor:
    ctx = make_context(tiny_gpt(), task=tiny_text())
    batch = Batch((torch.zeros(len(targets), 1),), targets, torch.arange(len(targets)))
    bound = match.bind(nn.Identity(), nn.Identity(), batch, ctx)
    losses: dict[str, Tensor] = bound(Seen(batch, student, {}), Seen(batch, teacher, {}))
    (loss,) = losses.values()
    return loss


@pytest.mark.parametrize("match", MATCHES.values(), ids=MATCHES)
def test_padding_has_no_part_in_loss_or_gradient(match: Match, make_context: MakeContext) -> None:
    targets = padded(6, 2, 3)
    padding = targets == -100
    found = []
    for filling in (0.0, 50.0, torch.nan):
        student, teacher = random(3, 6, 5), random(3, 6, 5, seed=1)
        student[padding], teacher[padding] = filling, -filling
        student.requires_grad_()
        loss = token_loss(match, make_context, student, teacher, targets)
        (gradient,) = torch.autograd.grad(loss, student)
        assert not gradient[padding].any()
        assert gradient[~padding].any(1).all()
        found.append((loss.detach(), gradient))
    for loss, gradient in found[1:]:
        assert torch.equal(loss, found[0][0])
        assert torch.equal(gradient, found[0][1])


@pytest.mark.parametrize("match", MATCHES.values(), ids=MATCHES)
def test_equal_outputs_have_no_distance(match: Match, make_context: MakeContext) -> None:
    logits = 3 * random(3, 6, 5)
    loss = token_loss(match, make_context, logits, logits, padded(6, 2, 3))
    assert abs(float(loss)) < 1e-5


@pytest.mark.parametrize("match", ADDING_UP.values(), ids=ADDING_UP)
def test_parts_of_a_batch_add_up_whatever_their_padding(
    match: Match, make_context: MakeContext
) -> None:
    student, teacher, targets = random(4, 6, 5), random(4, 6, 5, seed=1), padded(6, 2, 3, 1)
    whole = token_loss(match, make_context, student, teacher, targets)
    parts = [
        token_loss(match, make_context, student[part], teacher[part], targets[part])
        for part in (slice(0, 1), slice(1, 4))
    ]
    assert float(parts[0] / 4 + 3 * parts[1] / 4) == pytest.approx(float(whole), rel=1e-5)


def test_a_sample_has_the_mean_of_its_tokens(make_context: MakeContext) -> None:
    student, teacher = random(2, 6, 5), random(2, 6, 5, seed=1)
    found = token_loss(SoftTargets(), make_context, student, teacher, padded(6, 2))
    each = [
        float(soft_distance(student[b, :t], teacher[b, :t], kind="classes", temperature=4.0))
        for b, t in ((0, 6), (1, 2))
    ]
    assert float(found) == pytest.approx(sum(each) / 2, rel=1e-5)


def test_tokens_are_decoupled_by_their_own_labels(make_context: MakeContext) -> None:
    student, teacher = random(1, 6, 5), random(1, 6, 5, seed=1)
    labels = padded(4)
    found = token_loss(DecoupledTargets(beta=8.0), make_context, student, teacher, labels)
    right_N, others_N = decoupled_distances(
        student[0, :4], teacher[0, :4], labels[0, :4], temperature=4.0
    )
    assert float(found) == pytest.approx(float((right_N + 8 * others_N).mean()), rel=1e-5)


@pytest.mark.parametrize("match", MATCHES.values(), ids=MATCHES)
def test_training_lowers_it(match: Match, make_context: MakeContext) -> None:
    ctx = make_context(trained_teacher(make_context), task=tiny_text())
    ctx.checkpoints._path = ctx.checkpoints._path / "student"
    losses = losses_of_training(match, tiny_gpt(8), ctx, epochs=10)
    assert losses[-1] < 0.7 * losses[0]


def trained_teacher(make_context: MakeContext) -> nn.Module:
    teacher = tiny_gpt()
    ctx = make_context(teacher, task=tiny_text())
    plan = Train(epochs=6, batch_size=16, optimizer=AdamW(lr=1e-2))
    plan.apply(teacher, ctx)
    return teacher


@pytest.mark.parametrize("match", ADDING_UP.values(), ids=ADDING_UP)
def test_the_step_is_the_same_in_parts(match: Match, make_context: MakeContext) -> None:
    weights = []
    for parts in (1, 3):
        student, ctx = tiny_gpt(8), make_context(tiny_gpt(), task=tiny_text())
        ctx.checkpoints._path = ctx.checkpoints._path / str(parts)
        objective = Distill(match=[match])
        Train(
            epochs=1,
            batch_size=12,
            optimizer=SGD(lr=0.1),
            objective=objective,
            accumulate=parts,
            keep="last",
        ).apply(student, ctx)
        weights.append(student.head.weight.detach())
    assert not torch.equal(weights[0], tiny_gpt(8).head.weight)
    assert torch.allclose(weights[0], weights[1], atol=1e-4)


@pytest.mark.parametrize("factory", [tiny_gpt, tiny_gpt2], ids=["torch", "transformers"])
def test_a_recipe_distils_and_gives_a_verdict(factory: type[nn.Module], tmp_path: Path) -> None:
    recipe = Recipe(
        SwapModel(factory=factory, arguments={"width": 8}),
        Train(
            epochs=6,
            batch_size=16,
            optimizer=AdamW(lr=1e-2),
            objective=Distill(match=[SoftTargets(temperature=1.0, divergence="reverse")]),
        ),
    )
    run = recipe.run(
        factory(), tiny_text(), out=tmp_path / "run", cost=False, progress=Progress(quiet=True)
    )
    assert run.verdict is not None
    assert run.verdict.control is not None
    (first, *_, last) = [float(fact.value or 0) for fact in run.facts if fact.name == "val_loss"]
    assert last < first


def test_networks_learn_mutually(make_context: MakeContext) -> None:
    peer = Network(factory=TinyGPT)
    ctx = make_context(tiny_gpt(), task=tiny_text())
    plan = Train(epochs=4, batch_size=16, optimizer=AdamW(lr=1e-2), objective=Mutual(peers=[peer]))
    plan.apply(tiny_gpt(), ctx)
    losses = [float(fact.value or 0) for fact in ctx.facts if fact.name == "train_loss"]
    assert losses[-1] < 0.8 * losses[0]


def test_a_cached_teacher_gives_the_same_student(make_context: MakeContext, tmp_path: Path) -> None:
    weights = []
    for name, cache in (("plain", None), ("cached", TeacherCache(folder=str(tmp_path / "cache")))):
        student, ctx = tiny_gpt(8), make_context(tiny_gpt(), task=tiny_text())
        ctx.checkpoints = ctx.checkpoints.part(name)
        objective = Distill(match=[DecoupledTargets()], cache=cache)
        plan = Train(
            epochs=2, batch_size=16, optimizer=SGD(lr=0.1), objective=objective, keep="last"
        )
        plan.apply(student, ctx)
        weights.append(student.head.weight.detach())
    assert torch.equal(weights[0], weights[1])
    found = [fact for fact in ctx.facts if fact.name == "teacher_cache"]
    assert [fact.value for fact in found] == [0, len(ctx.data.train)]


def test_tokens_have_no_input_gradients() -> None:
    task = tiny_text()
    batch = next(task.prepare().train.in_order(2))
    with pytest.raises(
        SpecError, match=r"numbers of tokens or of pixels in bytes have no gradient"
    ):
        GradientMatching().preflight(tiny_gpt(), task, batch)
