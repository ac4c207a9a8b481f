"""The residual networks for CIFAR-10 of He et al., CVPR 2016, section 4.2.

Shortcuts have no parameters (option A): they take every second pixel and pad new channels with
zeros on both sides.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        """Make a block that divides the image's sides by `stride`."""
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.padding = (channels - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        """Map `[B, C, H, W]` to `[B, channels, H / stride, W / stride]`."""
        shortcut = x
        if self.stride > 1 or self.padding > 0:
            strided = x[:, :, :: self.stride, :: self.stride]
            shortcut = F.pad(strided, (0, 0, 0, 0, self.padding, self.padding))
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + shortcut)


class CifarResNet(nn.Module):
    """Three stages of blocks, of `width`, 2 `width` and 4 `width` channels; then a linear layer."""

    def __init__(self, blocks: int, classes: int = 10, width: int = 16) -> None:
        """Make a network of `6 * blocks + 2` layers."""
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.layer1 = _stage(width, width, blocks, stride=1)
        self.layer2 = _stage(width, 2 * width, blocks, stride=2)
        self.layer3 = _stage(2 * width, 4 * width, blocks, stride=2)
        self.linear = nn.Linear(4 * width, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Map images `[B, 3, 32, 32]` to logits `[B, classes]`."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.layer3(self.layer2(self.layer1(out)))
        return self.linear(out.mean((2, 3)))


def _stage(channels_in: int, channels: int, blocks: int, stride: int) -> nn.Sequential:
    first = Block(channels_in, channels, stride)
    return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))


def resnet20(width: int = 16) -> CifarResNet:
    """Return a ResNet-20: 0.27 M parameters with 16 channels in the first stage."""
    return CifarResNet(3, width=width)


def resnet56(width: int = 16) -> CifarResNet:
    """Return a ResNet-56: 0.85 M parameters with 16 channels in the first stage."""
    return CifarResNet(9, width=width)
