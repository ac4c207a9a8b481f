"""`Deploy`: turn the model into an artifact that runs without it."""

import math
import shutil
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import Field, field_validator
from torch import nn
from torch.export import ExportedProgram

from overhaul.core import (
    ArtifactError,
    Batch,
    Context,
    Deployed,
    Fact,
    ModelError,
    SpecError,
    Step,
    Task,
    Trait,
    Traits,
    whole_folder,
)
from overhaul.deploy._artifact import SIGNATURE, Artifact, load
from overhaul.deploy._capture import capture
from overhaul.deploy._choice import Candidate, choose
from overhaul.deploy._difference import difference, equal_predictions
from overhaul.deploy._engine import Engine
from overhaul.deploy._golden import GOLDEN, write_golden
from overhaul.deploy._interface import FORWARD_ERRORS, Interface, flat_inputs, real_batch
from overhaul.deploy._manifest import write_manifest
from overhaul.deploy._onnxruntime import OnnxRuntime
from overhaul.deploy._signature import Signature, widest_tolerance
from overhaul.deploy._torch import Torch
from overhaul.evaluation import (
    Latency,
    Predictions,
    latency_facts,
    measure_latency,
    predict,
    quality_facts,
)
from overhaul.tasks import DataTask, SingleTask

_TRACED_SAMPLES, _GOLDEN_SAMPLES = 5, 4
_PARITY_SIZES, _VAL_BATCH = (1, 3), 64


class Deploy(Step):
    """Export the model to every engine, check each, time them in turns, and keep the best.

    Each engine gets the same graph, traced with real inputs and a batch dimension that may
    change. It is refused, with the reason as a fact, if it cannot run the graph, if an
    output differs from the model's by more than `tolerance` (validation split, and batches of 1
    and 3), or if the quality on the validation split is worse than the model's by more than
    `quality_tolerance`. The fastest of the others is kept; if speed cannot tell, the smallest.
    The model itself is returned as it came; `ctx.deployed` is the artifact.

    Args:
        engines: What to try, by name or as objects. Default `torch` and `onnxruntime`.
        batch_size: Samples in a timed call. Default 1.
        threads: Threads of a timed call. Default 1.
        tolerance: Largest error of an output, as a part of the largest output. Default 1e-3;
            16-bit outputs get eight roundings at least.
        quality_tolerance: Largest loss of quality, as a part of the model's own. Default 0.002.
        timing_s: Seconds of timing for each engine. Default 1.

    Raises:
        MissingExtraError: the package of an engine is not installed; before any work.
        ArtifactError: no engine passed; the message has the reason of each.

    Example:
        >>> Deploy(engines=("torch",))
        Deploy(engines=(Torch(),))
    """

    needs: ClassVar[Traits] = frozenset({Trait.EDITABLE, Trait.FITS_TASK})
    gives: ClassVar[Traits] = frozenset({Trait.DEPLOYED})
    takes: ClassVar[Traits] = frozenset({Trait.EDITABLE})

    engines: tuple[Engine, ...] = Field(
        default=(Torch(), OnnxRuntime()), min_length=1, description="At least one engine."
    )
    batch_size: int = Field(default=1, ge=1, description="Samples in a timed call.")
    threads: int = Field(default=1, ge=1, description="Threads of a timed call.")
    tolerance: float = Field(
        default=1e-3, gt=0, lt=1, description="Largest error as a part of the largest output."
    )
    quality_tolerance: float = Field(
        default=0.002, ge=0, lt=1, description="Largest loss as a part of the model's quality."
    )
    timing_s: float = Field(default=1.0, gt=0, description="Seconds of timing for each engine.")

    @field_validator("engines")
    @classmethod
    def _each_once(cls, engines: tuple[Engine, ...]) -> tuple[Engine, ...]:
        names = [engine.spec_name() for engine in engines]
        if len(set(names)) < len(names):
            raise SpecError(f"`engines` must name each engine once, got {names}.")
        return engines

    def check(self, traits: Traits) -> Traits:
        """Return what is true after this step.

        Raises:
            OrderError: the model cannot be deployed there.
            MissingExtraError: the package of an engine is not installed.
        """
        for engine in self.engines:
            engine.check_installed()
        return super().check(traits)

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Deploy the model and return it as it came."""
        for engine in self.engines:
            engine.check_installed()
        eager = deepcopy(model).cpu().eval()
        val = ctx.data.val
        interface = Interface.of(eager, val)
        program = capture(eager, real_batch(val, _TRACED_SAMPLES), interface)
        reference = predict(eager, val, batch_size=_VAL_BATCH)
        trials: list[_Trial] = []
        refused: list[str] = []
        with (
            whole_folder(ctx.artifact_folder) as folder,
            ctx.progress.bar("deploy", len(self.engines)) as advance,
        ):
            for engine in self.engines:
                name = engine.spec_name()
                try:
                    artifact = self._build(engine, program, interface, ctx, folder / name)
                    trials.append(self._judged(artifact, eager, reference, ctx))
                except (ArtifactError, ModelError) as error:
                    ctx.log("skipped", name, reason=str(error))
                    refused.append(f"{name}: {error}")
                advance(name)
            if not trials:
                raise ArtifactError("no engine can run this model. " + " ".join(refused))
            chosen = self._timed_choice(trials, eager, ctx)
            _keep_only(folder, chosen)
        ctx.deployed = load(ctx.artifact_folder, trust=True)
        return model

    def _build(
        self,
        engine: Engine,
        program: ExportedProgram,
        interface: Interface,
        ctx: Context,
        folder: Path,
    ) -> Artifact:
        """Write the artifact of one engine and open it as a user would."""
        folder.mkdir()
        signature = Signature(
            engine=engine.spec_name(),
            options=engine.options(),
            file=engine.file_name,
            versions=engine.versions(),
            task=ctx.task.spec_name(),
            inputs=interface.inputs,
            outputs=interface.outputs,
            named_outputs=interface.named_outputs,
            tolerance=widest_tolerance(self.tolerance, interface.outputs),
            **_meaning(ctx.task),
        )
        engine.write(program, signature, folder)
        runner = engine.open(folder / engine.file_name, signature, self.threads)
        inputs = flat_inputs(real_batch(ctx.data.val, min(_GOLDEN_SAMPLES, len(ctx.data.val))))
        write_golden(folder, signature, inputs, runner(inputs))
        (folder / SIGNATURE).write_text(signature.model_dump_json(indent=2) + "\n", "utf-8")
        write_manifest(folder, signature.versions)
        start = time.perf_counter()
        artifact = load(folder, threads=self.threads, trust=True)
        ctx.log(
            "load_s",
            time.perf_counter() - start,
            unit="s",
            subject=f"artifact/{artifact.engine}",
            reproducible=False,
        )
        return artifact

    def _judged(
        self, artifact: Artifact, eager: nn.Module, reference: Predictions, ctx: Context
    ) -> "_Trial":
        """Log parity and quality of an artifact.

        Raises:
            ArtifactError: one of them is not good enough.
        """
        subject, val = f"artifact/{artifact.engine}", ctx.data.val
        found = predict(artifact, val, batch_size=_VAL_BATCH)
        small = [real_batch(val, size, start=7) for size in _PARITY_SIZES]
        with torch.no_grad():
            pairs = [(batch.forward(artifact), batch.forward(eager)) for batch in small]
        error = difference([(found.outputs, reference.outputs), *pairs])
        tolerance = artifact.signature.tolerance
        agreement = equal_predictions(
            ctx.task.predictions(found.outputs), ctx.task.predictions(reference.outputs)
        )
        parity = ctx.log(
            "output_error",
            error.max_relative,
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
        if not error.max_relative <= tolerance:
            raise ArtifactError(
                f"its outputs differ from the model's by {error.max_relative:.2g} of the largest, "
                f"and at most {tolerance:.2g} is allowed. Does the forward pass depend on the "
                "number of samples, on randomness, or on what earlier calls left behind?"
            )
        quality = quality_facts(ctx.task, found, subject=subject, split="val")
        ctx.facts.extend(quality)
        self._check_quality(quality, reference, ctx)
        size = ctx.log("size_bytes", _model_bytes(artifact), unit="B", subject=subject)
        return _Trial(artifact, (parity, *quality, size))

    def _check_quality(self, found: Sequence[Fact], reference: Predictions, ctx: Context) -> None:
        name = ctx.task.selection_metric
        value = _value(found, name)
        own = _value(quality_facts(ctx.task, reference, subject=ctx.label, split="val"), name)
        if math.isnan(own) and math.isnan(value):
            return
        loss = own - value if ctx.task.higher_is_better else value - own
        if not loss <= self.quality_tolerance * abs(own):
            raise ArtifactError(
                f"its {name} on val is {value:.4g} and the model's {own:.4g}: worse by more than "
                f"{self.quality_tolerance:.2g} of it."
            )

    def _timed_choice(self, trials: Sequence["_Trial"], eager: nn.Module, ctx: Context) -> str:
        """Time the artifacts against the original, log it, and return the chosen engine."""
        batch = real_batch(ctx.data.val, self.batch_size)
        before = ctx.label or "model"
        calls = {before: _call(eager, batch)}
        original = _call(deepcopy(ctx.original).cpu().eval(), batch)
        if _works(original):
            calls = {"original": original, **calls}
        calls |= {trial.subject: _call(trial.artifact, batch) for trial in trials}
        latencies = measure_latency(
            calls, threads=self.threads, time_s=self.timing_s, seed=ctx.seed
        )
        engines = {trial.subject: trial.engine for trial in trials}
        timings = latency_facts(latencies, batch_size=self.batch_size, engines=engines)
        ctx.facts.extend(timings)
        name, reason = choose([trial.candidate(latencies) for trial in trials])
        chosen = next(trial for trial in trials if trial.engine == name)
        timed = [fact for fact in timings if fact.subject == chosen.subject]
        # Which engine wins may differ between two equal runs, and with it what is said of it.
        change = {"subject": "artifact", "reproducible": False}
        ctx.facts.extend(fact.model_copy(update=change) for fact in (*chosen.facts, *timed))
        ctx.log("engine_chosen", name, subject="artifact", reason=reason, reproducible=False)
        return name


@dataclass(frozen=True)
class _Trial:
    """An engine that runs the model as well as the model itself."""

    artifact: Artifact
    facts: tuple[Fact, ...]

    @property
    def engine(self) -> str:
        return self.artifact.engine

    @property
    def subject(self) -> str:
        return f"artifact/{self.engine}"

    def candidate(self, latencies: dict[str, Latency]) -> Candidate:
        return Candidate(self.engine, latencies[self.subject], _model_bytes(self.artifact))


def _model_bytes(artifact: Artifact) -> int:
    """Return the bytes of the engine's own files, without the golden samples."""
    files = artifact.manifest.files.items()
    return sum(entry.bytes for name, entry in files if name not in (SIGNATURE, GOLDEN))


def _meaning(task: Task) -> dict[str, Any]:
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


def _call(predictor: nn.Module | Deployed, batch: Batch) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return batch.forward(predictor)

    return call


def _works(call: Callable[[], object]) -> bool:
    """Tell whether the original takes these inputs: an earlier step may have changed the task."""
    try:
        call()
    except FORWARD_ERRORS:
        return False
    return True


def _keep_only(folder: Path, name: str) -> None:
    """Put what is in the subfolder `name` in the place of all subfolders."""
    for child in list(folder.iterdir()):
        if child.name != name:
            shutil.rmtree(child)
    for path in list((folder / name).iterdir()):
        path.rename(folder / path.name)
    (folder / name).rmdir()
