from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from overhaul.core import ModelError, SpecError
from overhaul.distillation import DecoupledTargets, Distill, decoupled_distances, soft_distance
from overhaul.tasks import Regression
from overhaul.testing import tiny_cnn, tiny_multi_task, tiny_task
from tests.distillation.learning import (
    TRAININGS,
    MakeContext,
    losses_of_training,
    output_loss,
    random,
)


def test_golden_values() -> None:
    # Teacher (1/2, 3/8, 1/8), student (1/4, 3/8, 3/8), class 0 is right.
    # Right: KL((1/2, 1/2), (1/4, 3/4)) = 1/2 ln 2 + 1/2 ln(2/3).
    # Others: KL((3/4, 1/4), (1/2, 1/2)) = 3/4 ln(3/2) + 1/4 ln(1/2).
    teacher_BC = torch.tensor([[4.0, 3.0, 1.0]]).log()
    student_BC = torch.tensor([[2.0, 3.0, 3.0]]).log()
    right_B, others_B = decoupled_distances(
        student_BC, teacher_BC, torch.tensor([0]), temperature=1.0
    )
    assert float(right_B) == pytest.approx(0.143841, abs=1e-6)
    assert float(others_B) == pytest.approx(0.130812, abs=1e-6)


@given(temperature=st.floats(0.5, 50), seed=st.integers(0, 99), classes=st.integers(2, 7))
def test_with_the_factor_of_the_paper_it_is_the_classical_loss(
    temperature: float, seed: int, classes: int
) -> None:
    student_BC, teacher_BC = 3 * random(2, 5, classes, seed=seed).double()
    labels_B = torch.arange(5) % classes
    right_B, others_B = decoupled_distances(
        student_BC, teacher_BC, labels_B, temperature=temperature
    )
    probability_B = (teacher_BC / temperature).softmax(1).gather(1, labels_B[:, None]).squeeze(1)
    together = (right_B + (1 - probability_B) * others_B).mean()
    classical = soft_distance(student_BC, teacher_BC, kind="classes", temperature=temperature)
    assert float(together) == pytest.approx(float(classical), rel=1e-6, abs=1e-9)


def test_the_weights_belong_to_their_parts(make_context: MakeContext) -> None:
    ctx = make_context(tiny_cnn())
    student_BC, teacher_BC, labels_B = random(4, 3), random(4, 3, seed=1), torch.arange(4) % 3
    right_B, others_B = decoupled_distances(student_BC, teacher_BC, labels_B, temperature=2.0)
    plan = DecoupledTargets(alpha=3.0, beta=5.0, temperature=2.0)
    loss = output_loss(plan, ctx, student_BC, teacher_BC, labels_B)
    assert float(loss) == pytest.approx(float(3 * right_B.mean() + 5 * others_B.mean()))


@pytest.mark.parametrize("weights", [{"beta": 0.0}, {"alpha": 0.0, "beta": 1.0}])
def test_no_gradient_vanishes_with_the_temperature(
    weights: dict[str, float], make_context: MakeContext
) -> None:
    ctx, norms = make_context(tiny_cnn()), []
    for temperature in (1.0, 4.0, 20.0):
        student_BC = random(64, 3).requires_grad_()
        plan = DecoupledTargets(temperature=temperature, **weights)
        loss = output_loss(plan, ctx, student_BC, random(64, 3, seed=1), torch.arange(64) % 3)
        (gradient,) = torch.autograd.grad(loss, student_BC)
        norms.append(float(gradient.norm()))
    assert max(norms) < 4 * min(norms)


@given(temperature=st.floats(0.5, 50), seed=st.integers(0, 99))
def test_equal_outputs_have_no_distance(temperature: float, seed: int) -> None:
    logits_BC = 3 * random(4, 5, seed=seed)
    for distance_B in decoupled_distances(
        logits_BC, logits_BC, torch.arange(4), temperature=temperature
    ):
        assert distance_B.abs().max() < 1e-4


def test_samples_without_a_label_do_not_count(make_context: MakeContext) -> None:
    ctx, plan = make_context(tiny_cnn()), DecoupledTargets()
    student_BC, teacher_BC = random(3, 3), random(3, 3, seed=1)
    some = output_loss(plan, ctx, student_BC, teacher_BC, torch.tensor([0, -1, 2]))
    known = [0, 2]
    alone = output_loss(plan, ctx, student_BC[known], teacher_BC[known], torch.tensor(known))
    assert torch.allclose(some, alone)
    none = output_loss(plan, ctx, student_BC, teacher_BC, torch.tensor([-1, -1, -1]))
    assert float(none) == 0.0


def test_logits_far_apart_stay_finite() -> None:
    student_BC = torch.tensor([[300.0, -300.0, 0.0]], requires_grad=True)
    teacher_BC = torch.tensor([[-300.0, 300.0, 0.0]])
    right_B, others_B = decoupled_distances(
        student_BC, teacher_BC, torch.tensor([0]), temperature=1.0
    )
    (gradient,) = torch.autograd.grad((right_B + others_B).sum(), student_BC)
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("how", TRAININGS.values(), ids=TRAININGS)
def test_training_lowers_it(how: dict[str, Any], make_context: MakeContext) -> None:
    losses = losses_of_training(
        DecoupledTargets(), tiny_cnn(width=3), make_context(tiny_cnn()), **how
    )
    assert losses[-1] < 0.7 * losses[0]


def test_each_task_of_classes_has_its_own(make_context: MakeContext) -> None:
    plan, task = DecoupledTargets(), tiny_multi_task()
    plan.preflight(tiny_cnn(), task, next(task.prepare().train.in_order(2)))
    bound = plan.bind(
        tiny_cnn(),
        tiny_cnn(),
        next(task.prepare().train.in_order(2)),
        make_context(tiny_cnn(), task=task),
    )
    assert not list(bound.parameters())


def test_a_task_without_classes_is_refused_before_work() -> None:
    task = tiny_task()
    batch = next(task.prepare().train.in_order(2))
    values = Regression(train=(torch.zeros(4, 2), torch.zeros(4)))
    with pytest.raises(SpecError, match=r"decoupled_targets needs classes, .*'task' are values"):
        DecoupledTargets().preflight(tiny_cnn(), values, batch)


def test_two_weights_of_zero_are_refused() -> None:
    with pytest.raises(SpecError, match=r"one of `alpha` and `beta` must be above 0"):
        DecoupledTargets(alpha=0.0, beta=0.0)


def test_outputs_of_two_shapes_are_refused() -> None:
    with pytest.raises(ModelError, match=r"one shape, got \[2, 3\] and \[2, 4\]"):
        decoupled_distances(
            torch.zeros(2, 3), torch.zeros(2, 4), torch.zeros(2).long(), temperature=1.0
        )


def test_it_goes_through_a_recipe_file() -> None:
    read = Distill.from_yaml("distill: {match: [{decoupled_targets: {beta: 2}}]}")
    assert read.match == (DecoupledTargets(beta=2.0),)
