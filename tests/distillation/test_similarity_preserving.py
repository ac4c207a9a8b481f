from typing import Any

import pytest
import torch
from torch import nn

from overhaul.distillation import SimilarityPreserving
from overhaul.testing import tiny_cnn
from tests.distillation.learning import (
    TRAININGS,
    MakeContext,
    layer_loss,
    losses_of_training,
    random,
)


def test_golden_value() -> None:
    # The student's two samples are orthogonal, G = identity; to the teacher they are one and the
    # same, each row of G is (1, 1) / sqrt(2). Each row differs by 2 - sqrt(2).
    student = torch.tensor([[1.0, 0.0], [0.0, 3.0]])
    teacher = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]])
    loss = layer_loss(SimilarityPreserving(), student, teacher)
    assert float(loss) == pytest.approx(2 - 2**0.5, abs=1e-6)


def test_it_is_the_formula_of_the_paper_times_the_batch() -> None:
    student, teacher = random(5, 3, 4, 4), random(5, 7, 2, 2, seed=1)
    rows = [
        nn.functional.normalize(each.flatten(1) @ each.flatten(1).T, dim=1)
        for each in (student, teacher)
    ]
    of_the_paper = (rows[0] - rows[1]).square().sum() / 25
    loss = layer_loss(SimilarityPreserving(), student, teacher)
    assert float(loss) == pytest.approx(5 * float(of_the_paper), rel=1e-5)


@pytest.mark.parametrize("shape", [(4, 3, 5, 5), (4, 6, 3), (4, 8)])
def test_equal_layers_have_no_loss_and_a_rotation_does_not_matter(shape: tuple[int, ...]) -> None:
    feature = random(*shape)
    assert float(layer_loss(SimilarityPreserving(), feature, feature)) == 0.0
    turn = torch.linalg.qr(random(feature[0].numel(), feature[0].numel(), seed=1)).Q
    turned = (feature.flatten(1) @ turn).reshape(feature.shape)
    assert float(layer_loss(SimilarityPreserving(), turned, feature)) < 1e-9


def test_a_batch_of_one_sample_has_no_loss() -> None:
    assert float(layer_loss(SimilarityPreserving(), random(1, 4), random(1, 3, seed=1))) == 0.0


@pytest.mark.parametrize("how", TRAININGS.values(), ids=TRAININGS)
def test_training_lowers_it(how: dict[str, Any], make_context: MakeContext) -> None:
    losses = losses_of_training(
        SimilarityPreserving(), tiny_cnn(width=3), make_context(tiny_cnn()), **how
    )
    assert losses[-1] < 0.7 * losses[0]
