"""`compare_engines`: what a model costs in each engine, without a task or a recipe."""

from collections.abc import Sequence
from copy import deepcopy
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from overhaul.core import ArtifactError, Fact, MissingExtraError, ModelError, Progress, Split
from overhaul.deploy._engine import Engine
from overhaul.deploy._interface import real_batch
from overhaul.deploy._real_twin import real_twin
from overhaul.deploy._timing import all_threads, time_trials, trial_costs
from overhaul.deploy._trial import REAL, Candidacy, Samples, Trial, try_engine
from overhaul.deploy._why_not import integers_fact, many_zeros
from overhaul.evaluation import forward_call

_TOLERANCE = 1e-3


def compare_engines(
    model: nn.Module,
    samples: Split,
    engines: Sequence[Engine],
    *,
    many: int = 32,
    time_s: float = 1.0,
    progress: Progress | None = None,
) -> list[Fact]:
    """Export a model to each engine, check it, and measure time, bytes, opening and memory.

    Timed are calls of one sample and of `many`, each on one thread and on all, all engines in
    turns, and the model itself beside them (subject `original`). An engine that cannot run the
    model, or whose package is missing, gets the fact `skipped` with the reason. A model with
    integers is tried in real numbers too (`artifact/ENGINE/real`), and the fact
    `integers_against_real` says what integers gain in a call of one sample on one thread, and what
    is behind it if they do not.

    Args:
        model: It is left as it was.
        samples: Inputs; real ones where their values matter.
        engines: Which to try.
        many: Samples in a call that throughput is judged by.
        time_s: Seconds of timing for each engine and setting.
        progress: Where it is shown.

    Raises:
        ArtifactError: the model cannot be traced.

    Example:
        >>> from overhaul.deploy import Torch
        >>> from overhaul.tasks import Classification
        >>> samples = Classification(data="digits").prepare().val
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        >>> facts = compare_engines(model, samples, [Torch()], time_s=0.01)
        >>> sorted({fact.subject for fact in facts})
        ['artifact/torch', 'original']
    """
    progress = progress or Progress(quiet=True)
    eager = deepcopy(model).cpu().eval()
    candidacies = [Candidacy.of(eager, Samples(samples))]
    if (twin := real_twin(eager)) is not None:
        candidacies.append(Candidacy.of(twin, Samples(samples), REAL))
    facts: list[Fact] = []
    trials: list[Trial] = []
    with (
        TemporaryDirectory(prefix="overhaul-") as folder,
        progress.bar("engines", len(engines) * len(candidacies)) as advance,
    ):
        for candidacy, engine in product(candidacies, engines):
            name = candidacy.name(engine)
            try:
                engine.check_installed()
                trial = try_engine(
                    engine,
                    candidacy,
                    Path(folder) / name.replace("/", "-"),
                    threads=1,
                    tolerance=_TOLERANCE,
                    quality_tolerance=1.0,
                    log=facts.append,
                )
                trials.append(trial)
            except (ArtifactError, ModelError, MissingExtraError) as error:
                facts.append(
                    Fact(name="skipped", value=name, subject=f"artifact/{name}", reason=str(error))
                )
            advance(name)
        opened = {
            threads: [trial.with_threads(threads) for trial in trials]
            for threads in (1, all_threads())
        }
        for size in (1, many):
            batch = real_batch(samples, size)
            others = {"original": forward_call(eager, batch)}
            for threads, own in opened.items():
                timings, found = time_trials(own, batch, others, threads=threads, time_s=time_s)
                facts += timings
                if twin is not None and size == threads == 1 and own:
                    facts.append(integers_fact(own, found, eager))
        for trial in trials:
            facts += trial_costs(trial, 1)
    if (zeros := many_zeros(eager)) is not None:
        facts.append(zeros)
    return facts
