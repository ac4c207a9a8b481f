"""The network of a well-known tutorial on convolutional networks, for images of 10 x 10."""

import torch.nn.functional as F
from torch import Tensor, nn


class TutorialNet(nn.Module):
    """Two convolutions and two linear layers, with a flattened size written into the code."""

    def __init__(self) -> None:
        """Make the network for one input channel and ten classes."""
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.fc1 = nn.Linear(64 * 6 * 6, 100)
        self.fc2 = nn.Linear(100, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[B, 1, 10, 10]` to logits `[B, 10]`."""
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = x.view(-1, 64 * 6 * 6)
        return self.fc2(F.relu(self.fc1(x)))


class StudentNet(nn.Module):
    """The same network with a quarter of the channels."""

    def __init__(self) -> None:
        """Make the network for one input channel and ten classes."""
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3)
        self.conv2 = nn.Conv2d(8, 16, 3)
        self.fc1 = nn.Linear(16 * 6 * 6, 25)
        self.fc2 = nn.Linear(25, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[B, 1, 10, 10]` to logits `[B, 10]`."""
        x = F.relu(self.conv1(x))
        x = F.relu(self.conv2(x))
        x = x.view(-1, 16 * 6 * 6)
        return self.fc2(F.relu(self.fc1(x)))
