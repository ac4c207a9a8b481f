"""`Trial`: an engine that runs the model as well as the model itself, and how that was found."""

import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from overhaul.core import ArtifactError, Batch, Fact, Split, Task
from overhaul.deploy._artifact import Artifact, load
from overhaul.deploy._capture import capture, rounds_activations, short_reason
from overhaul.deploy._choice import Candidate
from overhaul.deploy._difference import difference, equal_predictions
from overhaul.deploy._engine import Engine
from overhaul.deploy._first_difference import first_difference
from overhaul.deploy._golden import write_golden
from overhaul.deploy._interface import Interface, flat_inputs, real_batch
from overhaul.deploy._lengths import capture_flexible, of_length, with_lengths
from overhaul.deploy._manifest import write_manifest
from overhaul.deploy._signature import widest_tolerance, write_signature
from overhaul.evaluation import Latency, Predictions, predict, quality_facts
from overhaul.runtime import GOLDEN, SIGNATURE, Signature, checked_folder
from overhaul.tasks import DataTask, SingleTask

TRACED_SAMPLES, _GOLDEN_SAMPLES = 5, 4
_PARITY_SIZES, _VAL_BATCH = (1, 3), 64
REAL = "/real"
"""What the name of the twin in real numbers ends with."""
_STEPS_OF_INTEGERS = 0.05
"""A value at the border of two integers may fall to either side, and be a whole step off."""


@dataclass(frozen=True)
class Samples:
    """What engines are judged on.

    Attributes:
        val: Real inputs.
        task: What the outputs mean; without one there is no quality.
        label: Whose quality it is compared with, for facts.
        flexible: Whether the length of sequences may change; None: if the model and the engine can.
        longest: The longest sequence; None for the length of the samples.
    """

    val: Split
    task: Task | None = None
    label: str = "model"
    flexible: bool | None = None
    longest: int | None = None


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
        fixed_because: Why the length of its sequences may not change, if it has any.
    """

    samples: Samples
    suffix: str
    model: nn.Module
    program: ExportedProgram
    interface: Interface
    reference: Predictions
    fixed_because: str | None = None

    def name(self, engine: Engine) -> str:
        """Return the name of its trial with an engine."""
        return f"{engine.label}{self.suffix}"

    @classmethod
    def of(cls, model: nn.Module, samples: Samples, suffix: str = "") -> "Candidacy":
        """Trace a model and run it on the samples.

        Raises:
            ArtifactError: it cannot be traced, or has no interface.
        """
        val = samples.val
        fixed, batch = Interface.of(model, val), real_batch(val, TRACED_SAMPLES)
        interface, reason = fixed, None
        if samples.flexible is not False:
            wanted, longest = samples.flexible is True, samples.longest
            try:
                interface = with_lengths(model, batch, fixed, longest=longest, wanted=wanted)
                program, interface = capture_flexible(model, batch, interface)
            except ArtifactError as error:
                if wanted:
                    raise
                interface, reason = fixed, str(error)
        if interface.length is None:
            program = capture(model, batch, interface)
        reference = predict(model, val, batch_size=_VAL_BATCH)
        return cls(samples, suffix, model, program, interface, reference, reason)

    @cached_property
    def fixed(self) -> "Candidacy":
        """The same with sequences of the samples' length only."""
        interface = Interface.of(self.model, self.samples.val)
        program = capture(self.model, real_batch(self.samples.val, TRACED_SAMPLES), interface)
        return replace(self, program=program, interface=interface)


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
        return self.name.endswith(REAL)

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

    An engine that cannot change the length of sequences gets a program with one length, unless the
    user asked for more.

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
    subject = f"artifact/{candidacy.name(engine)}"
    reason, length = candidacy.fixed_because, candidacy.interface.length
    first: list[Fact] = []

    def tried(own: Candidacy, own_log: Callable[[Fact], None]) -> Trial:
        return _tried(engine, own, folder, threads, tolerance, quality_tolerance, own_log)

    try:
        trial = tried(candidacy, first.append if length else log)
        for fact in first:
            log(fact)
    except ArtifactError as error:
        if length is None or candidacy.samples.flexible:
            for fact in first:
                log(fact)
            raise
        reason, length = str(error), None
        shutil.rmtree(folder)
        trial = tried(candidacy.fixed, log)
    if reason is None and length is None:
        return trial
    limits = {} if length is None else {"shortest": length[0], "longest": length[1]}
    told = Fact(
        name="dynamic_length",
        value=length is not None,
        subject=subject,
        reason=reason,
        detail=limits,
    )
    log(told)
    return replace(trial, facts=(*trial.facts, told))


def _tried(
    engine: Engine,
    candidacy: Candidacy,
    folder: Path,
    threads: int,
    tolerance: float,
    quality_tolerance: float,
    log: Callable[[Fact], None],
) -> Trial:
    interface, program = candidacy.interface, candidacy.program
    if rounds_activations(program) or engine.rounds_inputs:
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
        length=interface.length,
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
    return Trial(candidacy.name(engine), artifact, threads, tuple(facts))


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
    subject = f"artifact/{candidacy.name(engine)}"
    found = predict(artifact, val, batch_size=_VAL_BATCH)
    small = [real_batch(val, size, start=7) for size in _PARITY_SIZES]
    with torch.no_grad():
        pairs = [(batch.forward(artifact), batch.forward(candidacy.model)) for batch in small]
    error = difference([(found.outputs, reference.outputs), *pairs])
    by_length = _errors_by_length(artifact, candidacy, small[1])
    tolerance = artifact.signature.tolerance
    agreement = None
    if task is not None:
        agreement = equal_predictions(
            task.predictions(found.outputs), task.predictions(reference.outputs)
        )
    parity = Fact(
        name="output_error",
        value=max(error.max_relative, *by_length.values(), 0.0),
        subject=subject,
        split="val",
        n=len(found),
        detail={
            "max_abs_error": error.max_abs,
            "tolerance": tolerance,
            "equal_predictions": agreement,
            "batch_sizes": [*_PARITY_SIZES, min(_VAL_BATCH, len(val))],
            **({"by_length": by_length} if by_length else {}),
        },
    )
    log(parity)
    if not error.max_relative <= tolerance:
        where = first_difference(
            engine, candidacy.program, artifact.signature, flat_inputs(small[1]), tolerance
        )
        raise ArtifactError(
            f"its outputs differ from the model's by {error.max_relative:.2g} of the largest, and "
            f"at most {tolerance:.2g} is allowed.{f' {where}' if where else ''} Does the forward "
            "pass depend on the number of samples, on randomness, or on what earlier calls left "
            "behind?"
        )
    for length, far in by_length.items():
        if not far <= tolerance:
            raise ArtifactError(
                f"with sequences of {length} its outputs differ from the model's by {far:.2g} of "
                f"the largest, and at most {tolerance:.2g} is allowed"
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


def _errors_by_length(artifact: Artifact, candidacy: Candidacy, batch: Batch) -> dict[int, float]:
    """Return the error with sequences of the shortest, a middle and the longest length.

    Raises:
        ArtifactError: the engine fails at one of them.
    """
    if candidacy.interface.length is None:
        return {}
    shortest, longest = candidacy.interface.length
    errors = {}
    for length in sorted({shortest, (shortest + longest) // 2, longest}):
        own = of_length(batch, candidacy.interface, length)
        try:
            found = own.forward(artifact)
        except Exception as error:  # engines document no type for what they raise
            raise ArtifactError(
                f"it fails with sequences of {length}: {short_reason(str(error))}"
            ) from error
        with torch.no_grad():
            errors[length] = difference([(found, own.forward(candidacy.model))]).max_relative
    return errors


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
