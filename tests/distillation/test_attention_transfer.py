from typing import Any

import pytest
import torch

from overhaul.core import ModelError
from overhaul.distillation import AttentionTransfer, Layer, Pair
from overhaul.testing import tiny_cnn
from tests.distillation.learning import (
    TRAININGS,
    MakeContext,
    layer_loss,
    losses_of_training,
    random,
)


def test_golden_value() -> None:
    # Maps (9, 16 + 0) -> (3, 4)^2; the teacher's is all at the first place: (1, 0).
    # Unit vectors (9, 16) / sqrt(337) and (1, 0): half the squared distance is 1 - 9 / sqrt(337).
    student = torch.tensor([[[[3.0, 0.0]], [[0.0, 4.0]]]])
    teacher = torch.tensor([[[[5.0, 0.0]]]])
    loss = layer_loss(AttentionTransfer(), student, teacher)
    assert float(loss) == pytest.approx(1 - 9 / 337**0.5, abs=1e-6)


def test_equal_layers_have_no_loss() -> None:
    feature = random(4, 3, 5, 5)
    assert float(layer_loss(AttentionTransfer(), feature, feature)) == 0.0


def test_the_scale_of_a_layer_does_not_matter() -> None:
    feature = random(4, 3, 5, 5)
    assert float(layer_loss(AttentionTransfer(), 1000 * feature, feature)) < 1e-9


def test_larger_maps_are_averaged_to_the_smaller_size() -> None:
    teacher = random(2, 4, 3, 3)
    student = teacher.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert float(layer_loss(AttentionTransfer(), student, teacher)) < 1e-9


def test_sequences_go_by_place() -> None:
    sequence_BTC = random(2, 6, 4)
    mixed_BTC = sequence_BTC[:, :, torch.tensor([2, 0, 3, 1])]
    assert float(layer_loss(AttentionTransfer(), mixed_BTC, sequence_BTC)) < 1e-9
    assert float(layer_loss(AttentionTransfer(), sequence_BTC.flip(1), sequence_BTC)) > 0.01


def test_a_layer_that_is_dead_has_a_finite_gradient() -> None:
    student = torch.zeros(2, 3, 4, 4, requires_grad=True)
    loss = layer_loss(AttentionTransfer(), student, random(2, 3, 4, 4))
    (gradient,) = torch.autograd.grad(loss, student)
    assert float(gradient.abs().max()) == 0.0


@pytest.mark.parametrize("how", TRAININGS.values(), ids=TRAININGS)
def test_training_lowers_it(how: dict[str, Any], make_context: MakeContext) -> None:
    losses = losses_of_training(
        AttentionTransfer(), tiny_cnn(width=3), make_context(tiny_cnn()), **how
    )
    assert losses[-1] < 0.7 * losses[0]


def test_layers_without_places_are_left_to_others() -> None:
    image, pooled = Layer("conv", 4, (8, 8), False), Layer("pool", 4, (1, 1), False)
    pairs = (Pair(image, image), Pair(pooled, pooled))
    assert AttentionTransfer().choose(pairs) == pairs[:1]
    with pytest.raises(ModelError, match=r"no pair of layers found by 'auto' has more than one"):
        AttentionTransfer().choose(pairs[1:])


def test_a_named_layer_without_places_is_refused() -> None:
    with pytest.raises(ModelError, match=r"compares places, and one of own \(3 channels\)"):
        layer_loss(AttentionTransfer(), torch.zeros(2, 3), torch.zeros(2, 3))


def test_an_image_and_a_sequence_are_refused() -> None:
    with pytest.raises(ModelError, match=r"attention_transfer: two layers must have one length"):
        layer_loss(AttentionTransfer(), torch.zeros(2, 3, 4, 4), torch.zeros(2, 17, 3))
