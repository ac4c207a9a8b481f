from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from overhaul.core import SpecError
from overhaul.distillation import CorrelationTargets
from overhaul.tasks import Regression
from overhaul.testing import tiny_cnn
from tests.distillation.learning import (
    TRAININGS,
    MakeContext,
    losses_of_training,
    output_loss,
    random,
)

LABELS = torch.arange(64) % 3


def by_numpy(student_BC: Tensor, teacher_BC: Tensor) -> tuple[float, float]:
    """Return inter and intra by another program."""
    own, theirs = (each.softmax(1).double().numpy() for each in (student_BC, teacher_BC))
    inter = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(own, theirs, strict=True)]
    intra = [1 - np.corrcoef(a, b)[0, 1] for a, b in zip(own.T, theirs.T, strict=True)]
    return float(np.mean(inter)), float(np.mean(intra))


def test_golden_value(make_context: MakeContext) -> None:
    # Probabilities (1/2, 1/4, 1/4) and (1/4, 1/2, 1/4) less their means are (2, -1, -1) / 12 and
    # (-1, 2, -1) / 12: their correlation is (-2 - 2 + 1) / 6 = -1/2. One sample has no intra.
    student_BC = torch.tensor([[2.0, 1.0, 1.0]]).log()
    teacher_BC = torch.tensor([[1.0, 2.0, 1.0]]).log()
    loss = output_loss(
        CorrelationTargets(), make_context(tiny_cnn()), student_BC, teacher_BC, LABELS[:1]
    )
    assert float(loss) == pytest.approx(1.5, abs=1e-5)


@pytest.mark.parametrize(("inter", "intra"), [(1.0, 0.0), (0.0, 1.0), (2.0, 3.0)])
def test_it_is_what_another_program_computes(
    inter: float, intra: float, make_context: MakeContext
) -> None:
    student_BC, teacher_BC = random(6, 3), random(6, 3, seed=1)
    plan = CorrelationTargets(inter=inter, intra=intra)
    loss = output_loss(plan, make_context(tiny_cnn()), student_BC, teacher_BC, LABELS[:6])
    over_classes, over_samples = by_numpy(student_BC, teacher_BC)
    assert float(loss) == pytest.approx(inter * over_classes + intra * over_samples, abs=1e-5)


@pytest.mark.parametrize("weights", [{"inter": 0.0}, {"intra": 0.0}])
def test_the_gradient_keeps_its_size_at_every_temperature(
    weights: dict[str, float], make_context: MakeContext
) -> None:
    ctx, norms = make_context(tiny_cnn()), []
    for temperature in (1.0, 4.0, 20.0):
        student_BC = random(64, 3).requires_grad_()
        plan = CorrelationTargets(temperature=temperature, **weights)
        loss = output_loss(plan, ctx, student_BC, random(64, 3, seed=1), LABELS)
        (gradient,) = torch.autograd.grad(loss, student_BC)
        norms.append(float(gradient.norm()))
    assert max(norms) < 2 * min(norms)


@pytest.mark.parametrize("temperature", [0.5, 4.0, 20.0])
def test_equal_outputs_have_no_loss(temperature: float, make_context: MakeContext) -> None:
    plan, logits_BC = CorrelationTargets(temperature=temperature), random(64, 3)
    loss = output_loss(plan, make_context(tiny_cnn()), logits_BC, logits_BC, LABELS)
    assert float(loss) == pytest.approx(0.0, abs=1e-5)


def test_a_student_whose_outputs_are_all_the_same_has_a_finite_gradient(
    make_context: MakeContext,
) -> None:
    student_BC = torch.zeros(4, 3, requires_grad=True)
    loss = output_loss(
        CorrelationTargets(), make_context(tiny_cnn()), student_BC, random(4, 3), LABELS[:4]
    )
    (gradient,) = torch.autograd.grad(loss, student_BC)
    assert float(gradient.abs().max()) < 1.0


def test_a_teacher_that_tells_no_classes_apart_does_not_count(make_context: MakeContext) -> None:
    ctx, plan = make_context(tiny_cnn()), CorrelationTargets(intra=0.0)
    student_BC, teacher_BC = random(3, 3), torch.cat([random(2, 3, seed=1), torch.zeros(1, 3)])
    some = output_loss(plan, ctx, student_BC, teacher_BC, LABELS[:3])
    two = output_loss(plan, ctx, student_BC[:2], teacher_BC[:2], LABELS[:2])
    assert torch.allclose(some, two)


@pytest.mark.parametrize("how", TRAININGS.values(), ids=TRAININGS)
def test_training_lowers_it(how: dict[str, Any], make_context: MakeContext) -> None:
    losses = losses_of_training(
        CorrelationTargets(), tiny_cnn(width=3), make_context(tiny_cnn()), **how
    )
    assert losses[-1] < 0.7 * losses[0]


def test_a_task_without_classes_is_refused_before_work(make_context: MakeContext) -> None:
    batch = next(make_context(tiny_cnn()).data.train.in_order(2))
    values = Regression(train=(torch.zeros(4, 2), torch.zeros(4)))
    with pytest.raises(SpecError, match=r"correlation_targets needs classes, .*'task' are values"):
        CorrelationTargets().preflight(tiny_cnn(), values, batch)


def test_two_weights_of_zero_are_refused() -> None:
    with pytest.raises(SpecError, match=r"one of `inter` and `intra` must be above 0"):
        CorrelationTargets(inter=0.0, intra=0.0)
