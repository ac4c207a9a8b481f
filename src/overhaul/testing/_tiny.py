"""Tiny models and tiny data, so that a test takes milliseconds."""

import torch
from torch import Tensor, nn

from overhaul.core import seeded
from overhaul.multitask import MultiTask
from overhaul.tasks import Classification


class TinyCNN(nn.Module):
    """A convolutional network with BatchNorm and dropout for images `[B, 1, 8, 8]`."""

    def __init__(self, width: int = 6, classes: int = 3) -> None:
        """Make a network with `width` channels."""
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(width * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, 1, 8, 8]` to logits `[B, classes]`."""
        x = torch.max_pool2d(torch.relu(self.bn(self.conv(x))), 2)
        logits: Tensor = self.fc(self.dropout(x.flatten(1)))
        return logits


def tiny_cnn(width: int = 6, classes: int = 3) -> TinyCNN:
    """Return a `TinyCNN` whose weights depend on its size alone."""
    with seeded(0):
        return TinyCNN(width, classes)


class TinyResidual(nn.Module):
    """Residual blocks of one shape, for images `[B, 1, 8, 8]`."""

    def __init__(self, blocks: int = 3, width: int = 6, classes: int = 3) -> None:
        """Make a network with `width` channels."""
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.Sequential(*(_Block(width) for _ in range(blocks)))
        self.fc = nn.Linear(width * 16, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, 1, 8, 8]` to logits `[B, classes]`."""
        x = torch.max_pool2d(self.blocks(torch.relu(self.stem(x))), 2)
        logits: Tensor = self.fc(x.flatten(1))
        return logits


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.bn(self.conv(x)))


def tiny_residual(blocks: int = 3) -> TinyResidual:
    """Return a `TinyResidual` whose weights depend on its size alone."""
    with seeded(0):
        return TinyResidual(blocks)


def tiny_arrays(samples: int = 48, classes: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return noisy images `[N, 1, 8, 8]` with a bright column per class, and labels `[N]`."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(samples) % classes
    images = torch.rand(samples, 1, 8, 8, generator=generator)
    images[torch.arange(samples), 0, :, 2 * labels] += 1.0
    return images, labels


def tiny_task() -> Classification:
    """Return a classification task of three classes that a `TinyCNN` learns in a few epochs."""
    return Classification(
        train=tiny_arrays(48, seed=1), val=tiny_arrays(24, seed=2), test=tiny_arrays(24, seed=3)
    )


def tiny_multi_task() -> MultiTask:
    """Return two tasks on the images of `tiny_task`: the class, and whether its number is odd."""
    images, labels = tiny_arrays(48, seed=1)
    val_images, val_labels = tiny_arrays(24, seed=2)
    test_images, test_labels = tiny_arrays(24, seed=3)
    return MultiTask(
        tasks={"number": Classification(classes=3), "odd": Classification(classes=2)},
        train=(images, {"number": labels, "odd": labels % 2}),
        val=(val_images, {"number": val_labels, "odd": val_labels % 2}),
        test=(test_images, {"number": test_labels, "odd": test_labels % 2}),
    )
