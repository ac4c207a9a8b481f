"""Which engine is fastest for a network, in real numbers and in 8 bits: all of them, in turns.

Every artifact is made of the same model (`Quantize()` for 8 bits), checked against it, opened for
one thread and timed in one run with all the others. `overhaul profile MODEL --engines all` gives
such a table for a model of one's own.

    taskset -c 1 python benchmarks/engines.py --out benchmarks/results/engines.json
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from copy import deepcopy
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from few import Few
from quantization import cpu
from quantization_models import CASES

import overhaul as oh
from overhaul.core import (
    ArtifactError,
    CheckpointFolder,
    Context,
    Fact,
    MissingExtraError,
    ModelError,
    Progress,
)
from overhaul.deploy import Engine
from overhaul.deploy._interface import real_batch
from overhaul.deploy._timing import time_trials, trial_costs
from overhaul.deploy._trial import Candidacy, Samples, Trial, try_engine
from overhaul.evaluation import forward_call

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("mobilenet_v2", "resnet18", "cifar_resnet56", "vit_fashion", "lstm_clinc")
ENGINES: tuple[Engine, ...] = (
    oh.Torch(),
    oh.TorchCompile(),
    oh.AOTInductor(),
    oh.OnnxRuntime(),
    oh.OpenVINO(),
    oh.ExecuTorch(),
)
SIZES, VAL, TIME_S, LIMIT_S, TOLERANCE = (1, 8), 16, 0.7, 1500, 1e-3


def one_model(name: str, cache: Path) -> dict[str, Any]:
    case = CASES[name](cache)
    data = case.task.prepare()
    val = Few(data.val, VAL)
    facts: list[Fact] = []
    made_s: dict[str, float] = {}
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        ctx = Context(
            task=case.task,
            data=data,
            original=case.model,
            checkpoints=CheckpointFolder(folder / "checkpoints"),
            artifact_folder=folder / "artifact",
            progress=Progress(quiet=True),
        )
        eager = deepcopy(case.model).eval()
        integers = oh.Quantize(batches=2).apply(deepcopy(case.model), ctx).eval()
        candidacies = [
            Candidacy.of(eager, Samples(val)),
            Candidacy.of(integers, Samples(val), "/int8"),
        ]
        for engine in ENGINES:
            for candidacy in candidacies:
                label = f"{engine.spec_name()}{candidacy.suffix}"
                start = time.perf_counter()
                try:
                    engine.check_installed()
                    trial = try_engine(
                        engine,
                        candidacy,
                        folder / label.replace("/", "-"),
                        threads=1,
                        tolerance=TOLERANCE,
                        quality_tolerance=1.0,
                        log=facts.append,
                    )
                    trials.append(trial)
                except (ArtifactError, ModelError, MissingExtraError) as error:
                    subject = f"artifact/{label}"
                    facts.append(
                        Fact(name="skipped", value=label, subject=subject, reason=str(error))
                    )
                made_s[label] = time.perf_counter() - start
                print(name, label, f"{made_s[label]:.1f} s", file=sys.stderr, flush=True)
        latencies = {}
        for size in SIZES:
            batch = real_batch(val, size)
            others = {"original": forward_call(eager, batch)}
            _, found = time_trials(trials, batch, others, threads=1, time_s=TIME_S)
            latencies[str(size)] = {each: found[each].model_dump(mode="json") for each in found}
        for trial in trials:
            facts += trial_costs(trial, 1)
    return {
        "latency": latencies,
        "made_s": made_s,
        "facts": [fact.model_dump(mode="json") for fact in facts],
    }


def fact_of(result: dict[str, Any], subject: str, name: str) -> dict[str, Any] | None:
    facts = [f for f in result["facts"] if f["name"] == name and f["subject"] == subject]
    return facts[-1] if facts else None


def table(results: dict[str, Any]) -> str:
    lines = [
        "| model | engine | ms, batch 1 | against PyTorch | against the best float "
        "| batch 8, against PyTorch | output error | MB | opening, s | memory, MB |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        if name == "machine":
            continue
        one, many = (result["latency"][str(size)] for size in SIZES)
        floats = [one[each]["median_ms"] for each in one if not each.endswith("int8")]
        for label in result["made_s"]:
            subject = f"artifact/{label}"
            if (skipped := fact_of(result, subject, "skipped")) is not None:
                reason = " ".join(skipped["reason"].split())[:110].replace("|", "/")
                lines.append(f"| {name} | {label} | refused: {reason} | | | | | | | |")
                continue
            error, size, load, memory = (
                fact_of(result, subject, each)
                for each in ("output_error", "size_bytes", "load_s", "peak_memory_bytes")
            )
            low, high = one[subject]["ratio_interval"] or (float("nan"),) * 2
            lines.append(
                f"| {name} | {label} | {one[subject]['median_ms']:.3g} "
                f"| {one[subject]['ratio']:.2f} x ({low:.2f} to {high:.2f}) "
                f"| {one[subject]['median_ms'] / min(floats):.2f} x "
                f"| {many[subject]['ratio']:.2f} x | {_shown(error, 1, '.1e')} "
                f"| {_shown(size, 1e6, '.2f')} | {_shown(load, 1, '.2f')} "
                f"| {_shown(memory, 1e6, '.0f')} |"
            )
    return "\n".join(lines)


def _shown(fact: dict[str, Any] | None, unit: float, how: str) -> str:
    return "" if fact is None or fact["value"] is None else format(fact["value"] / unit, how)


def main() -> None:
    """Measure, write JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=ROOT / "runs/quantization")
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        torch.set_num_threads(1)
        warnings.simplefilter("ignore")
        options.out.write_text(json.dumps(one_model(options.one, options.cache)))
        return
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    flags = ("avx2", "avx512f", "avx512_vnni", "amx_int8")
    results["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "flags": [flag for flag in flags if flag in cpu()],
        "versions": {
            each: version(each) for each in ("torch", "onnxruntime", "openvino", "executorch")
        },
    }
    for name in options.models or MODELS:
        if name in results and not options.models:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "result.json"
            command = [sys.executable, __file__, "--one", name, "--out", str(path)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            done = subprocess.run(
                [*command, "--cache", str(options.cache)],
                env=environment,
                timeout=LIMIT_S,
                check=False,
            )
            if done.returncode:
                print("FAILED", name, flush=True)
                continue
            results[name] = json.loads(path.read_text())
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        print(table({name: results[name]}), flush=True)
    whole = table(results)
    options.out.with_suffix(".md").write_text(whole + "\n")
    print(whole)


if __name__ == "__main__":
    main()
