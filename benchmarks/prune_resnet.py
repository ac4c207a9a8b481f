"""Half the MACs of a ResNet-56 on CIFAR-10: every criterion, and what it has to be better than.

Start: the pretrained ResNet-56, fine-tuned on 10,000 images (`examples/cifar10_resnet56.yaml`).
Each variant then gets the same training: EPOCHS epochs on the same 10,000 images, one learning rate
for all, no setting tuned. The narrower network, of the next even width above half the MACs, starts
from random weights, so it has had no pretraining. The epoch is chosen on val; the test split is
opened once for each variant, and every variant is compared with the unpruned network that got the
same training and with random pruning, sample by sample. Latencies are those of ONNX Runtime, one
thread, interleaved.

    overhaul run examples/cifar10_resnet56.yaml -o runs/resnet56
    python benchmarks/prune_resnet.py --out benchmarks/results/prune_resnet.json

A run that was interrupted goes on. `--variants` names those to make and judge; the others keep the
rows that --out has, each with ratios of its own run.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import overhaul as oh
from overhaul.core import Batch, Splits, Step
from overhaul.evaluation import compare, count_macs, count_parameters, measure_latency, predict

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "examples"))
EPOCHS = 2
TRAIN = oh.Train(
    epochs=EPOCHS,
    batch_size=128,
    optimizer=oh.SGD(lr=0.02, weight_decay=0.0005),
    augmentations=(oh.Flip(), oh.Shift()),
)
CRITERIA = {
    "magnitude, p=2": oh.Magnitude(),
    "random": oh.Random(),
    "taylor": oh.Taylor(),
    "magnitude, p=1": oh.Magnitude(p=1),
    "batch norm scale": oh.BatchNormScale(),
    "fisher": oh.Fisher(),
    "activation, mean": oh.Activation(),
    "activation, nonzero": oh.Activation(of="nonzero"),
    "geometric median": oh.GeometricMedian(),
}
NARROW = 12
REFERENCES = ("not pruned", "random")


def variants() -> dict[str, tuple[Step, ...]]:
    """Return the steps of each variant."""
    narrow = oh.SwapModel(factory="cifar_resnet:resnet56", arguments={"width": NARROW})
    fresh = TRAIN.model_copy(update={"optimizer": oh.SGD(lr=0.1, weight_decay=0.0005)})
    return {
        "not pruned": (TRAIN,),
        **{
            name: (oh.PruneChannels(macs=0.5, criterion=criterion), TRAIN)
            for name, criterion in CRITERIA.items()
        },
        "magnitude, p=2, normalized scope": (
            oh.PruneChannels(macs=0.5, scope="normalized"),
            TRAIN,
        ),
        f"narrower, from scratch (width {NARROW})": (narrow, fresh),
    }


def task(data_dir: Path) -> oh.Task:
    """Return the classification of 10,000 images."""
    return oh.Classification(
        data=oh.Cifar10(data_dir=str(data_dir)),
        preprocess=oh.Normalize(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
        train_limit=10000,
    )


def main() -> None:
    """Train every variant, judge them together, print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=ROOT / "runs/resnet56/weights.safetensors")
    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared/data/cifar10")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs/prune_resnet")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--variants", nargs="*", help="only these, and the two references")
    options = parser.parse_args()
    what = task(options.data)
    original = oh.Network(factory="cifar_resnet:resnet56", weights=str(options.weights)).build()
    models, rows = {}, {}
    chosen = {*(options.variants or variants()), *REFERENCES}
    for name, steps in variants().items():
        if name not in chosen:
            continue
        folder = options.runs / name.replace(",", "").replace(" ", "-")
        run = oh.Recipe(*steps).run(original, what, out=folder, control=False, cost=False)
        models[name] = run.model.eval()
        rows[name] = {"before_training": after_pruning(run.facts), "val": val_accuracy(run.facts)}
    data = what.prepare()
    judge(what, data, models, rows)
    time_them(data, models, rows)
    known = json.loads(options.out.read_text("utf-8")) if options.out.exists() else {}
    rows = {
        name: rows.get(name) or known["variants"][name]
        for name in variants()
        if name in rows or name in known.get("variants", {})
    }
    result = {"epochs": EPOCHS, "command": "python benchmarks/prune_resnet.py", "variants": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    print(table(rows))


def after_pruning(facts: list[oh.Fact]) -> float | None:
    """Return the accuracy on val between the removal and the training."""
    found = [f.value for f in facts if f.name == "accuracy" and f.subject == "0 prune_channels"]
    return float(found[0]) if found and found[0] is not None else None


def val_accuracy(facts: list[oh.Fact]) -> float:
    """Return the accuracy on val that the epoch was chosen by."""
    found = [f.value for f in facts if f.name == "accuracy" and f.split == "val"]
    assert found[-1] is not None
    return float(found[-1])


def judge(
    what: oh.Task, data: Splits, models: dict[str, nn.Module], rows: dict[str, dict[str, object]]
) -> None:
    """Open the test split once and compare all variants on it."""
    test = data.test.open()
    batch = next(data.train.in_order(1))
    found = {name: predict(model, test) for name, model in models.items()}
    for name, predictions in found.items():
        metrics = what.metrics(predictions.outputs, predictions.targets)
        rows[name] |= {
            "test": metrics["accuracy"],
            "macs": count_macs(models[name], batch).per_sample,
            "parameters": count_parameters(models[name]),
        }
        for reference in REFERENCES:
            if name != reference:
                compared = compare(
                    what,
                    predictions,
                    found[reference],
                    goal=oh.Goal(max_drop=0.01),
                    reference=reference,
                )
                rows[name][f"against {reference}"] = compared.model_dump(mode="json")


def time_them(
    data: Splits, models: dict[str, nn.Module], rows: dict[str, dict[str, object]]
) -> None:
    """Export each variant to ONNX Runtime and time all in turn."""
    batch = next(data.train.in_order(1))
    calls = {name: onnx_call(model, batch) for name, model in models.items()}
    for name, latency in measure_latency(calls, reference="not pruned", time_s=2.0).items():
        rows[name]["latency"] = latency.model_dump(mode="json")
    batch = next(data.train.in_order(32))
    calls = {name: onnx_call(model, batch) for name, model in models.items()}
    for name, latency in measure_latency(calls, reference="not pruned", time_s=2.0).items():
        rows[name]["latency_32"] = latency.model_dump(mode="json")


def onnx_call(model: nn.Module, batch: Batch) -> Callable[[], object]:
    """Return a call of ONNX Runtime, one thread."""
    import onnxruntime

    assert isinstance(batch.inputs, tuple)
    inputs: Tensor = batch.inputs[0]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(model, (inputs,), path, dynamo=True, verbose=False)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, settings, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    fed = {name: inputs.numpy()}
    return lambda: session.run(None, fed)


def table(rows: dict[str, dict[str, object]]) -> str:
    """Return the results as a Markdown table."""
    base = rows["not pruned"]
    lines = [
        "| variant | MACs | parameters | pruned, not trained (val) | val | test "
        "| against not pruned | against random | ONNX Runtime, batch 1 | batch 32 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in rows.items():
        before = row["before_training"]
        cells = [
            name,
            f"{row['macs'] / base['macs']:.2f} x",
            f"{row['parameters'] / base['parameters']:.2f} x",
            "" if before is None else f"{100 * before:.1f} %",
            f"{100 * row['val']:.2f} %",
            f"{100 * row['test']:.2f} %",
            difference(row.get("against not pruned")),
            difference(row.get("against random")),
            f"{row['latency']['ratio']:.2f} x",
            f"{row['latency_32']['ratio']:.2f} x",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def difference(compared: object) -> str:
    """Return a difference in points with its interval."""
    if not isinstance(compared, dict):
        return ""
    low, high = compared["interval"]
    value = compared["difference"]
    return f"{100 * value:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


if __name__ == "__main__":
    main()
