from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import Batch, CheckpointFolder, Context, ModelError, SpecError
from overhaul.distillation import Distill, GradientMatching, Match, SoftTargets, see
from overhaul.tasks import Classification, Regression
from overhaul.testing import tiny_cnn, tiny_multi_task, tiny_task
from overhaul.training import AdamW, Train
from tests.distillation.learning import TRAININGS, MakeContext, losses_of_training, random


def smooth(width: int, outputs: int = 3, seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, width), nn.Tanh(), nn.Linear(width, outputs))


def samples(count: int) -> Batch:
    inputs = random(count, 4).requires_grad_()
    return Batch((inputs,), torch.arange(count) % 3, torch.arange(count))


def context_of(task: Any, make_context: MakeContext) -> Context:
    return make_context(nn.Identity(), task=task)


def classes_task() -> Classification:
    return Classification(train=(random(24, 4), torch.arange(24) % 3))


def values_task() -> Regression:
    return Regression(train=(random(24, 4), random(24, 3, seed=1)))


def jacobians(network: nn.Module, batch: Batch) -> Tensor:
    """Return the Jacobian of each sample, `[B, C, D]`, one output after the other."""
    x = batch.arguments[0][0]
    outputs = network(x)
    rows = [
        torch.autograd.grad(outputs[:, number].sum(), x, retain_graph=True)[0]
        for number in range(outputs.shape[1])
    ]
    return torch.stack(rows, dim=1)


def loss_of(
    plan: GradientMatching, ctx: Context, student: nn.Module, teacher: nn.Module, batch: Batch
) -> Tensor:
    bound = plan.bind(student, teacher, batch, ctx)
    losses: dict[str, Tensor] = bound(see(student, batch), see(teacher, batch))
    return losses["gradient_matching"]


def test_the_expectation_is_the_distance_of_the_jacobians(make_context: MakeContext) -> None:
    student, teacher, batch = smooth(3, seed=1), smooth(5, seed=2), samples(4)
    difference_BCD = jacobians(student, batch) - jacobians(teacher, batch)
    by_hand = difference_BCD.square().sum(dim=(1, 2)).mean() / 3
    plan = GradientMatching(projections=1500, normalize=False)
    ctx = context_of(values_task(), make_context)
    loss = loss_of(plan, ctx, student, teacher, batch)
    assert float(loss.detach()) == pytest.approx(float(by_hand), rel=0.05)


def test_a_common_shift_of_logits_does_not_matter_to_classes(make_context: MakeContext) -> None:
    student, teacher, batch = smooth(3, seed=1), smooth(5, seed=2), samples(4)
    difference_BCD = jacobians(student, batch) - jacobians(teacher, batch)
    centred_BCD = difference_BCD - difference_BCD.mean(1, keepdim=True)
    by_hand = centred_BCD.square().sum(dim=(1, 2)).mean() / 2
    plan = GradientMatching(projections=1500, normalize=False)
    ctx = context_of(classes_task(), make_context)
    loss = loss_of(plan, ctx, student, teacher, batch)
    assert float(loss.detach()) == pytest.approx(float(by_hand), rel=0.05)


def test_normalized_it_is_the_squared_distance_of_unit_gradients(
    make_context: MakeContext,
) -> None:
    # With one output the only directions are +1 and -1, which give the same loss.
    student, teacher, batch = smooth(3, 1, seed=1), smooth(5, 1, seed=2), samples(6)
    own_BD, theirs_BD = (jacobians(each, batch).squeeze(1) for each in (student, teacher))
    cosine_B = nn.functional.cosine_similarity(own_BD, theirs_BD)
    task = Regression(train=(random(24, 4), random(24, 1, seed=1)))
    loss = loss_of(GradientMatching(), context_of(task, make_context), student, teacher, batch)
    assert float(loss.detach()) == pytest.approx(float((2 - 2 * cosine_B).mean()), rel=1e-5)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_student_equal_to_its_teacher_has_no_loss(
    normalize: bool, make_context: MakeContext
) -> None:
    teacher = tiny_cnn()
    ctx = make_context(teacher)
    plan = Distill(match=[GradientMatching(projections=3, normalize=normalize)], weight=1.0)
    student = deepcopy(teacher).eval()
    losses = plan.bind(student, ctx)(student, next(ctx.data.train.in_order(8)))
    assert float(losses["gradient_matching"].detach()) < 1e-9


def test_the_weight_gradient_is_that_of_the_distance_of_jacobians(
    make_context: MakeContext,
) -> None:
    # A linear student z = W x has the Jacobian W: the loss is |W - J_t|^2 / C, its gradient known.
    student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
    ctx = context_of(values_task(), make_context)
    plan = GradientMatching(projections=3000, normalize=False)
    loss = loss_of(plan, ctx, student, teacher, samples(2))
    (gradient,) = torch.autograd.grad(loss, student.weight)
    by_hand = 2 * (student.weight - teacher.weight).detach() / 3
    assert torch.allclose(gradient, by_hand, atol=0.08 * float(by_hand.abs().max()))


def test_each_sample_has_a_direction_of_its_own(make_context: MakeContext) -> None:
    # Behind a BatchNorm the sum over the batch never changes: one direction for all says nothing.
    network = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)).train()
    batch = samples(16)
    one_direction_for_all = network(*batch.inputs)[:, 0].sum()
    (same,) = torch.autograd.grad(one_direction_for_all, batch.arguments[0][0])
    assert float(same.abs().max()) < 1e-5
    ctx = context_of(classes_task(), make_context)
    bound = GradientMatching(normalize=False).bind(network, smooth(5), batch, ctx)
    (loss,) = bound(see(network, batch), see(smooth(5), batch)).values()
    (gradient,) = torch.autograd.grad(loss, next(network.parameters()))
    assert float(gradient.abs().max()) > 1e-4


def test_the_teachers_graph_is_for_this_match_alone(make_context: MakeContext) -> None:
    student, teacher = tiny_cnn(width=3), tiny_cnn()
    ctx = make_context(teacher)
    batch = next(ctx.data.train.in_order(8))
    seen: list[Any] = []

    class Spied(SoftTargets):
        def bind(self, *given: Any) -> Any:
            bound = super().bind(*given)
            bound.register_forward_hook(lambda _, args, __: seen.append(args[1]))
            return bound

    Distill(match=[Spied(), GradientMatching()]).bind(student, ctx)(student, batch)
    assert not seen[0].outputs.requires_grad


@pytest.mark.parametrize("how", TRAININGS.values(), ids=TRAININGS)
@pytest.mark.parametrize("normalize", [True, False])
def test_training_lowers_it(
    how: dict[str, Any], normalize: bool, make_context: MakeContext
) -> None:
    plan = GradientMatching(normalize=normalize)
    losses = losses_of_training(plan, tiny_cnn(width=3), make_context(tiny_cnn()), **how)
    assert losses[-1] < 0.7 * losses[0]


def test_a_trained_student_has_the_gradients_of_its_teacher_on_new_samples(
    make_context: MakeContext, tmp_path: Path
) -> None:
    teacher = tiny_cnn()
    Train(epochs=5, batch_size=16, optimizer=AdamW(lr=1e-2)).apply(teacher, make_context(teacher))
    val = next(tiny_task().prepare().val.in_order(24)).map_inputs(
        lambda tensor: tensor.requires_grad_()
    )

    def agreement(match: Match) -> float:
        """Return the mean cosine of the Jacobians of student and teacher."""
        student = tiny_cnn(width=8)
        ctx = make_context(teacher, checkpoints=CheckpointFolder(tmp_path / match.spec_name()))
        losses_of_training(match, student, ctx, epochs=25, keep="last")
        own_BCD, theirs_BCD = (jacobians(each.eval(), val) for each in (student, deepcopy(teacher)))
        own_BF, theirs_BF = (
            (each - each.mean(1, keepdim=True)).flatten(1) for each in (own_BCD, theirs_BCD)
        )
        return float(nn.functional.cosine_similarity(own_BF, theirs_BF).mean())

    assert agreement(GradientMatching()) > max(0.8, agreement(SoftTargets()) + 0.2)


def test_the_step_is_the_same_however_the_batch_is_cut(
    make_context: MakeContext, tmp_path: Path
) -> None:
    # With one output the direction is +1 or -1, which give the same loss: there is no chance in it.
    task = Regression(train=(random(24, 4), random(24, 1, seed=1)))
    trained = []
    for parts in (1, 3):
        ctx = make_context(
            smooth(5, 1, seed=2), task=task, checkpoints=CheckpointFolder(tmp_path / str(parts))
        )
        student = smooth(3, 1, seed=1)
        losses_of_training(GradientMatching(), student, ctx, accumulate=parts, keep="last")
        trained.append(student)
    for one, other in zip(trained[0].parameters(), trained[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_transformers_and_several_tasks_work(make_context: MakeContext) -> None:
    task = tiny_multi_task()

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.number, self.odd = nn.Linear(8, 3), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> dict[str, Tensor]:
            feature_BC = self.block(x.squeeze(1)).mean(1)
            return {"number": self.number(feature_BC), "odd": self.odd(feature_BC)}

    student = Both()
    ctx = make_context(Both(), task=task)
    losses = losses_of_training(GradientMatching(), student, ctx, epochs=4)
    assert losses[-1] < losses[0]


def test_tokens_are_refused_before_work() -> None:
    tokens = Batch((torch.ones(2, 5).long(),), torch.zeros(2).long(), torch.arange(2))
    with pytest.raises(SpecError, match=r"gradient_matching needs inputs of real numbers"):
        GradientMatching().preflight(tiny_cnn(), tiny_task(), tokens)


def test_real_inputs_are_found_by_name() -> None:
    named = Batch({"image": torch.ones(2, 5)}, torch.zeros(2).long(), torch.arange(2))
    GradientMatching().preflight(tiny_cnn(), tiny_task(), named)
    empty = Batch({"image": torch.ones(2, 5).byte()}, named.targets, named.indices)
    with pytest.raises(SpecError, match=r"needs inputs of real numbers"):
        GradientMatching().preflight(tiny_cnn(), tiny_task(), empty)


class Rounded(nn.Module):
    """A network whose outputs do not go with its inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.fc(x.detach())
        return logits


def test_a_network_without_gradients_by_its_inputs_is_refused_before_training(
    make_context: MakeContext,
) -> None:
    ctx = context_of(classes_task(), make_context)
    with pytest.raises(ModelError, match=r"gradient_matching needs the gradients of both"):
        GradientMatching().bind(smooth(3), Rounded().requires_grad_(False), samples(2), ctx)


def test_two_of_them_share_the_teachers_graph(make_context: MakeContext) -> None:
    student, teacher = tiny_cnn(width=3), tiny_cnn()
    ctx = make_context(teacher)
    batch = next(ctx.data.train.in_order(8))
    both = [GradientMatching(projections=2), GradientMatching(normalize=False)]
    bound = Distill(match=both).bind(student, ctx)
    for _ in range(2):
        losses = bound(student, batch)
        torch.stack(list(losses.values())).sum().backward()
        assert {"gradient_matching", "gradient_matching_2"} <= losses.keys()
