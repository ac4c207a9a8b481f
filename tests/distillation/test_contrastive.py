from typing import Any

import pytest
import torch
from torch import Tensor, nn

from overhaul.distillation import Contrastive, Distill, Layer, Pair
from tests.distillation.learning import (
    TRAININGS,
    MakeContext,
    batch_of,
    layer_loss,
    losses_of_training,
    random,
)


def network(width: int, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, width, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d((1, 4)),
        nn.Flatten(),
        nn.Linear(4 * width, 3),
    )


def bound_loss(plan: Contrastive, student: Tensor, teacher: Tensor, labels_B: Tensor) -> float:
    """Return the loss with projectors that keep the features as they are."""
    layers = [Layer(path, student.shape[1], (), False) for path in ("own", "theirs")]
    bound = plan.bind_pairs((Pair(*layers),), nn.Identity(), nn.Identity(), batch_of(labels_B))
    with torch.no_grad():
        for module in bound.modules():
            if isinstance(module, nn.Linear):
                module.weight.copy_(torch.eye(student.shape[1]))
                module.bias.zero_()
    loss = bound.pair_loss(0, student[:, :, None], teacher[:, :, None], batch_of(labels_B))
    return float(loss.detach())


def test_golden_value() -> None:
    # Two samples, orthogonal in both spaces: -log(e / (e + 1)) at temperature 1.
    feature = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    plan = Contrastive(dimensions=2, temperature=1.0)
    loss = bound_loss(plan, feature, feature, torch.arange(2))
    assert loss == pytest.approx(0.313262, abs=1e-5)


def test_samples_of_one_class_are_not_told_apart() -> None:
    feature = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    plan = Contrastive(dimensions=2, temperature=1.0)
    assert bound_loss(plan, feature, feature, torch.tensor([1, 1])) == 0.0
    unknown = bound_loss(plan, feature, feature, torch.tensor([-1, -1]))
    assert unknown == pytest.approx(0.313262, abs=1e-5)


def test_the_loss_is_lower_where_features_agree() -> None:
    feature = random(8, 6)
    plan = Contrastive(dimensions=6)
    same = bound_loss(plan, feature, feature, torch.arange(8))
    assert same < 0.1 * bound_loss(plan, feature, feature.flip(0), torch.arange(8))


@pytest.mark.parametrize(
    ("own", "theirs"), [((4, 3, 5, 5), (4, 7, 2, 2)), ((4, 6, 3), (4, 9, 5)), ((4, 8), (4, 2, 3))]
)
def test_features_may_have_any_sizes(own: tuple[int, ...], theirs: tuple[int, ...]) -> None:
    assert torch.isfinite(layer_loss(Contrastive(), random(*own), random(*theirs)))


def test_one_sample_has_no_loss() -> None:
    assert float(layer_loss(Contrastive(), random(1, 4), random(1, 4)).detach()) == 0.0


def test_a_task_of_values_has_no_classes() -> None:
    values = torch.tensor([1.0, 1.0, 1.0])
    assert float(layer_loss(Contrastive(), random(3, 4), random(3, 4), values).detach()) > 0.0


@pytest.mark.parametrize("how", TRAININGS.values(), ids=TRAININGS)
def test_training_lowers_it(how: dict[str, Any], make_context: MakeContext) -> None:
    student, plan = network(3, seed=1), Contrastive(layers=[("2", "2"), ("3", "3")])
    names = set(student.state_dict())
    losses = losses_of_training(plan, student, make_context(network(6, seed=2)), epochs=10, **how)
    assert losses[-1] < 0.7 * losses[0]
    assert set(student.state_dict()) == names


def test_both_projectors_are_trained(make_context: MakeContext) -> None:
    ctx = make_context(network(6, seed=2))
    plan = Distill(match=[Contrastive(layers=[("3", "3")])])
    bound = plan.bind(network(3, seed=1), ctx)
    trained = [tuple(each.shape) for each in bound.parameters() if each.requires_grad]
    assert trained == [(128, 12), (128,), (128, 24), (128,)]
