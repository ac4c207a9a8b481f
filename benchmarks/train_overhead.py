"""What the loop of `Train` costs over a hand-written loop of the same training.

Both train the same network on the same batches in the same order with the same optimizer and
schedule, measure accuracy on the validation split after each epoch and keep the best weights. They
run in turn, one thread each; the figure is the ratio of their times within a pair.

    python benchmarks/train_overhead.py --out benchmarks/results/train_overhead.json
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import overhaul as oh
from overhaul.core import CheckpointFolder, Context, Splits, seeded
from overhaul.training import Cosine


@dataclass(frozen=True)
class Case:
    """A training to compare on."""

    title: str
    channels: int
    size: int
    samples: int
    epochs: int


CASES = (
    Case("small CNN, 28 x 28, batch 64", channels=16, size=28, samples=24576, epochs=1),
    Case("tiny CNN, 8 x 8, batch 64 (worst case)", channels=8, size=8, samples=4096, epochs=2),
)


def network(case: Case) -> nn.Module:
    """Return two convolutions with BatchNorm and a linear layer."""
    wide = 2 * case.channels
    return nn.Sequential(
        nn.Conv2d(1, case.channels, 3, padding=1),
        nn.BatchNorm2d(case.channels),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(case.channels, wide, 3, padding=1),
        nn.BatchNorm2d(wide),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(4 * wide, 10),
    )


def arrays(case: Case, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Return random images with labels in turn."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(samples, 1, case.size, case.size, generator=generator)
    return images, torch.arange(samples) % 10


def seconds_of(
    plan: oh.Train,
    net: nn.Module,
    task: oh.Task,
    data: Splits,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Train a network in place and return the seconds."""
    with tempfile.TemporaryDirectory() as folder:
        ctx = Context(
            task=task,
            data=data,
            original=net,
            checkpoints=CheckpointFolder(Path(folder) / "checkpoints"),
            artifact_folder=Path(folder) / "artifact",
            progress=oh.Progress(quiet=True),
        )
        start = clock()
        plan.apply(net, ctx)
        return clock() - start


def by_hand(case: Case, net: nn.Module, data: Splits) -> float:
    """Train with a plain loop and return the seconds."""
    train = data.train.read(torch.arange(len(data.train)))
    images, labels = train.inputs[0], train.targets
    val = data.val.read(torch.arange(len(data.val)))
    assert isinstance(labels, Tensor)
    assert isinstance(val.targets, Tensor)
    start = time.perf_counter()
    net = net.to(memory_format=torch.channels_last)
    matrices = [p for p in net.parameters() if p.ndim >= 2]
    vectors = [p for p in net.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [
            {"params": matrices, "weight_decay": 0.01},
            {"params": vectors, "weight_decay": 0.0},
        ],
        lr=1e-3,
    )
    schedule, step, best = Cosine(), 0, -1.0
    steps = case.epochs * -(-len(labels) // 64)
    for epoch in range(case.epochs):
        net.train()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(epoch))
        for indices in torch.split(order, 64):
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * schedule.factor((step + 0.5) / steps)
            x = images[indices].contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(net(x), labels[indices])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if not loss.isfinite():
                raise ArithmeticError("the loss is not finite")
            step += 1
        net.eval()
        with torch.no_grad():
            logits = torch.cat([net(part) for part in torch.split(val.inputs[0], 256)])
        accuracy = float((logits.argmax(1) == val.targets).float().mean())
        if accuracy > best:
            best, kept = accuracy, deepcopy(net.state_dict())
    net.load_state_dict(kept)
    return time.perf_counter() - start


def measure(case: Case, pairs: int) -> dict[str, object]:
    """Run both in turn and return ratios and times."""
    task = oh.Classification(
        train=arrays(case, case.samples, 0),
        val=arrays(case, 256, 1),
        test=arrays(case, 64, 2),
    )
    data = task.prepare()
    with seeded(0):
        net = network(case)
    plan = oh.Train(epochs=case.epochs, batch_size=64, channels_last=True)
    found = compare(
        {
            "ours": lambda: seconds_of(plan, deepcopy(net), task, data),
            "by_hand": lambda: by_hand(case, deepcopy(net), data),
        },
        pairs,
    )
    return {"case": case.title, **found, "steps": case.epochs * -(-case.samples // 64)}


def compare(trainings: Mapping[str, Callable[[], float]], pairs: int) -> dict[str, object]:
    """Run two trainings in turn and return the ratios of their seconds, first over second."""
    first, second = trainings
    times = []
    for number in range(pairs + 1):
        order = (first, second) if number % 2 == 0 else (second, first)
        pair = {name: trainings[name]() for name in order}
        if number > 0:  # the first pair warms up
            times.append(pair)
    ratios = sorted(pair[first] / pair[second] for pair in times)
    return {
        "median_ratio": statistics.median(ratios),
        "quartiles": statistics.quantiles(ratios, n=4),
        f"{first}_s": statistics.median(pair[first] for pair in times),
        f"{second}_s": statistics.median(pair[second] for pair in times),
        "pairs": pairs,
    }


def main() -> None:
    """Measure every case, print a line each, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pairs", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results = []
    for case in CASES:
        found = measure(case, arguments.pairs)
        results.append(found)
        low, _, high = found["quartiles"]  # type: ignore[misc]
        print(
            f"{found['case']}: {100 * (found['median_ratio'] - 1):+.1f} % "  # type: ignore[operator]
            f"(quartiles {100 * (low - 1):+.1f} to {100 * (high - 1):+.1f} %), "
            f"{found['by_hand_s']:.2f} s by hand, {found['steps']} steps",
            flush=True,
        )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
