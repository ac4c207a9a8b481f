"""Models and batches that several tests of this room share."""

import pytest
import torch
from torch import nn

from overhaul.core import Batch


@pytest.fixture
def network() -> nn.Sequential:
    """A network with batch normalization and dropout, in training mode."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4 * 36, 2),
    )


@pytest.fixture
def images() -> Batch:
    return Batch((torch.randn(5, 1, 8, 8),), torch.tensor([0, 1, 0, 1, 1]), torch.arange(5))
