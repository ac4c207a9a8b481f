"""One recipe on a ResNet-56 for CIFAR-10: drop, distill, quantize, deploy, beside the best peer.

The pretrained ResNet-56 is first fine-tuned for two epochs, as its owner would have done; that is
the `original`. Then each recipe makes the network smaller, in rounds with training in between, with
the original as teacher, for EPOCHS epochs in all, quantizes and deploys it. The control is the
original with the same EPOCHS epochs and nothing else; the peers (NNCF with OpenVINO, ONNX Runtime's
static quantization) and our own `Quantize` turn the control into artifacts. All artifacts are timed
in turns, one thread, batch 1, and judged on the test split, which is opened once.

    pip install nncf
    python benchmarks/one_recipe.py --out benchmarks/results/one_recipe.json

A run that was interrupted goes on; `--only` makes one network, or judges those that are made.
"""

import argparse
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from quantization import SAMPLES, feed_of, nncf_openvino, ort
from quantization_models import NORMALIZE, SHARED, Case

import overhaul as oh
from overhaul.core import Split, Step
from overhaul.distillation import Match
from overhaul.evaluation import Predictions, compare, count_macs, measure_latency, predict

ROOT = Path(__file__).resolve().parents[1]
EPOCHS, MAX_DROP, TIMING_S = 10, 0.005, 10.0
Feed = dict[str, np.ndarray[Any, Any]]
Call = Callable[[Feed], Tensor]
TRAIN = oh.Train(
    epochs=EPOCHS,
    batch_size=128,
    optimizer=oh.SGD(lr=0.02, weight_decay=0.0005),
    augmentations=(oh.Flip(), oh.Shift()),
    precision="bf16",
)
SOFT, DECOUPLED = oh.SoftTargets(), oh.DecoupledTargets()
DEPLOY = oh.Deploy(
    engines=("onnxruntime", "openvino"),
    quality_tolerance=0.02,
    tolerance=0.3,
    throughput_batch=2,
    cost=False,
)


def distill(epochs: int, *more: Match, targets: Match = SOFT) -> oh.Train:
    objective = oh.Distill(match=(targets, *more), weight=0.9)
    return TRAIN.model_copy(update={"epochs": epochs, "objective": objective})


def dropped(*counts: int) -> list[Step]:
    """Return the steps that take so many blocks out of each stage."""
    return [
        oh.DropLayers(count=count, layers=(f"layer{stage}.*",), samples=256)
        for stage, count in enumerate(counts, 1)
        if count
    ]


def recipes() -> dict[str, tuple[Step, ...]]:
    """Return the steps before `Quantize`, by the name of the recipe.

    As many blocks go as make the artifact 1.8 times as fast as the best peer's (`drop_latency.py`),
    and more of the first stages than of the last, which loses least for the time saved
    (`drop_quality.py`, which also chose the match). Thinner layers were tried before
    (`prune_resnet.py`, `prune_latency.py`): they lose more and save less.
    """
    return {
        "12 blocks dropped": (
            *dropped(4, 3, 1),
            distill(1, targets=DECOUPLED),
            *dropped(2, 2, 0),
            distill(EPOCHS - 1, targets=DECOUPLED),
        ),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/one_recipe")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", choices=("original", "control", *recipes(), "judge"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    task = cifar()
    networks = {"original": original(options.runs)}
    for name, steps in {"control": (TRAIN,), **recipes()}.items():
        if options.only in (name, "judge", None):
            folder = folder_of(options.runs, name)
            networks[name] = trained(networks["original"].model, task, folder, *steps)
    if options.only not in ("judge", None):
        return
    result = judged(task, networks, options.runs)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


def cifar(images: int | None = None) -> oh.Classification:
    data = oh.Cifar10(data_dir=str(SHARED / "cifar10"))
    return oh.Classification(data=data, preprocess=NORMALIZE, train_limit=images)


def original(runs: Path) -> oh.Run:
    weights = SHARED / "cifar_resnet/resnet56.safetensors"
    pretrained = oh.Network(factory="cifar_resnet:resnet56", weights=str(weights)).build()
    first = TRAIN.model_copy(update={"epochs": 2})
    return trained(pretrained, cifar(), runs / "original", first)


def folder_of(runs: Path, name: str) -> Path:
    return runs / name.replace(",", "").replace(" ", "-")


def trained(model: nn.Module, task: oh.Task, folder: Path, *steps: Step) -> oh.Run:
    return oh.Recipe(*steps).run(model, task, out=folder, control=False, cost=False)


def judged(task: oh.Task, networks: dict[str, oh.Run], runs: Path) -> dict[str, Any]:
    """Make the artifacts, time them together and open the test split once."""
    data = task.prepare()
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    samples = [data.train.read(each) for each in order[:SAMPLES].split(1)]
    control = networks["control"].model.eval()
    case = Case(control, task)
    calls: dict[str, Call] = {"control, float": deployed(control, task, runs / "float")}
    calls["control, int8, ours"] = deployed(control, task, runs / "int8", oh.Quantize())
    peers = {
        "control, int8, NNCF, OpenVINO": nncf_openvino(case, samples),
        "control, int8, NNCF, OpenVINO, one sample only": nncf_openvino(case, samples, fixed=True),
        "control, int8, ONNX Runtime static": ort(case, samples, static=True),
    }
    for name, work in peers.items():
        folder = folder_of(runs, name)
        folder.mkdir(exist_ok=True)
        calls[name], _ = work(folder)
    rows: dict[str, dict[str, Any]] = {name: {} for name in calls}
    first = next(data.val.in_order(1))
    macs = count_macs(control, first).per_sample
    for name in recipes():
        model = networks[name].model.eval()
        calls[name] = deployed(model, task, folder_of(runs, f"{name} int8"), oh.Quantize())
        rows[name] = {"macs": count_macs(model, first).per_sample / macs}
    feed = feed_of(case, first)
    timed = {name: (lambda call=call: call(feed)) for name, call in calls.items()}
    for name, each in measure_latency(
        timed, reference=fastest_peer(timed), time_s=TIMING_S
    ).items():
        rows[name]["latency"] = each.model_dump(mode="json")
    on_val = predict(control, data.val)
    for name, call in calls.items():
        found = task.metrics(outputs_of(case, call, data.val), on_val.targets)
        rows[name]["val"] = found["accuracy"]
    test = data.test.open()
    reference = predict(control, test)
    for name, call in calls.items():
        own = Predictions(outputs_of(case, call, test), reference.targets)
        rows[name]["test"] = task.metrics(own.outputs, own.targets)["accuracy"]
        compared = compare(
            task, own, reference, goal=oh.Goal(max_drop=MAX_DROP), reference="control"
        )
        rows[name]["against control"] = compared.model_dump(mode="json")
    original = predict(networks["original"].model.eval(), test)
    return {
        "epochs": EPOCHS,
        "images": len(data.train),
        "control, val": task.metrics(on_val.outputs, on_val.targets)["accuracy"],
        "control, test": task.metrics(reference.outputs, reference.targets)["accuracy"],
        "original, test": task.metrics(original.outputs, original.targets)["accuracy"],
        "rows": rows,
    }


def deployed(model: nn.Module, task: oh.Task, folder: Path, *steps: Step) -> Call:
    run = oh.Recipe(*steps, DEPLOY).run(model, task, out=folder, control=False, cost=False)
    artifact = oh.load(run.artifact, threads=1)

    def call(feed: Feed) -> Tensor:
        found: Tensor = artifact(torch.from_numpy(feed["x"]))
        return found

    return call


def fastest_peer(timed: dict[str, Callable[[], object]]) -> str:
    peers = {name: call for name, call in timed.items() if "NNCF" in name or "Runtime" in name}
    found = measure_latency(peers, reference=next(iter(peers)), time_s=2.0)
    return min(found, key=lambda name: found[name].median_ms)


def outputs_of(case: Case, call: Call, split: Split) -> Tensor:
    return torch.cat([call(feed_of(case, one)).clone() for one in split.in_order(1)])


def table(result: dict[str, Any]) -> str:
    lines = [
        "| artifact | MACs | val | test | against the control, 95 % interval | ms, batch 1 "
        "| against the fastest peer |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in result["rows"].items():
        against, ms = row["against control"], row["latency"]
        low, high = against["interval"]
        slow, fast = ms["ratio_interval"]
        lines.append(
            f"| {name} | {row.get('macs', 1):.2f} x | {100 * row['val']:.2f} % "
            f"| {100 * row['test']:.2f} % | {100 * against['difference']:+.2f} "
            f"({100 * low:+.2f} to {100 * high:+.2f}) | {ms['median_ms']:.3f} "
            f"| {ms['ratio']:.2f} x ({slow:.2f} to {fast:.2f}) |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
