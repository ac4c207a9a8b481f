"""Does channels-last memory help training on this CPU? Time per step, interleaved, one thread.

python benchmarks/channels_last.py --out benchmarks/results/channels_last.json
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from overhaul.evaluation import measure_latency

sys.path.insert(0, str(Path(__file__).parent.parent / "examples"))
from cifar_resnet import resnet20


def training_step(model: nn.Module, images: Tensor, *, channels_last: bool) -> object:
    """Return a function that computes one forward and backward pass."""
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(len(images), dtype=torch.long)

    def step() -> None:
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()

    return step


def main() -> None:
    """Measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out

    import torchvision.models

    cases = {
        "ResNet-20, 64 x 3 x 32 x 32": (resnet20, (64, 3, 32, 32)),
        "MobileNetV2, 8 x 3 x 96 x 96": (torchvision.models.mobilenet_v2, (8, 3, 96, 96)),
        "ResNet-18, 8 x 3 x 96 x 96": (torchvision.models.resnet18, (8, 3, 96, 96)),
    }
    results = {}
    for name, (factory, shape) in cases.items():
        images = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        found = measure_latency(
            {
                "contiguous": training_step(factory(), images, channels_last=False),
                "channels_last": training_step(factory(), images, channels_last=True),
            },
            time_s=2.0,
        )
        results[name] = {key: value.model_dump() for key, value in found.items()}
        last = found["channels_last"]
        print(
            f"{name}: {found['contiguous'].median_ms:.1f} ms contiguous, {last.median_ms:.1f} ms "
            f"channels last, ratio {last.ratio:.2f} "
            f"({last.ratio_interval[0]:.2f} to {last.ratio_interval[1]:.2f})"
        )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
