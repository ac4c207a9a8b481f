"""What half the MACs of a ResNet-56 are worth in time, by the multiple that channels keep to.

    python benchmarks/prune_latency.py --out benchmarks/results/prune_latency.json

Nothing is trained, since only sizes matter here. All are timed in turns in ONNX Runtime, one
thread, beside the network that is not pruned.
"""

import argparse
import json
import sys
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

import overhaul as oh
from overhaul.core import CheckpointFolder, Context
from overhaul.evaluation import count_macs, count_parameters, measure_latency

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from cifar_resnet import resnet56
from prune_resnet import onnx_call

MULTIPLES = (1, 4, 8)
BATCHES = (1, 32)
TIME_S = 3.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    torch.manual_seed(0)
    original = resnet56().eval()
    images = torch.randn(64, 3, 32, 32)
    task = oh.Classification(train=(images, torch.arange(64) % 10))
    data = task.prepare()
    models = {"not pruned": original}
    for multiple in MULTIPLES:
        with tempfile.TemporaryDirectory() as folder:
            ctx = Context(
                task=task,
                data=data,
                original=original,
                checkpoints=CheckpointFolder(Path(folder)),
                artifact_folder=Path(folder),
            )
            step = oh.PruneChannels(macs=0.5, multiple=multiple)
            models[f"multiple={multiple}"] = step.apply(deepcopy(original), ctx).eval()
    one = next(data.train.in_order(1))
    rows: dict[str, dict[str, Any]] = {
        name: {
            "macs": count_macs(model, one).per_sample,
            "parameters": count_parameters(model),
            "channels": sorted(
                {m.out_channels for m in model.modules() if isinstance(m, torch.nn.Conv2d)}
            ),
        }
        for name, model in models.items()
    }
    for size in BATCHES:
        batch = next(data.train.in_order(size))
        calls = {name: onnx_call(model, batch) for name, model in models.items()}
        for name, found in measure_latency(calls, reference="not pruned", time_s=TIME_S).items():
            rows[name][f"latency, batch {size}"] = found.model_dump(mode="json")
    options.out.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    print(table(rows))


def table(rows: dict[str, dict[str, Any]]) -> str:
    base = rows["not pruned"]
    lines = ["| | MACs | channels | batch 1 | batch 32 |", "|---|---|---|---|---|"]
    for name, row in rows.items():
        cells = [
            name,
            f"{row['macs'] / base['macs']:.2f} x",
            ", ".join(map(str, row["channels"])),
        ]
        for size in BATCHES:
            found = row[f"latency, batch {size}"]
            low, high = found["ratio_interval"]
            ratio = f"{found['ratio']:.2f} x ({low:.2f}-{high:.2f})"
            cells.append(f"{found['median_ms']:.3g} ms, {ratio}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
