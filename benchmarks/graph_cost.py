"""Time and memory of analysis and surgery, ours and Torch-Pruning's, and how they grow with depth.

python benchmarks/graph_cost.py --out benchmarks/results/graph_cost.json
"""

import argparse
import copy
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from coverage_models import Case, build, torch_pruner
from torch import Tensor, nn

from overhaul.graph import Graph, check_removal

MODELS = [
    ("torchvision", "resnet18"),
    ("torchvision", "resnet50"),
    ("torchvision", "mobilenet_v2"),
    ("torchvision", "efficientnet_b0"),
    ("torchvision", "densenet121"),
    ("torchvision", "convnext_tiny"),
    ("timm", "mixer_s16_224"),
    ("transformers", "BertForSequenceClassification"),
]
DEPTHS = (10, 100, 1000)
RATIO = 0.5
LIMIT_S = 150
WAYS = ("ours", "ours_with_oracle", "torch_pruning")


class Residual(nn.Module):
    """A residual MLP: `x + f(x)`, as often as wanted."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        self.first = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(depth)
        )
        self.last = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + block(x)
        out: Tensor = self.last(x)
        return out


def case_of(which: str, name: str) -> Case:
    if which == "depth":
        torch.manual_seed(0)
        model = Residual(int(name)).eval()
        return Case(model, (torch.randn(1, 8),), {}, [model.last])
    return build(which, name)


def ours(case: Case, *, oracle: bool) -> None:
    graph = Graph(case.model, case.inputs, case.named_inputs)
    units = {
        group.name: range(count)
        for group in graph.groups
        if (count := min(int(RATIO * group.units), group.units - 1))
    }
    if oracle:
        check_removal(case.model, graph, units, case.inputs, case.named_inputs)
    graph.remove(units).apply(case.model)


def once(way: str, case: Case) -> None:
    if way == "torch_pruning":
        torch_pruner(case, RATIO).step()
    else:
        ours(case, oracle=way == "ours_with_oracle")


def worker(what: str, which: str, name: str, rounds: int) -> None:
    """Print the seconds of each way in turn, or the bytes that one way takes at its peak."""
    torch.set_num_threads(1)
    case = case_of(which, name)
    case.outputs(case.model)
    if not what.startswith("time"):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        once(what, case)
        print(json.dumps((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024))
        return
    ways = WAYS if what == "time" else WAYS[:2]
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    for round_ in range(rounds + 1):
        for way in ways:
            own = copy.deepcopy(case)
            start = time.perf_counter()
            once(way, own)
            if round_:  # the first is for imports and caches
                seconds[way].append(time.perf_counter() - start)
    print(json.dumps(seconds))


def apart(*arguments: str, limit_s: float = LIMIT_S) -> Any:
    command = [sys.executable, __file__, "--worker", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT_S} s"
    if done.returncode:
        return done.stderr.strip().splitlines()[-1][:120]
    return json.loads(done.stdout.strip().splitlines()[-1])


def main() -> None:
    """Measure, write JSON, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        what, which, name, rounds = options.worker
        worker(what, which, name, int(rounds))
        return
    results: dict[str, Any] = {}
    print(
        "| model | ours, s | with the oracle, s | Torch-Pruning, s | time, ours over theirs "
        "(with the oracle) | added memory, MB: ours, with the oracle, theirs |"
    )
    print("|---|---|---|---|---|---|")
    for which, name in [*MODELS, *(("depth", str(depth)) for depth in DEPTHS)]:
        rounds = "1" if name == "1000" else str(options.rounds)
        seconds = apart("time", which, name, rounds)
        failed = seconds if isinstance(seconds, str) else ""
        if failed:
            seconds = apart("time_ours", which, name, rounds)
        memory = {way: apart(way, which, name, "1") for way in WAYS}
        results[f"{which} {name}"] = {
            "seconds": seconds,
            "torch_pruning_failed": failed,
            "added_bytes": memory,
        }
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        middle = {way: statistics.median(seconds[way]) for way in seconds}
        theirs = middle.get("torch_pruning")
        ratio = {way: middle[way] / theirs if theirs else float("nan") for way in WAYS[:2]}
        megabytes = ", ".join(
            "?" if isinstance(memory[way], str) else f"{memory[way] / 1e6:.0f}" for way in WAYS
        )
        shown = f"{theirs:.3f}" if theirs else failed
        title = f"residual MLP, {name} blocks" if which == "depth" else name
        print(
            f"| {title} | {middle['ours']:.3f} | {middle['ours_with_oracle']:.3f} | "
            f"{shown} | {ratio['ours']:.2f} ({ratio['ours_with_oracle']:.2f}) | {megabytes} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
