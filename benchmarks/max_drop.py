"""Whether `Quantize(max_drop=...)` keeps its word: on `val`, by which it chooses, and on `test`.

The models are those of `quantization.py`. The test split is opened once for each model, when all
of its variants are made. The same without `max_drop` stands beside those that had to fall back.

    taskset -c 1 python benchmarks/max_drop.py --out benchmarks/results/max_drop.json
"""

import argparse
import json
import platform
import tempfile
import time
import warnings
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from few import Few
from quantization import cpu
from quantization_models import CASES, Case
from torch import nn

import overhaul as oh
from overhaul.core import CheckpointFolder, Context, Fact, Progress, Split, Splits
from overhaul.evaluation import Predictions, compare, predict, stored_size

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("cifar_resnet20", "cifar_resnet56", "vit_fashion", "minilm_clinc", "lstm_clinc")
MAX_DROP, VAL, TEST, SENSITIVITY = 0.005, 1000, 5000, 128


class Made:
    """A quantized model, with what was found on the way."""

    def __init__(self, case: Case, data: Splits, step: oh.Quantize) -> None:
        with tempfile.TemporaryDirectory() as folder:
            ctx = Context(
                task=case.task,
                data=data,
                original=case.model,
                checkpoints=CheckpointFolder(Path(folder)),
                artifact_folder=Path(folder) / "artifact",
                progress=Progress(quiet=True),
            )
            start = time.process_time()
            self.model = step.apply(deepcopy(case.model), ctx)
        self.cpu_s = time.process_time() - start
        self.facts: list[Fact] = ctx.facts

    def named(self, name: str) -> list[Fact]:
        return [fact for fact in self.facts if fact.name == name]

    def row(self) -> dict[str, Any]:
        met = self.named("max_drop_met")
        back = self.named("fell_back")
        return {
            "met_on_val": met[0].value if met else None,
            "val": met[0].detail if met else None,
            "reason": met[0].reason if met else None,
            "fell_back": [{"layers": f.value, **f.detail} for f in back],
            "integer_weights": len(self.named("weight_sqnr_db")),
            "skipped": len(self.named("skipped")),
            "bytes": stored_size(self.model).size_bytes,
            "cpu_s": self.cpu_s,
        }


def one_model(name: str, cache: Path) -> dict[str, Any]:
    case = CASES[name](cache)
    data = case.task.prepare()
    data = replace(data, val=Few(data.val, VAL))
    made: dict[str, Made] = {}
    for weights in ("int8", "int4"):
        step = oh.Quantize(weights=weights, max_drop=MAX_DROP, sensitivity_samples=SENSITIVITY)
        made[weights] = Made(case, data, step)
        print(name, weights, made[weights].row(), flush=True)
        if made[weights].named("fell_back"):
            made[f"{weights}, no max_drop"] = Made(case, data, oh.Quantize(weights=weights))
    test = Few(data.test.open(), TEST)
    reference, on_val = predict(case.model, test), predict(case.model, data.val)
    rows = {}
    for label, each in made.items():
        rows[label] = each.row()
        rows[label]["bytes_ratio"] = rows[label]["bytes"] / stored_size(case.model).size_bytes
        for split, float_ in ((data.val, on_val), (test, reference)):
            rows[label][f"on_{split.name}"] = _compared(case, each.model, split, float_)
    return {"max_drop": MAX_DROP, "rows": rows}


def _compared(case: Case, model: nn.Module, split: Split, reference: Predictions) -> Any:
    found = compare(
        case.task,
        predict(model, split),
        reference,
        goal=oh.Goal(max_drop=MAX_DROP),
        reference="float",
    )
    return found.model_dump(mode="json")


def table(results: dict[str, Any]) -> str:
    lines = [
        "| model | weights | val: float, found | met on val | test: float, found "
        "| difference on test, 95 % interval | not worse by 0.5 points, on test | fell back "
        "| bytes | CPU s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        if name == "machine":
            continue
        for label, row in result["rows"].items():
            val, test = row["on_val"], row["on_test"]
            low, high = test["interval"]
            met = {True: "yes", False: "no, best found", None: "not asked"}[row["met_on_val"]]
            changes = [f"{each['from']} to {each['to']}" for each in row["fell_back"]]
            back = ", ".join(f"{changes.count(each)} {each}" for each in sorted(set(changes)))
            lines.append(
                f"| {name} | {label} "
                f"| {100 * val['reference_value']:.1f} %, {100 * val['value']:.1f} % | {met} "
                f"| {100 * test['reference_value']:.2f} %, {100 * test['value']:.2f} % "
                f"| {100 * test['difference']:+.2f} ({100 * low:+.2f} to {100 * high:+.2f}) "
                f"| {test['status']} | {back or '-'} of {row['integer_weights']} "
                f"| {row['bytes_ratio']:.3f} x | {row['cpu_s']:.0f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, write JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=ROOT / "runs/quantization")
    parser.add_argument("--models", nargs="*")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    flags = ("avx2", "avx512f", "avx512_vnni", "amx_int8")
    results["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "flags": [flag for flag in flags if flag in cpu()],
        "val": VAL,
        "test": TEST,
        "sensitivity_samples": SENSITIVITY,
    }
    for name in options.models or MODELS:
        if name in results and not options.models:
            continue
        results[name] = one_model(name, options.cache)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        print(table({name: results[name]}), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
