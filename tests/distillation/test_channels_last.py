"""A network that cannot take images stored channels last keeps them from being stored so."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import CheckpointFolder, Context, ModelError, Network
from overhaul.distillation import Distill, GradientMatching, Mutual
from overhaul.tasks import Classification
from overhaul.training import Objective, Train

MakeContext = Callable[..., Context]


class Student(nn.Module):
    """Convolution and BatchNorm, for which training on a CPU stores images channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.bn(self.conv(x)).relu().mean((2, 3)))
        return logits


class Viewing(nn.Module):
    """Its `view` needs images stored one channel after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 3), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(x).view(len(x), -1))
        return logits


OBJECTIVES: dict[str, Callable[[], Objective]] = {
    "teacher": lambda: Distill(teacher=Viewing()),
    "differentiated teacher": lambda: Distill(teacher=Viewing(), match=[GradientMatching()]),
    "one of two teachers": lambda: Distill(teacher=(Student(), Viewing())),
    "peer": lambda: Mutual(peers=[Network(factory=Viewing)]),
}


def images() -> Classification:
    x, labels = torch.randn(72, 3, 6, 6), torch.arange(72) % 3
    train, val, test = ((x[n : n + 24], labels[n : n + 24]) for n in (0, 24, 48))
    return Classification(train=train, val=val, test=test)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_others_that_view_images_are_trained_with(
    name: str, make_context: MakeContext, tmp_path: Path
) -> None:
    model, objective = Student(), OBJECTIVES[name]()
    ctx = make_context(model, task=images())
    Train(epochs=1, batch_size=8, objective=objective).apply(model, ctx)
    assert [fact for fact in ctx.facts if fact.name == "train_loss"]
    assert model.conv.weight.is_contiguous()
    again = make_context(model, task=ctx.task, checkpoints=CheckpointFolder(tmp_path / "again"))
    with pytest.raises(ModelError, match="a network that it learns from cannot do it"):
        Train(epochs=1, objective=objective, channels_last=True).apply(model, again)
    assert model.conv.weight.is_contiguous()
