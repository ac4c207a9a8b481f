import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from overhaul.core import SpecError
from overhaul.distillation import Distill, SoftTargets, soft_distance
from overhaul.tasks import Regression
from overhaul.testing import tiny_cnn
from tests.distillation.learning import MakeContext, losses_of_training, random

Kind = Literal["classes", "labels", "values"]
Divergence = Literal["forward", "reverse", "jensen_shannon"]
KINDS: tuple[Kind, ...] = ("classes", "labels")
DIVERGENCES: tuple[Divergence, ...] = ("forward", "reverse", "jensen_shannon")


def test_golden_values() -> None:
    # Teacher (3/4, 1/4), student (1/2, 1/2); with a teacher's share of 1/2 they meet at (5/8, 3/8).
    teacher_BC, student_BC = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    forward = 3 / 4 * math.log(3 / 2) + 1 / 4 * math.log(1 / 2)
    reverse = 1 / 2 * math.log(2 / 3) + 1 / 2 * math.log(2)
    from_teacher = 3 / 4 * math.log(6 / 5) + 1 / 4 * math.log(2 / 3)
    from_student = 1 / 2 * math.log(4 / 5) + 1 / 2 * math.log(4 / 3)
    golden = (forward, reverse, (from_teacher + from_student) / 2)
    for divergence, value in zip(DIVERGENCES, golden, strict=True):
        found = soft_distance(
            student_BC, teacher_BC, kind="classes", temperature=1.0, divergence=divergence
        )
        assert float(found) == pytest.approx(value, rel=1e-5)


def test_the_mixture_has_the_teachers_share() -> None:
    # At a share of 1/5 of the teacher (3/4, 1/4), the mixture with (1/2, 1/2) is (11/20, 9/20).
    teacher_BC, student_BC = torch.tensor([[3.0, 1.0]]).log(), torch.zeros(1, 2)
    from_teacher = 3 / 4 * math.log(15 / 11) + 1 / 4 * math.log(5 / 9)
    from_student = 1 / 2 * math.log(10 / 11) + 1 / 2 * math.log(10 / 9)
    found = soft_distance(
        student_BC,
        teacher_BC,
        kind="classes",
        temperature=1.0,
        divergence="jensen_shannon",
        mixture=0.2,
    )
    assert float(found) == pytest.approx(from_teacher / 5 + 4 / 5 * from_student, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@given(temperature=st.floats(0.5, 50), seed=st.integers(0, 99), mixture=st.floats(0.05, 0.95))
def test_equal_outputs_have_no_distance_and_no_gradient(
    kind: Kind, divergence: Divergence, temperature: float, seed: int, mixture: float
) -> None:
    logits_BC = (3 * random(4, 5, seed=seed)).requires_grad_()
    distance = soft_distance(
        logits_BC,
        logits_BC.detach(),
        kind=kind,
        temperature=temperature,
        divergence=divergence,
        mixture=mixture,
    )
    (gradient,) = torch.autograd.grad(distance, logits_BC)
    assert float(distance.detach()) == 0
    assert float(gradient.abs().max()) < 1e-6 * max(1.0, temperature)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
@given(temperature=st.floats(0.5, 50), seed=st.integers(0, 99))
def test_distance_is_never_negative(
    kind: Kind, divergence: Divergence, temperature: float, seed: int
) -> None:
    student_BC, teacher_BC = random(2, 4, 5, seed=seed).double()
    found = soft_distance(
        student_BC, teacher_BC, kind=kind, temperature=temperature, divergence=divergence
    )
    assert float(found) > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_no_gradient_vanishes_with_the_temperature(kind: Kind, divergence: Divergence) -> None:
    norms = []
    for temperature in (1.0, 4.0, 20.0, 200.0):
        student_BC = random(64, 10).double().requires_grad_()
        loss = soft_distance(
            student_BC,
            random(64, 10, seed=1).double(),
            kind=kind,
            temperature=temperature,
            divergence=divergence,
        )
        (gradient,) = torch.autograd.grad(loss, student_BC)
        norms.append(float(gradient.norm()))
    assert max(norms) < 4 * min(norms)


@pytest.mark.parametrize("mixture", [0.5, 0.2])
@pytest.mark.parametrize("equal", [False, True])
def test_the_gradient_of_the_mixture_is_right(mixture: float, equal: bool) -> None:
    student_BC, teacher_BC = random(2, 3, 4).double()
    if equal:
        student_BC[:, 1:] = teacher_BC[:, 1:]
    student_BC.requires_grad_()
    p = teacher_BC.softmax(1)

    def slow(logits_BC: Tensor) -> Tensor:
        q = logits_BC.softmax(1)
        m = mixture * p + (1 - mixture) * q
        each = mixture * p * (p / m).log() + (1 - mixture) * q * (q / m).log()
        mean: Tensor = each.sum() / len(q)
        return mean

    fast = soft_distance(
        student_BC,
        teacher_BC,
        kind="classes",
        temperature=1.0,
        divergence="jensen_shannon",
        mixture=mixture,
    )
    (found,) = torch.autograd.grad(fast, student_BC)
    (wanted,) = torch.autograd.grad(slow(student_BC), student_BC)
    assert torch.allclose(fast, slow(student_BC))
    assert torch.allclose(found, wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_the_gradients_of_jensen_shannon_are_those_of_differences(kind: Kind) -> None:
    def distance(student_BC: Tensor, teacher_BC: Tensor) -> Tensor:
        return soft_distance(
            student_BC,
            teacher_BC,
            kind=kind,
            temperature=2.0,
            divergence="jensen_shannon",
            mixture=0.3,
        )

    both = [(2 * random(3, 4, seed=seed)).double().requires_grad_() for seed in (0, 1)]
    assert torch.autograd.gradcheck(distance, both)


@pytest.mark.parametrize("mixture", [0.5, 0.2])
def test_close_to_the_teacher_all_are_one_but_for_a_factor(mixture: float) -> None:
    teacher_BC = random(64, 10).double()
    student_BC = teacher_BC + 1e-3 * random(64, 10, seed=1).double()
    forward, reverse, between = (
        float(
            soft_distance(
                student_BC,
                teacher_BC,
                kind="classes",
                temperature=2.0,
                divergence=divergence,
                mixture=mixture,
            )
        )
        for divergence in DIVERGENCES
    )
    assert reverse == pytest.approx(forward, rel=0.01)
    assert between == pytest.approx(mixture * (1 - mixture) * forward, rel=0.01)


def test_reverse_is_forward_with_the_networks_swapped() -> None:
    student_BC, teacher_BC = random(2, 4, 5)
    for kind in KINDS:
        forward = soft_distance(teacher_BC, student_BC, kind=kind, temperature=3.0)
        reverse = soft_distance(
            student_BC, teacher_BC, kind=kind, temperature=3.0, divergence="reverse"
        )
        assert float(forward) == pytest.approx(float(reverse), rel=1e-6)


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_logits_far_apart_stay_finite(divergence: Divergence) -> None:
    student_BC = torch.tensor([[300.0, -300.0, 0.0]], requires_grad=True)
    teacher_BC = torch.tensor([[-300.0, 300.0, 0.0]])
    for kind in KINDS:
        loss = soft_distance(
            student_BC, teacher_BC, kind=kind, temperature=1.0, divergence=divergence
        )
        (gradient,) = torch.autograd.grad(loss, student_BC)
        assert math.isfinite(float(loss.detach()))
        assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("divergence", DIVERGENCES)
def test_training_lowers_it(divergence: Divergence, make_context: MakeContext) -> None:
    match = SoftTargets(divergence=divergence)
    losses = losses_of_training(match, tiny_cnn(width=3), make_context(tiny_cnn()))
    assert losses[-1] < 0.7 * losses[0]


def test_a_mixture_without_its_divergence_is_refused() -> None:
    with pytest.raises(SpecError, match=r"`mixture` is for divergence='jensen_shannon', got 'rev"):
        SoftTargets(divergence="reverse", mixture=0.2)


def test_values_have_no_mixture() -> None:
    task = Regression(train=(torch.rand(40, 2), torch.rand(40)))
    batch = next(task.prepare().train.in_order(2))
    with pytest.raises(SpecError, match=r"jensen_shannon needs probabilities, .*'task' are values"):
        SoftTargets(divergence="jensen_shannon").preflight(tiny_cnn(), task, batch)
    SoftTargets(divergence="reverse").preflight(tiny_cnn(), task, batch)
    values = [
        float(soft_distance(*random(2, 4), kind="values", temperature=3.0, divergence=divergence))
        for divergence in ("forward", "reverse")
    ]
    assert values[0] == values[1] > 0


def test_it_goes_through_a_recipe_file() -> None:
    read = Distill.from_yaml("distill: {match: [{soft_targets: {divergence: reverse}}]}")
    assert read.match == (SoftTargets(divergence="reverse"),)
