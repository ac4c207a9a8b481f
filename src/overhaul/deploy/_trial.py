"""`Trial`: an engine that runs the model as well as the model itself, and how that was found."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from overhaul.core import ArtifactError, Fact, Split, Task
from overhaul.deploy._artifact import Artifact, load
from overhaul.deploy._capture import capture, rounds_activations
from overhaul.deploy._choice import Candidate
from overhaul.deploy._difference import difference, equal_predictions
from overhaul.deploy._engine import Engine
from overhaul.deploy._first_difference import first_difference
from overhaul.deploy._golden import write_golden
from overhaul.deploy._interface import Interface, flat_inputs, real_batch
from overhaul.deploy._manifest import write_manifest
from overhaul.deploy._signature import widest_tolerance, write_signature
from overhaul.evaluation import Latency, Predictions, predict, quality_facts
from overhaul.runtime import GOLDEN, SIGNATURE, Signature, checked_folder
from overhaul.tasks import DataTask, SingleTask

TRACED_SAMPLES, _GOLDEN_SAMPLES = 5, 4
_PARITY_SIZES, _VAL_BATCH = (1, 3), 64
_STEPS_OF_INTEGERS = 0.05
"""A value at the border of two integers may fall to either side, and be a whole step off."""


@dataclass(frozen=True)
class Samples:
    """What engines are judged on.

    Attributes:
        val: Real inputs.
        task: What the outputs mean; without one there is no quality.
        label: Whose quality it is compared with, for facts.
    """

    val: Split
    task: Task | None = None
    label: str = "model"


@dataclass(frozen=True)
class Candidacy:
    """A network that engines are tried with.

    Attributes:
        samples: What it is judged on.
        suffix: Of the names of its trials: nothing, or `/real` for the twin in real numbers.
        model: In evaluation mode, on the CPU.
        program: What it computes.
        interface: Its inputs and outputs.
        reference: What it predicts on the samples.
    """

    samples: Samples
    suffix: str
    model: nn.Module
    program: ExportedProgram
    interface: Interface
    reference: Predictions

    @classmethod
    def of(cls, model: nn.Module, samples: Samples, suffix: str = "") -> "Candidacy":
        """Trace a model and run it on the samples.

        Raises:
            ArtifactError: it cannot be traced, or has no interface.
        """
        val = samples.val
        interface = Interface.of(model, val)
        program = capture(model, real_batch(val, TRACED_SAMPLES), interface)
        reference = predict(model, val, batch_size=_VAL_BATCH)
        return cls(samples, suffix, model, program, interface, reference)


@dataclass(frozen=True)
class Trial:
    """An engine that runs the model as well as the model itself.

    Attributes:
        name: The engine, and `/real` if it runs the twin in real numbers.
        artifact: Opened.
        threads: For how many threads.
        facts: Parity, quality and bytes.
    """

    name: str
    artifact: Artifact
    threads: int
    facts: tuple[Fact, ...]

    @property
    def engine(self) -> str:
        """The short name of the engine."""
        return self.artifact.engine

    @property
    def is_twin(self) -> bool:
        """Whether it runs the twin in real numbers."""
        return self.name != self.engine

    @property
    def subject(self) -> str:
        """What its facts are about."""
        return f"artifact/{self.name}"

    @property
    def size_bytes(self) -> int:
        """The bytes of the engine's own files, without the golden samples."""
        return _model_bytes(self.artifact)

    def with_threads(self, threads: int) -> "Trial":
        """Return the same, opened for this many threads; opening may mean compiling."""
        if threads == self.threads:
            return self
        artifact = load(self.artifact.path, threads=threads, trust=True)
        return replace(self, artifact=artifact, threads=threads)

    def candidate(self, latencies: dict[str, Latency]) -> Candidate:
        """Return what the choice is made by."""
        return Candidate(self.name, latencies[self.subject], self.size_bytes)


def try_engine(
    engine: Engine,
    candidacy: Candidacy,
    folder: Path,
    *,
    threads: int,
    tolerance: float,
    quality_tolerance: float,
    log: Callable[[Fact], None],
) -> Trial:
    """Write the artifact of one engine, open it as a user would, and judge it.

    Args:
        engine: Which.
        candidacy: Of what.
        folder: Where to; it is made.
        threads: Threads of a call.
        tolerance: Largest error of an output, as a part of the largest.
        quality_tolerance: Largest loss of quality, as a part of the model's own.
        log: Is given each fact when it is known, so also those of an engine that fails.

    Raises:
        ArtifactError: the engine cannot run it, or not well enough.
    """
    interface, program = candidacy.interface, candidacy.program
    if rounds_activations(program):
        tolerance = max(tolerance, _STEPS_OF_INTEGERS)
    folder.mkdir(parents=True)
    val, task = candidacy.samples.val, candidacy.samples.task
    signature = Signature(
        engine=engine.spec_name(),
        options=engine.options(),
        file=engine.file_name,
        versions=engine.versions(),
        task="none" if task is None else task.spec_name(),
        inputs=interface.inputs,
        outputs=interface.outputs,
        named_outputs=interface.named_outputs,
        tolerance=widest_tolerance(tolerance, interface.outputs),
        **_meaning(task),
    )
    engine.write(program, signature, folder)
    runner = engine.open(folder / engine.file_name, signature, threads)
    inputs = flat_inputs(real_batch(val, min(_GOLDEN_SAMPLES, len(val))))
    write_golden(folder, signature, inputs, runner(inputs))
    write_signature(folder, signature)
    write_manifest(folder, signature.versions)
    _, manifest, written = checked_folder(folder, threads)
    artifact = Artifact(folder, written, manifest, runner)  # opening it again may mean compiling
    facts = _judged(engine, artifact, candidacy, quality_tolerance, log)
    return Trial(f"{artifact.engine}{candidacy.suffix}", artifact, threads, tuple(facts))


def _judged(
    engine: Engine,
    artifact: Artifact,
    candidacy: Candidacy,
    allowed_loss: float,
    log: Callable[[Fact], None],
) -> list[Fact]:
    """Log and return parity, quality and bytes of an artifact.

    Raises:
        ArtifactError: one of them is not good enough.
    """
    val, task, reference = candidacy.samples.val, candidacy.samples.task, candidacy.reference
    subject = f"artifact/{artifact.engine}{candidacy.suffix}"
    found = predict(artifact, val, batch_size=_VAL_BATCH)
    small = [real_batch(val, size, start=7) for size in _PARITY_SIZES]
    with torch.no_grad():
        pairs = [(batch.forward(artifact), batch.forward(candidacy.model)) for batch in small]
    error = difference([(found.outputs, reference.outputs), *pairs])
    tolerance = artifact.signature.tolerance
    agreement = None
    if task is not None:
        agreement = equal_predictions(
            task.predictions(found.outputs), task.predictions(reference.outputs)
        )
    parity = Fact(
        name="output_error",
        value=error.max_relative,
        subject=subject,
        split="val",
        n=len(found),
        detail={
            "max_abs_error": error.max_abs,
            "tolerance": tolerance,
            "equal_predictions": agreement,
            "batch_sizes": [*_PARITY_SIZES, min(_VAL_BATCH, len(val))],
        },
    )
    log(parity)
    if not error.max_relative <= tolerance:
        where = first_difference(
            engine, candidacy.program, artifact.signature, flat_inputs(small[1]), tolerance
        )
        raise ArtifactError(
            f"its outputs differ from the model's by {error.max_relative:.2g} of the largest, and "
            f"at most {tolerance:.2g} is allowed. {where} Does the forward pass depend on the "
            "number of samples, on randomness, or on what earlier calls left behind?"
        )
    quality: list[Fact] = []
    if task is not None:
        quality = quality_facts(task, found, subject=subject, split="val")
        for fact in quality:
            log(fact)
        own = quality_facts(task, reference, subject=candidacy.samples.label, split="val")
        _check_quality(task, quality, own, allowed_loss)
    size = Fact(name="size_bytes", value=_model_bytes(artifact), unit="B", subject=subject)
    log(size)
    return [parity, *quality, size]


def _model_bytes(artifact: Artifact) -> int:
    files = artifact.manifest.files.items()
    return sum(entry.bytes for name, entry in files if name not in (SIGNATURE, GOLDEN))


def _check_quality(
    task: Task, found: Sequence[Fact], wanted: Sequence[Fact], allowed_loss: float
) -> None:
    name = task.selection_metric
    value, own = _value(found, name), _value(wanted, name)
    if math.isnan(own) and math.isnan(value):
        return
    loss = own - value if task.higher_is_better else value - own
    if not loss <= allowed_loss * abs(own):
        raise ArtifactError(
            f"its {name} on val is {value:.4g} and the model's {own:.4g}: worse by more than "
            f"{allowed_loss:.2g} of it."
        )


def _meaning(task: Task | None) -> dict[str, Any]:
    """Return what the task knows about the meaning of inputs and outputs."""
    preprocess = task.preprocess if isinstance(task, DataTask) else None
    return {
        "class_names": task.output_names if isinstance(task, SingleTask) else None,
        "preprocessing": None if preprocess is None else preprocess.to_data(),
    }


def _value(facts: Sequence[Fact], name: str) -> float:
    """Return a quality; NaN where the split does not define it (one class only, say)."""
    value = next(fact.value for fact in facts if fact.name == name)
    return math.nan if value is None else float(value)
