"""How many real models can be pruned to half their MACs? Ours and Torch-Pruning, side by side.

python benchmarks/coverage.py --out benchmarks/results/coverage.json

Each model and tool has a process of its own with a time limit. A run that was stopped goes on.
"""

import argparse
import copy
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from coverage_models import Case, build, names, torch_pruner
from torch import nn

from overhaul.core import Batch, CheckpointFolder, Context
from overhaul.evaluation import count_macs
from overhaul.pruning import PruneChannels
from overhaul.tasks import as_split
from overhaul.testing import tiny_task

SETS = ("torchvision", "timm", "transformers")
TOOLS = ("ours", "torch_pruning")
TARGET = 0.5


def as_batch(case: Case) -> Batch:
    """Return the example inputs as a batch."""
    inputs = case.named_inputs or case.inputs
    first = next(iter(case.named_inputs.values())) if case.named_inputs else case.inputs[0]
    return Batch(inputs, torch.zeros(len(first)), torch.arange(len(first)))


def macs(case: Case, model: nn.Module) -> int:
    """Count with one counter for both tools."""
    return count_macs(model, as_batch(case)).per_sample


def ours(case: Case, found: dict[str, Any]) -> nn.Module:
    """Apply the step with its default settings; the proof before the edit is part of it."""
    task = tiny_task()
    with TemporaryDirectory() as folder:
        ctx = Context(
            task=task,
            data=replace(task.prepare(), train=as_split(as_batch(case), "train")),
            original=case.model,
            checkpoints=CheckpointFolder(Path(folder)),
            artifact_folder=Path(folder),
        )
        pruned = PruneChannels(macs=TARGET).apply(case.model, ctx)
    found["tool_s"] = time.perf_counter() - found.pop("started")
    found["oracle"] = next(fact.value for fact in ctx.facts if fact.name == "removal_error")
    return pruned


RATIOS = (0.3125, 0.5, 0.75)
"""Torch-Pruning takes a ratio of channels; these are tried in turn until the MACs are halved."""


def torch_pruning(case: Case, found: dict[str, Any]) -> nn.Module:
    """Its documented way: magnitude, default settings, the output layer ignored, one step."""
    target = TARGET * macs(case, case.model)
    for ratio in RATIOS:
        attempt = copy.deepcopy(case)
        found.pop("error", None)
        try:
            start = time.perf_counter()
            pruner = torch_pruner(attempt, ratio)
            found["analysed"] = True
            pruner.step()
            found["tool_s"] = time.perf_counter() - start
            if macs(attempt, attempt.model) <= target * (1 + SLACK):
                break
        except Exception as error:
            found["error"] = said(error)
    if "error" in found:
        raise RuntimeError(found["error"])
    found.pop("started")
    return attempt.model


SLACK = 0.02
"""How far above the target still counts, as a part of it: channels are whole."""


def said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:400]


def trains(case: Case, model: nn.Module) -> None:
    """Run a backward pass in training mode; with one image, BatchNorm keeps its statistics."""
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    # Not towards zero: some heads begin at zero, and then there would be nothing to learn.
    sum((out - 1).pow(2).mean() for out in case.outputs(model)).backward()
    if not any(p.grad is not None and bool(p.grad.any()) for p in model.parameters()):
        raise RuntimeError("no gradient reaches any parameter")


def one(tool: str, which: str, name: str) -> dict[str, Any]:
    """Measure one model with one tool."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"tool": tool, "set": which, "model": name}
    case = build(which, name)
    found["parameters"] = sum(p.numel() for p in case.model.parameters())
    before = macs(case, case.model)
    with torch.no_grad():
        shapes = [out.shape for out in case.outputs(case.model)]
    found["built_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found["started"] = time.perf_counter()
    try:
        smaller = {"ours": ours, "torch_pruning": torch_pruning}[tool](case, found)
        with torch.no_grad():
            found["forward"] = [out.shape for out in case.outputs(smaller)] == shapes
        found["macs_ratio"] = macs(case, smaller) / before
        trains(case, smaller)
        found["backward"] = True
    except Exception as error:
        found.setdefault("error", said(error))
    found.pop("started", None)
    found["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    found["passed"] = (
        "error" not in found
        and bool(found.get("forward") and found.get("backward"))
        and found["macs_ratio"] <= TARGET * (1 + SLACK)
    )
    return found


def apart(tool: str, which: str, name: str, limit_s: float) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--one", tool, which, name]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    failed = {"tool": tool, "set": which, "model": name, "passed": False}
    try:
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=limit_s
        )
    except subprocess.TimeoutExpired:
        return {**failed, "error": f"not done after {limit_s:.0f} s"}
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        return {**failed, "error": f"the process ended with {done.returncode}: {last}"[:400]}
    result: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return result


def table(results: list[dict[str, Any]]) -> str:
    """Return the summary and the failures in Markdown."""
    lines = [
        "| set | models | ours: half the MACs, trains, oracle passed | Torch-Pruning: half the"
        " MACs, trains | ours, seconds with the proof | Torch-Pruning, seconds |",
        "|---|---|---|---|---|---|",
    ]
    for which in SETS:
        by = {t: [r for r in results if r["set"] == which and r["tool"] == t] for t in TOOLS}
        if not by["ours"]:
            continue
        passed = {
            t: f"{sum(r['passed'] for r in rs)} of {len(rs)} "
            f"({sum(r['passed'] for r in rs) / max(len(rs), 1):.0%})"
            for t, rs in by.items()
        }
        middle = {
            t: f"{float(np.median([r['tool_s'] for r in rs if 'tool_s' in r] or [np.nan])):.2f}"
            for t, rs in by.items()
        }
        lines.append(
            f"| {which} | {len(by['ours'])} | {passed['ours']} | {passed['torch_pruning']} | "
            f"{middle['ours']} | "
            f"{middle['torch_pruning']} |"
        )
    for tool, title in (("ours", "Ours"), ("torch_pruning", "Torch-Pruning")):
        failures: dict[str, list[str]] = {}
        for r in results:
            if r["tool"] == tool and not r["passed"]:
                failures.setdefault(_reason(r), []).append(r["model"])
        lines += ["", f"{title}, what failed:", ""]
        lines += [
            f"- {', '.join(models)}: {reason}"
            for reason, models in sorted(failures.items(), key=lambda each: -len(each[1]))
        ] or ["- nothing"]
    return "\n".join(lines)


def _reason(result: dict[str, Any]) -> str:
    if "error" in result:
        text = " ".join(result["error"].split())
        return "".join("N" if c.isdigit() else c for c in text)[:160].replace("NN", "N")
    if not result.get("forward"):
        return "the outputs have another shape"
    return f"only {result['macs_ratio']:.1%} of the MACs reached"


def main() -> None:
    """Measure what is not yet measured, write JSON, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--sets", nargs="*", default=SETS)
    parser.add_argument("--tools", nargs="*", default=TOOLS)
    parser.add_argument("--models", nargs="*", help="only these, and again if already measured")
    parser.add_argument("--limit-s", type=float, default=300.0)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(*options.one)))
        return
    results = json.loads(options.out.read_text()) if options.out.exists() else []
    for which in options.sets:
        for name in names(which):
            for tool in options.tools:
                key = (tool, which, name)
                if options.models and name not in options.models:
                    continue
                known = [r for r in results if (r["tool"], r["set"], r["model"]) == key]
                if known and not options.models:
                    continue
                results = [r for r in results if r not in known]
                results.append(apart(*key, options.limit_s))
                options.out.write_text(json.dumps(results, indent=1) + "\n")
                said = results[-1].get("error", f"{results[-1].get('macs_ratio', 1):.2f}")
                print(*key, "passed" if results[-1]["passed"] else "FAILED", said[:100], flush=True)
    order = {
        (t, w, n): i
        for w in SETS
        for i, (n, t) in enumerate((n, t) for n in names(w) for t in TOOLS)
    }
    results.sort(key=lambda r: (SETS.index(r["set"]), order[r["tool"], r["set"], r["model"]]))
    options.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
