from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from overhaul.core import SpecError
from overhaul.distillation import Layer, Pair, Relational
from overhaul.testing import tiny_cnn
from tests.distillation.learning import (
    TRAININGS,
    MakeContext,
    layer_loss,
    losses_of_training,
    random,
)

DISTANCES, ANGLES = Relational(angle=0.0), Relational(distance=0.0, angle=1.0)


def angles(feature_BF: Tensor) -> Tensor:
    """Return the cosine of each angle of three samples, by their differences."""
    count = len(feature_BF)
    found = []
    for i in range(count):
        for j in range(count):
            for k in range(count):
                if len({i, j, k}) == 3:
                    to_i, to_k = feature_BF[i] - feature_BF[j], feature_BF[k] - feature_BF[j]
                    found.append(F.cosine_similarity(to_i, to_k, dim=0))
    return torch.stack(found)


def test_golden_value_of_distances() -> None:
    # Sides 3, 4, 5 over their mean 4 against sides 1, 1, 1: gaps 1/4, 0, 1/4, so Huber 1/32 twice.
    student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
    assert float(layer_loss(DISTANCES, student, teacher)) == pytest.approx(1 / 48, abs=1e-6)


def test_golden_value_of_angles() -> None:
    # Cosines 0, 3/5, 4/5 against 1/2 three times: gaps 1/2, 1/10, 3/10.
    student = torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 4.0]])
    teacher = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.5, 0.75**0.5]])
    by_hand = 0.5 * (0.25 + 0.01 + 0.09) / 3
    assert float(layer_loss(ANGLES, student, teacher)) == pytest.approx(by_hand, abs=1e-6)


def test_angles_are_those_of_differences() -> None:
    student, teacher = random(5, 4), random(5, 3, seed=1)
    by_hand = F.smooth_l1_loss(angles(student), angles(teacher))
    assert float(layer_loss(ANGLES, student, teacher)) == pytest.approx(float(by_hand), rel=1e-4)


def test_angles_of_samples_close_together_far_from_zero_are_right() -> None:
    near = random(5, 4)
    far = 300.0 + near
    assert float(layer_loss(ANGLES, far, near)) < 1e-6


def test_the_weights_belong_to_their_parts() -> None:
    student, teacher = random(5, 4), random(5, 3, seed=1)
    both = layer_loss(Relational(distance=3.0, angle=5.0), student, teacher)
    parts = 3 * layer_loss(DISTANCES, student, teacher) + 5 * layer_loss(ANGLES, student, teacher)
    assert float(both) == pytest.approx(float(parts), rel=1e-5)


@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 6, 3), (4, 8)])
def test_equal_layers_have_no_loss_and_scale_and_place_do_not_matter(
    shape: tuple[int, ...],
) -> None:
    feature = random(*shape)
    assert float(layer_loss(Relational(), feature, feature)) == 0.0
    assert float(layer_loss(Relational(), 7 * feature + 2, feature)) < 1e-9


def test_samples_that_are_the_same_have_a_finite_gradient() -> None:
    student = random(4, 3)
    student[1] = student[0]
    student[2:] = 0.0
    student.requires_grad_()
    (gradient,) = torch.autograd.grad(
        layer_loss(Relational(), student, random(4, 3, seed=1)), student
    )
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("samples", [1, 2])
def test_too_few_samples_for_an_angle_have_no_loss(samples: int) -> None:
    student = random(samples, 4).requires_grad_()
    loss = layer_loss(Relational(), student, random(samples, 4, seed=1))
    (gradient,) = torch.autograd.grad(loss, student)
    assert float(loss.detach()) == 0.0
    assert torch.isfinite(gradient).all()


@pytest.mark.parametrize("how", TRAININGS.values(), ids=TRAININGS)
def test_training_lowers_it(how: dict[str, Any], make_context: MakeContext) -> None:
    losses = losses_of_training(
        Relational(weight=100.0), tiny_cnn(width=3), make_context(tiny_cnn()), **how
    )
    assert losses[-1] < 0.7 * losses[0]


def test_the_last_pair_is_taken() -> None:
    layers = [Layer(name, 4, (8, 8), False) for name in ("first", "last")]
    pairs = tuple(Pair(layer, layer) for layer in layers)
    assert Relational().choose(pairs) == pairs[1:]


def test_two_weights_of_zero_are_refused() -> None:
    with pytest.raises(SpecError, match=r"one of `distance` and `angle` must be above 0"):
        Relational(distance=0.0, angle=0.0)
