"""The demo: the main job on scikit-learn's digits, which come with the package."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overhaul.core import Progress, Task, seeded
from overhaul.deploy import Deploy
from overhaul.distillation import Distill
from overhaul.evaluation import Goal
from overhaul.pruning import PruneChannels, Taylor
from overhaul.running import Recipe, Run
from overhaul.tasks import Classification
from overhaul.training import AdamW, Train


class DigitsNet(nn.Module):
    """A small convolutional network for images of 8 x 8."""

    def __init__(self, width: int) -> None:
        """Make a network with `width` channels in its first layer and twice that in its second."""
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.norm2 = nn.BatchNorm2d(2 * width)
        self.hidden = nn.Linear(2 * width * 4, 4 * width)
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, 1, 8, 8]` to logits `[B, 10]`."""
        x = F.max_pool2d(F.relu(self.norm1(self.conv1(x))), 2)
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)
        logits: Tensor = self.head(F.relu(self.hidden(x.flatten(1))))
        return logits


def train_existing_model(task: Task, epochs: int = 12) -> DigitsNet:
    """Train the model that the demo takes as given, by a plain loop."""
    data = task.prepare()
    with seeded(0):
        net = DigitsNet(width=64)
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        for _ in range(epochs):
            for indices in torch.split(torch.randperm(len(data.train)), 64):
                batch = data.train.read(indices)
                optimizer.zero_grad()
                task.loss(batch.forward(net), batch.targets).backward()
                optimizer.step()
    return net.eval()


def run_demo(out: Path, progress: Progress) -> Run:
    """Prune the channels of a network that was trained on digits, distill, deploy.

    On one thread: such a small network is not faster on more, and what training makes of it depends
    on how many there are.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _run(out, progress)
    finally:
        torch.set_num_threads(before)


def _run(out: Path, progress: Progress) -> Run:
    task = Classification(data="digits", test_fraction=0.4, seed=1)
    progress.say("training the network that the demo takes as given (a plain torch loop)")
    net = train_existing_model(task)
    recipe = Recipe(
        PruneChannels(macs=0.1, criterion=Taylor()),
        Train(epochs=40, objective=Distill(weight=0.9), optimizer=AdamW(lr=5e-3)),
        Deploy(engines=("torch", "onnxruntime")),
    )
    return recipe.run(net, task, out=out, goal=Goal(max_drop=0.02), progress=progress)
