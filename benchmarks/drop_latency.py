"""What blocks of a ResNet-56 cost in 8 bits, by the stage that they are in.

    pip install nncf
    python benchmarks/drop_latency.py --out benchmarks/results/drop_latency.json

Nothing is trained and the images are random, since only sizes matter here. As many blocks as the
row says are taken out of the end of each stage, then `Quantize` and `Deploy` follow. All
are timed in turns, one thread, batch 1, beside NNCF's file of the network with all blocks.
"""

import argparse
import json
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from cifar_resnet import resnet56
from quantization import feed_of, nncf_openvino
from quantization_models import Case

import overhaul as oh
from overhaul.core import Step
from overhaul.evaluation import measure_latency

BLOCKS, SAMPLES, TIME_S = 9, 32, 5.0
DROPPED = (
    (0, 0, 0),
    (4, 0, 0),
    (0, 4, 0),
    (0, 0, 4),
    (4, 2, 0),
    (4, 3, 0),
    (4, 3, 1),
    (5, 4, 0),
    (5, 5, 0),
    (5, 4, 1),
    (6, 4, 1),
    (6, 4, 2),
    (6, 5, 1),
    (7, 6, 1),
)
DEPLOY = oh.Deploy(
    engines=("onnxruntime", "openvino"),
    tolerance=0.9,
    quality_tolerance=0.9,
    timing_s=0.5,
    throughput_batch=2,
    cost=False,
)
PEER = "NNCF, OpenVINO, all blocks"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = torch.randn(96, 3, 32, 32), torch.arange(96) % 10
    parts = {"train": slice(64), "val": slice(64, 80), "test": slice(80, 96)}
    task = oh.Classification(**{name: (images[p], labels[p]) for name, p in parts.items()})
    model = resnet56().eval()
    case = Case(model, task, quality=False)
    data = task.prepare()
    samples = list(data.train.batches([torch.tensor([number]) for number in range(SAMPLES)]))
    feed = feed_of(case, samples[0])
    calls: dict[str, Callable[[], object]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, fixed in ((PEER, False), (f"{PEER}, one sample only", True)):
            run, _ = nncf_openvino(case, samples, fixed=fixed)(Path(folder))
            calls[name] = lambda run=run: run(feed)
        for counts in DROPPED:
            name = "-".join(map(str, counts))
            out = Path(folder) / name
            steps = (*dropped(counts), oh.Quantize(batches=1), DEPLOY)
            made = oh.Recipe(*steps).run(model, task, out=out, control=False, cost=False)
            artifact, image = oh.load(made.artifact, threads=1), samples[0].inputs[0]
            calls[name] = lambda artifact=artifact, image=image: artifact(image)
        timed = measure_latency(calls, reference=PEER, time_s=TIME_S)
    rows = {name: found.model_dump(mode="json") for name, found in timed.items()}
    options.out.write_text(json.dumps(rows, indent=1) + "\n", "utf-8")
    print(table(rows))


def dropped(counts: tuple[int, ...]) -> list[Step]:
    """Return the steps that take the last blocks out of each stage."""
    return [
        oh.DropLayers(
            count=count,
            layers=tuple(f"layer{stage}.{BLOCKS - 1 - k}" for k in range(min(count, BLOCKS))),
            samples=1,
        )
        for stage, count in enumerate(counts, 1)
        if count
    ]


def table(rows: dict[str, dict[str, Any]]) -> str:
    lines = ["| blocks dropped of each stage | ms | against the peer |", "|---|---|---|"]
    for name, row in rows.items():
        low, high = (1 / ratio for ratio in reversed(row["ratio_interval"]))
        faster = f"{1 / row['ratio']:.2f} x faster ({low:.2f} to {high:.2f})"
        lines.append(f"| {name} | {row['median_ms']:.3f} | {faster} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
