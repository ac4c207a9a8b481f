"""`Deploy`: turn the model into an artifact that runs without it."""

import shutil
from collections.abc import Callable, Sequence
from copy import deepcopy
from itertools import product
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator, model_validator
from torch import nn

from overhaul.core import (
    ArtifactError,
    Context,
    ModelError,
    SpecError,
    Step,
    Trait,
    Traits,
    whole_folder,
)
from overhaul.deploy._artifact import load
from overhaul.deploy._choice import choose
from overhaul.deploy._engine import Engine
from overhaul.deploy._interface import FORWARD_ERRORS, real_batch
from overhaul.deploy._onnxruntime import OnnxRuntime
from overhaul.deploy._real_twin import real_twin
from overhaul.deploy._timing import all_threads, throughput_fact, time_trials, trial_costs
from overhaul.deploy._torch import Torch
from overhaul.deploy._trial import REAL, Candidacy, Samples, Trial, try_engine
from overhaul.deploy._why_not import integers_fact
from overhaul.evaluation import forward_call


class Deploy(Step):
    """Export the model to every engine, check each, time them in turns, and keep the best.

    Each engine gets the same graph, traced with real inputs and a batch dimension that may
    change. It is refused, with the reason as a fact, if it cannot run the graph, if an
    output differs from the model's by more than `tolerance` (validation split, and batches of 1
    and 3; then the first operation that differs is looked for), or if the quality on the validation
    split is worse than the model's by more than `quality_tolerance`. Of the others the best by
    `prefer` is kept; if speed cannot tell, the smallest, and if sizes within 5 % cannot either, the
    faster.

    A model with integers is tried in real numbers too, with the weights that the integers stand
    for. If the best is that twin, it is handed over, and a fact says what keeps the integers from
    being faster. The model itself is returned as it came; `ctx.deployed` is the artifact.

    Args:
        engines: What to try, by name or as objects. Default `torch` and `onnxruntime`.
        prefer: `latency` of `batch_size` samples, `throughput`: time of `throughput_batch` samples
            on all threads, or `bytes`. Default `latency`.
        batch_size: Samples in a timed call. Default 1.
        threads: Threads of a timed call. Default 1.
        throughput_batch: Samples in a call that is timed on all threads. Default 32.
        dynamic_length: Whether the length T of sequences, whole numbers `[B, T]` or real ones
            `[B, T, F]`, may change from call to call. True: an engine that cannot is refused.
            Default None: where the model and the engine can; elsewhere T is fixed, and a fact says
            why. Real numbers count as sequences only where the model is recurrent, or with True.
        max_length: The longest T of a call. Default: that of the validation split. A longer one is
            checked like a shorter one, on repeated samples, and what it is worth is not known.
        tolerance: Largest error of an output, as a part of the largest output. Default 1e-3;
            16-bit outputs get eight roundings at least, and where activations are integers, in the
            model or by an engine that rounds them, 0.05: a value between two integers may fall to
            either side.
        quality_tolerance: Largest loss of quality, as a part of the model's own. Default 0.002.
        timing_s: Seconds of timing for each engine. Default 1.
        cost: Whether opening and memory are measured, which starts a process for each engine and
            takes some seconds. Default true.

    Raises:
        MissingExtraError: the package of an engine is not installed; before any work.
        ArtifactError: no engine passed; the message has the reason of each. Or the length of
            sequences shall change and the model cannot.

    Example:
        >>> Deploy(engines=("torch",), cost=False)
        Deploy(engines=(Torch(),), cost=False)
    """

    needs: ClassVar[Traits] = frozenset({Trait.EDITABLE, Trait.FITS_TASK})
    gives: ClassVar[Traits] = frozenset({Trait.DEPLOYED})
    takes: ClassVar[Traits] = frozenset({Trait.EDITABLE})

    engines: tuple[Engine, ...] = Field(
        default=(Torch(), OnnxRuntime()), min_length=1, description="At least one engine."
    )
    prefer: Literal["latency", "throughput", "bytes"] = "latency"
    batch_size: int = Field(default=1, ge=1, description="Samples in a timed call.")
    threads: int = Field(default=1, ge=1, description="Threads of a timed call.")
    throughput_batch: int = Field(default=32, ge=1, description="Samples on all threads.")
    tolerance: float = Field(
        default=1e-3, gt=0, lt=1, description="Largest error as a part of the largest output."
    )
    quality_tolerance: float = Field(
        default=0.002, ge=0, lt=1, description="Largest loss as a part of the model's quality."
    )
    dynamic_length: bool | None = None
    max_length: int | None = Field(
        default=None, ge=2, description="The longest sequence of a call."
    )
    timing_s: float = Field(
        default=1.0, gt=0, allow_inf_nan=False, description="Seconds of timing for each engine."
    )
    cost: bool = True

    @field_validator("engines")
    @classmethod
    def _each_once(cls, engines: tuple[Engine, ...]) -> tuple[Engine, ...]:
        names = [engine.label for engine in engines]
        if len(set(names)) < len(names):
            raise SpecError(f"`engines` must name each engine once, got {names}.")
        return engines

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if self.max_length is not None and self.dynamic_length is False:
            raise ValueError(
                "`max_length` needs lengths that may change, and `dynamic_length` is False. Leave "
                "one of them out."
            )
        return self

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
        flexible = True if self.max_length is not None else self.dynamic_length
        samples = Samples(ctx.data.val, ctx.task, ctx.label, flexible, self.max_length)
        candidacies = [Candidacy.of(eager, samples)]
        if (twin := real_twin(eager)) is not None:
            candidacies.append(Candidacy.of(twin, samples, REAL))
        trials: list[Trial] = []
        refused: list[str] = []
        with (
            whole_folder(ctx.artifact_folder) as folder,
            ctx.progress.bar("deploy", len(self.engines) * len(candidacies)) as advance,
        ):
            for candidacy, engine in product(candidacies, self.engines):
                name = candidacy.name(engine)
                try:
                    trial = try_engine(
                        engine,
                        candidacy,
                        folder / name.replace("/", "-"),
                        threads=self.threads,
                        tolerance=self.tolerance,
                        quality_tolerance=self.quality_tolerance,
                        log=ctx.facts.append,
                    )
                    trials.append(trial)
                except (ArtifactError, ModelError) as error:
                    ctx.log("skipped", name, reason=str(error))
                    refused.append(f"{name}: {error}")
                advance(name)
            if not trials:
                raise ArtifactError("no engine can run this model. " + " ".join(refused))
            chosen = self._timed_choice(trials, eager, ctx)
            _keep_only(folder, chosen.replace("/", "-"))
        ctx.deployed = load(ctx.artifact_folder, trust=True)
        return model

    def _timed_choice(self, trials: Sequence[Trial], eager: nn.Module, ctx: Context) -> str:
        """Time the artifacts against the original, log it, and return the chosen one's name."""
        val, before = ctx.data.val, ctx.label or "model"
        batch = real_batch(val, self.batch_size)
        others = {before: forward_call(eager, batch)}
        original = forward_call(deepcopy(ctx.original).cpu(), batch)
        if _works(original):
            others = {"original": original, **others}
        timings, by_latency = time_trials(
            trials, batch, others, threads=self.threads, time_s=self.timing_s, seed=ctx.seed
        )
        many = real_batch(val, self.throughput_batch)
        threads = all_threads()
        wide = [trial.with_threads(threads) for trial in trials]
        more, by_throughput = time_trials(
            wide, many, {}, threads=threads, time_s=self.timing_s / 2, seed=ctx.seed
        )
        more = [throughput_fact(fact) for fact in more]
        measured = trials if self.cost else []
        costs = [fact for trial in measured for fact in trial_costs(trial, self.threads)]
        ctx.facts.extend([*timings, *more, *costs])
        latencies = by_throughput if self.prefer == "throughput" else by_latency
        candidates = [trial.candidate(latencies) for trial in trials]
        name, reason = choose(candidates, by_bytes=self.prefer == "bytes")
        chosen = next(trial for trial in trials if trial.name == name)
        own = [fact for fact in (*timings, *more, *costs) if fact.subject == chosen.subject]
        # Which engine wins may differ between two equal runs, and with it what is said of it.
        change = {"subject": "artifact", "reproducible": False}
        ctx.facts.extend(fact.model_copy(update=change) for fact in (*chosen.facts, *own))
        ctx.log(
            "engine_chosen",
            chosen.engine,
            subject="artifact",
            reason=reason,
            detail={"real_numbers": chosen.is_twin} if _have_twins(trials) else {},
            reproducible=False,
        )
        if _have_twins(trials):
            ctx.facts.append(integers_fact(trials, latencies, eager))
        return name


def _have_twins(trials: Sequence[Trial]) -> bool:
    return any(trial.is_twin for trial in trials)


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
