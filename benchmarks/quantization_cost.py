"""What an 8-bit file costs to make: `Quantize` and export beside NNCF and ONNX Runtime's own tools.

Each tool starts from the float model in PyTorch and the same calibration samples and ends with its
file: tracing, calibration, rounding and writing count; importing, judging and timing do not. The
seconds are those of the processor that the process used, with one thread, as other work may run on
the machine. Every tool has a process of its own, in turns, and makes a tiny network's file before.

    taskset -c 1 python benchmarks/quantization_cost.py \
        --out benchmarks/results/quantization_cost.json
"""

import argparse
import contextlib
import io
import json
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from quantization import Case, cpu, feed_of, float_onnx, tensors
from quantization_models import CASES
from torch import Tensor, nn

import overhaul as oh
from overhaul.core import Batch, CheckpointFolder, Context, Progress
from overhaul.deploy import Engine, OnnxRuntime, OpenVINO, Signature
from overhaul.deploy._capture import capture
from overhaul.deploy._interface import Interface, real_batch
from overhaul.evaluation import peak_bytes, reset_peak

ROOT = Path(__file__).resolve().parents[1]
MODELS = (
    "mobilenet_v2",
    "resnet18",
    "cifar_resnet20",
    "cifar_resnet56",
    "vit_fashion",
    "minilm_clinc",
    "lstm_clinc",
)
BLOCKS = (10, 30, 100)
WAYS = ("ours", "nncf", "onnxruntime")
SAMPLES, LIMIT_S = 64, 400


class ResidualCnn(nn.Module):
    """`x + f(x)` with two convolutions in `f`, as often as wanted."""

    def __init__(self, blocks: int, width: int = 16) -> None:
        super().__init__()

        def convolution(inputs: int) -> list[nn.Module]:
            return [nn.Conv2d(inputs, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]

        self.first = nn.Sequential(*convolution(3))
        self.blocks = nn.ModuleList(
            nn.Sequential(*convolution(width), *convolution(width)[:2]) for _ in range(blocks)
        )
        self.last = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for block in self.blocks:
            x = x + 0.1 * block(x)
        out: Tensor = self.last(x.mean((2, 3)))
        return out


class Stages:
    """Seconds of the processor and memory at its peak, stage by stage."""

    def __init__(self) -> None:
        reset_peak()
        self.before = peak_bytes()
        self.found: dict[str, dict[str, float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        reset_peak()
        wall, start = time.perf_counter(), time.process_time()
        yield
        self.found[name] = {
            "cpu_s": time.process_time() - start,
            "wall_s": time.perf_counter() - wall,
            "added_bytes": max(0, peak_bytes() - self.before),
        }


def ours(case: Case, samples: Batch, folder: Path) -> Stages:
    data = case.task.prepare()
    ctx = Context(
        task=case.task,
        data=data,
        original=case.model,
        checkpoints=CheckpointFolder(folder / "checkpoints"),
        artifact_folder=folder / "artifact",
        progress=Progress(quiet=True),
    )
    stages = Stages()
    with stages.stage("quantize"):
        step = oh.Quantize(batches=-(-len(samples) // 32), batch_size=min(32, len(samples)))
        model = step.apply(case.model, ctx)
    with stages.stage("capture"):
        interface = Interface.of(model, data.val)
        program = capture(model, real_batch(data.val, 5), interface)
    engines: tuple[Engine, ...] = (OnnxRuntime(), OpenVINO())
    for engine in engines:
        own = folder / engine.spec_name()
        own.mkdir()
        signature = Signature(
            engine=engine.spec_name(),
            file=engine.file_name,
            versions=engine.versions(),
            task="none",
            inputs=interface.inputs,
            outputs=interface.outputs,
            named_outputs=interface.named_outputs,
            tolerance=0.1,
        )
        with stages.stage(engine.spec_name()):
            engine.write(program, signature, own)
    return stages


def nncf(case: Case, samples: Batch, folder: Path) -> Stages:
    import nncf as tool
    import openvino

    tool.set_log_level(logging.ERROR)
    singles = [feed_of(case, one) for one in one_by_one(samples)]
    stages = Stages()
    with stages.stage("export"):
        model = openvino.Core().read_model(float_onnx(case, few(samples, 2), folder))
    with stages.stage("quantize"), contextlib.redirect_stdout(io.StringIO()):
        kind = tool.ModelType.TRANSFORMER if case.transformer else None
        quantized = tool.quantize(
            model, tool.Dataset(singles), subset_size=len(singles), model_type=kind
        )
    with stages.stage("save"):
        openvino.save_model(quantized, folder / "model.xml", compress_to_fp16=False)
    return stages


def nncf_directly(case: Case, samples: Batch, folder: Path) -> Stages:
    """The same with OpenVINO's own way from PyTorch, which has no ONNX in between."""
    import nncf as tool
    import openvino

    tool.set_log_level(logging.ERROR)
    singles = [tuple(each.numpy() for each in tensors(one)) for one in one_by_one(samples)]
    stages = Stages()
    with stages.stage("export"):
        model = openvino.convert_model(case.model, example_input=tuple(tensors(few(samples, 2))))
    with stages.stage("quantize"), contextlib.redirect_stdout(io.StringIO()):
        kind = tool.ModelType.TRANSFORMER if case.transformer else None
        quantized = tool.quantize(
            model, tool.Dataset(singles), subset_size=len(singles), model_type=kind
        )
    with stages.stage("save"):
        openvino.save_model(quantized, folder / "model.xml", compress_to_fp16=False)
    return stages


def onnxruntime(case: Case, samples: Batch, folder: Path) -> Stages:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    logging.getLogger().setLevel(logging.ERROR)
    feeds = iter([feed_of(case, one) for one in one_by_one(samples)])
    reader = type("Reader", (), {"get_next": lambda self: next(feeds, None)})()
    prepared = folder / "prepared.onnx"
    stages = Stages()
    with stages.stage("export"):
        source = float_onnx(case, few(samples, 2), folder)
    with stages.stage("prepare"):
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    with stages.stage("quantize"):
        quantization.quantize_static(
            str(prepared), str(folder / "model.onnx"), reader, per_channel=True
        )
    return stages


RUN: dict[str, Callable[[Case, Batch, Path], Stages]] = {
    "ours": ours,
    "nncf": nncf,
    "nncf_directly": nncf_directly,
    "onnxruntime": onnxruntime,
}


def few(batch: Batch, count: int) -> Batch:
    return Batch(
        batch.map_tensors(lambda x: x[:count]).inputs, batch.targets, batch.indices[:count]
    )


def one_by_one(batch: Batch) -> list[Batch]:
    return [
        Batch(batch.map_tensors(lambda x, n=n: x[n : n + 1]).inputs, batch.targets, torch.arange(1))
        for n in range(len(batch))
    ]


def prepared(name: str, cache: Path, path: Path) -> None:
    """Write a model and its samples, so that a process need not read whole data sets."""
    if name in CASES:
        case = CASES[name](cache)
        data = case.task.prepare()
        order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(0))
        parts = [data.train.read(order[:SAMPLES]), *(_val(data, n) for n in (0, 8))]
        inputs = [
            each.inputs if isinstance(each.inputs, dict) else each.inputs[0] for each in parts
        ]
        found = (case.model, inputs, case.transformer)
    else:
        found = (*cnn(int(name), SAMPLES), False)
    torch.save(found, path)


def _val(data: Any, start: int) -> Batch:
    batch: Batch = data.val.read(torch.arange(start, start + 8))
    return batch


def cnn(blocks: int, samples: int) -> tuple[nn.Module, list[Tensor]]:
    torch.manual_seed(0)
    model = ResidualCnn(blocks)
    with torch.no_grad():
        model.train()(torch.randn(32, 3, 16, 16))
    return model.eval(), [torch.randn(n, 3, 16, 16) for n in (samples, 8, 8)]


def case_of(model: nn.Module, inputs: list[Any], transformer: bool) -> tuple[Case, Batch]:
    def part(x: Any) -> tuple[Any, Tensor]:
        count = len(next(iter(x.values())) if isinstance(x, dict) else x)
        return x, torch.arange(count).float().unsqueeze(1)  # not used: nothing is judged

    train, val, test = map(part, inputs)
    task = oh.Regression(train=train, val=val, test=test, allow_overlap=0.9)
    samples = task.prepare().train.read(torch.arange(len(train[1])))
    return Case(model.eval(), task, transformer=transformer), samples


def worker(way: str, path: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    for part in ("tiny", "own"):
        (folder / part).mkdir()
    start = time.process_time()
    RUN[way](*case_of(*cnn(1, 4), False), folder / "tiny")
    tiny_s = time.process_time() - start
    case, samples = case_of(*torch.load(path, weights_only=False))
    stages = RUN[way](case, samples, folder / "own")
    print(json.dumps({"stages": stages.found, "tiny_s": tiny_s}))


def apart(way: str, path: Path) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--worker", way, str(path), folder]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        try:
            done = subprocess.run(
                command, env=environment, capture_output=True, text=True, timeout=LIMIT_S
            )
        except subprocess.TimeoutExpired:
            return f"not done after {LIMIT_S} s"
    if done.returncode:
        return done.stderr.strip().splitlines()[-1][:200]
    return json.loads(done.stdout.strip().splitlines()[-1])


def total(run: dict[str, Any], engine: str | None = None) -> tuple[float, float]:
    """Return seconds and bytes of a run; of ours, with the file of one engine."""
    stages = run["stages"]
    names = set(stages) if engine is None else {"quantize", "capture", engine}
    seconds = sum(stages[name]["cpu_s"] for name in names)
    return seconds, max(stages[name]["added_bytes"] for name in names)


def rows(result: dict[str, Any]) -> dict[str, list[tuple[float, float]]]:
    """Return seconds and bytes of each round by tool; a tool that fails is left out."""
    found: dict[str, list[tuple[float, float]]] = {}
    for way, runs in result.items():
        if any(isinstance(run, str) for run in runs):
            continue
        engines = ("onnxruntime", "openvino") if way == "ours" else (None,)
        for engine in engines:
            name = way if engine is None else f"ours {engine}"
            found[name] = [total(run, engine) for run in runs]
    return found


PAIRS = {"onnxruntime": "ours onnxruntime", "nncf": "ours openvino"}


def table(results: dict[str, Any]) -> str:
    lines = [
        "| model | ONNX Runtime's file: ours, theirs, s | ours over theirs "
        "| OpenVINO's file: ours, NNCF, s | ours over theirs "
        "| added memory at the peak, MB: ours, ONNX Runtime; ours, NNCF |",
        "|---|---|---|---|---|---|",
    ]
    for name, result in results.items():
        if name == "machine":
            continue
        found = rows(result)
        cells, memory = [], []
        for theirs, own in PAIRS.items():
            if own not in found or theirs not in found:
                cells += ["failed: " + str(result[theirs][0])[:60], ""]
                continue
            ours_s, theirs_s = ([run[0] for run in found[each]] for each in (own, theirs))
            ratios = [a / b for a, b in zip(ours_s, theirs_s, strict=True)]
            cells.append(f"{statistics.median(ours_s):.1f}, {statistics.median(theirs_s):.1f}")
            cells.append(
                f"{statistics.median(ratios):.2f} x ({min(ratios):.2f} to {max(ratios):.2f})"
            )
            memory.append(
                ", ".join(
                    f"{statistics.median(run[1] for run in found[each]) / 1e6:.0f}"
                    for each in (own, theirs)
                )
            )
        title = name if name in CASES else f"residual CNN, {name} blocks"
        lines.append(f"| {title} | {' | '.join(cells)} | {'; '.join(memory)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, write JSON, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--cache", type=Path, default=ROOT / "runs/quantization")
    parser.add_argument("--models", nargs="*")
    parser.add_argument("--ways", nargs="*", default=WAYS)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    if options.worker:
        way, path, folder = options.worker
        worker(way, Path(path), Path(folder))
        return
    results: dict[str, Any] = json.loads(options.out.read_text()) if options.out.exists() else {}
    flags = ("avx2", "avx512f", "avx512_vnni", "amx_int8")
    results["machine"] = {
        "processor": platform.processor() or platform.machine(),
        "flags": [flag for flag in flags if flag in cpu()],
        "versions": {
            each: version(each) for each in ("torch", "onnxruntime", "openvino", "nncf", "onnx")
        },
        "samples": SAMPLES,
    }
    with tempfile.TemporaryDirectory() as folder:
        for round_ in range(options.rounds):
            for name in options.models or [*MODELS, *map(str, BLOCKS)]:
                found = results.setdefault(name, {way: [] for way in options.ways})
                lacking = [way for way, runs in found.items() if len(runs) <= round_]
                if not lacking:
                    continue
                path = Path(folder) / f"{name}.pt"
                if not path.exists():
                    prepared(name, options.cache, path)
                for way in lacking:
                    found[way].append(apart(way, path))
                options.out.write_text(json.dumps(results, indent=1) + "\n")
                print(table({name: found}), flush=True)
    print(table(results))


if __name__ == "__main__":
    main()
