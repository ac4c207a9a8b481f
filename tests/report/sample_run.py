"""A realistic run as files: a CNN is pruned, distilled into a smaller one and deployed."""

from pathlib import Path
from typing import Any

from overhaul.core import Fact, RunFolder

RECIPE = """\
model: my_package.nets:digits_cnn
weights: digits_cnn.safetensors
task: {classification: {data: digits}}
steps:
  - prune_weights: {sparsity: 0.6}
  - train: {epochs: 5}
  - swap_model: {factory: my_package.nets:small_cnn}
  - train: {objective: {distill: {teacher: original, temperature: 4}}, epochs: 12}
  - deploy: {engines: [torch, onnxruntime]}
goal: {max_drop: 0.01}
"""
SENTENCES = [
    "On 360 test samples the final model has 97.22 % accuracy, the original 97.78 %: "
    "-0.56 points (95 % -1.94 to +0.83).",
    "A drop of 1.00 points was allowed. The interval reaches below it, so it is not proved that "
    "the final model keeps the quality; nor is it refuted.",
    "The control, which got the same training without distillation, has 96.11 %.",
]


def sample_facts(*, finished: bool = True) -> list[Fact]:
    """Return the facts of the sample run; unfinished, it stops after its second step."""
    facts = [
        *_data(),
        *_measured("original", 0.9750, (61_706, 61_650, 1_204_000), (248_320, 229_800), 0.412),
        *_measured("0 prune_weights", 0.9306, (61_706, 24_700, 1_204_000), (248_320, 104_200)),
        Fact(
            name="skipped",
            value="features.1",
            subject="0 prune_weights",
            reason="fewer than two dimensions: biases and normalization are not pruned",
        ),
        Fact(
            name="skipped",
            value="features.4",
            subject="0 prune_weights",
            reason="fewer than two dimensions: biases and normalization are not pruned",
        ),
        Fact(name="threshold", value=0.0213, subject="0 prune_weights"),
        *_epochs("1 train", 5, 0.31, 0.95),
        *_measured("1 train", 0.9722, (61_706, 24_700, 1_204_000), (248_320, 104_900)),
    ]
    return [*facts, *_finish()] if finished else facts


def sample_manifest(*, opened: int = 1) -> dict[str, Any]:
    """Return the manifest of the sample run."""
    return {
        "created": "2026-11-24T09:12:44+00:00",
        "seed": 0,
        "goal": {"max_drop": 0.01},
        "model": {"class": "my_package.nets:DigitsCNN", "hash": "9f2c41d07be8" * 4},
        "data": "51c0ffee" * 8,
        "recipe_hash": "ab12cd34" * 8,
        "machine": {"cpu": "Generic x86-64", "cores": 2, "memory": "8.0 GB", "os": "Linux 6.1"},
        "versions": {"overhaul": "0.1.0", "torch": "2.14.1", "numpy": "2.3.1", "python": "3.11.9"},
        "test_openings": ["run"] * opened,
        "test_opened": opened,
    }


def sample_run(path: Path, *, finished: bool = True, opened: int = 1) -> RunFolder:
    """Write the sample run into a folder."""
    folder = RunFolder(path)
    folder.update_manifest(**sample_manifest(opened=opened if finished else 0))
    folder.write_facts(sample_facts(finished=finished))
    (path / "recipe.yaml").write_text(RECIPE, "utf-8")
    return folder


def _data() -> list[Fact]:
    counts = {str(digit): 107 + digit % 3 for digit in range(10)}
    return [
        Fact(name="samples", value=1_077, split="train", subject="data"),
        Fact(name="samples", value=360, split="val", subject="data"),
        Fact(name="samples", value=360, split="test", subject="data"),
        Fact(name="class_counts", value=None, split="train", subject="data", detail=counts),
        Fact(
            name="split_seed",
            value=0,
            subject="data",
            reason="val and test were split off train",
        ),
    ]


def _measured(
    subject: str,
    accuracy: float,
    counts: tuple[int, int, int],
    sizes: tuple[int, int],
    latency_ms: float | None = None,
) -> list[Fact]:
    facts = [
        Fact(
            name="accuracy",
            value=accuracy,
            subject=subject,
            split="val",
            n=360,
            interval=(accuracy - 0.017, min(1.0, accuracy + 0.015)),
        ),
        Fact(name="loss", value=round(1.2 - accuracy, 4), subject=subject, split="val", n=360),
        Fact(name="parameters", value=counts[0], subject=subject),
        Fact(name="nonzero_parameters", value=counts[1], subject=subject),
        Fact(name="macs", value=counts[2], subject=subject),
        Fact(name="size_bytes", value=sizes[0], unit="B", subject=subject),
        Fact(name="compressed_bytes", value=sizes[1], unit="B", subject=subject),
    ]
    return facts if latency_ms is None else [*facts, latency(subject, latency_ms)]


def latency(subject: str, median: float, engine: str = "torch", **detail: Any) -> Fact:
    """Return a latency with an interval of 4 %."""
    settings = {"engine": engine, "batch_size": 1, "threads": 1, "p95_ms": median * 1.3}
    return Fact(
        name="latency_ms",
        value=median,
        unit="ms",
        subject=subject,
        n=200,
        interval=(median * 0.98, median * 1.02),
        detail={**settings, **detail},
        reproducible=False,
    )


def _epochs(subject: str, epochs: int, loss: float, accuracy: float) -> list[Fact]:
    facts = []
    for epoch in range(epochs):
        left = 0.7**epoch
        facts += [
            Fact(
                name="train_loss",
                value=0.04 + loss * left,
                subject=subject,
                detail={"epoch": epoch},
            ),
            Fact(
                name="val_accuracy",
                value=0.974 - (0.974 - accuracy) * left,
                subject=subject,
                split="val",
                n=360,
                detail={"epoch": epoch},
            ),
        ]
    return facts


def facts_with_effect(effect: str) -> list[Fact]:
    """Return the facts of a finished run whose methods gave this beyond the control."""
    return [
        fact.model_copy(update={"detail": {**fact.detail, "effect": effect}})
        if fact.detail.get("reference") == "control"
        else fact
        for fact in sample_facts()
    ]


def _finish() -> list[Fact]:
    small = (16_410, 16_402, 402_000)
    return [
        *_measured("2 swap_model", 0.1028, small, (67_100, 62_300)),
        *_epochs("3 train", 12, 1.9, 0.62),
        *_measured("3 train", 0.9694, small, (67_100, 62_200)),
        *_deployed(),
        *_epochs("control/0 train", 12, 1.9, 0.60),
        *_measured("control/0 train", 0.9583, small, (67_100, 62_250)),
        *_measured("final", 0.9694, small, (67_100, 62_200), 0.287),
        Fact(
            name="peak_memory_bytes",
            value=None,
            unit="B",
            subject="final",
            reason="the process that measures it could not be started",
        ),
        Fact(name="peak_memory_bytes", value=9_400_000, unit="B", subject="original"),
        *_tested("original", 0.9778, 0.9775, 0.071),
        *_tested("control", 0.9611, 0.9604, 0.118),
        *_tested("final", 0.9722, 0.9719, 0.094),
        *_tested("artifact", 0.9722, 0.9719, 0.094),
        _difference("original", -0.0056, (-0.0194, 0.0083), "not proved", 0.727),
        _difference("control", 0.0111, (-0.0056, 0.0278), None, 0.289),
        Fact(
            name="verdict",
            value="not proved",
            subject="final",
            n=360,
            detail={"verdict": "not proved", "max_drop": 0.01, "sentences": SENTENCES},
        ),
    ]


def _deployed() -> list[Fact]:
    trials = {"torch": (96_300, 0.301), "onnxruntime": (71_900, 0.058)}
    facts = [latency("original", 0.412), latency("4 deploy", 0.291)]
    for engine, (size, median) in trials.items():
        subject = f"artifact/{engine}"
        facts += [
            Fact(name="output_error", value=2e-06, subject=subject, split="val", n=360),
            Fact(name="accuracy", value=0.9694, subject=subject, split="val", n=360),
            Fact(name="size_bytes", value=size, unit="B", subject=subject),
            latency(subject, median, engine, noisy=engine == "onnxruntime"),
        ]
    return [
        *facts,
        Fact(name="accuracy", value=0.9694, subject="artifact", split="val", n=360),
        Fact(name="size_bytes", value=71_900, unit="B", subject="artifact"),
        latency("artifact", 0.058, "onnxruntime", noisy=True),
        Fact(
            name="engine_chosen",
            value="onnxruntime",
            subject="artifact",
            reason="0.058 ms is the lowest median of 2 engines",
        ),
    ]


def _tested(subject: str, accuracy: float, f1: float, loss: float) -> list[Fact]:
    interval = (accuracy - 0.021, min(1.0, accuracy + 0.012))
    return [
        Fact(
            name="accuracy", value=accuracy, subject=subject, split="test", n=360, interval=interval
        ),
        Fact(name="f1_macro", value=f1, subject=subject, split="test", n=360),
        Fact(name="loss", value=loss, subject=subject, split="test", n=360),
    ]


def _difference(
    reference: str, value: float, interval: tuple[float, float], verdict: str | None, p: float
) -> Fact:
    return Fact(
        name="difference",
        value=value,
        subject="final",
        split="test",
        n=360,
        interval=interval,
        detail={
            "metric": "accuracy",
            "reference": reference,
            "verdict": verdict,
            "effect": "no gain shown",
            "max_drop": 0.01 if verdict is not None else None,
            "mcnemar_p": p,
            "method": "paired bootstrap, 10000 resamples",
        },
    )
