"""Runs steps one after the other in a run folder, using again what is there."""

import hashlib
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from overhaul.core import (
    ArtifactError,
    Context,
    CorruptedFileError,
    Edit,
    Fact,
    InputFile,
    ModelError,
    Progress,
    RunFolder,
    Splits,
    Step,
    StepState,
    Task,
    Trait,
    Traits,
    canonical_json,
    derived_seed,
    file_hash,
    model_fingerprint,
    model_tensors,
    rebuild,
    trainable_names,
)
from overhaul.deploy import load
from overhaul.evaluation import cost_facts, predict, quality_facts


@dataclass(frozen=True)
class Setting:
    """What all steps of a run work on.

    Attributes:
        original: The user's model. Never to be changed.
        task: Loss and metrics.
        data: Checked and split.
        seed: Everything random depends on it.
        key: Hash of all of these.
        traits: What is true of the original.
        progress: Where progress is shown.
    """

    original: nn.Module
    task: Task
    data: Splits
    seed: int
    key: str
    traits: Traits
    progress: Progress


def describe(value: Any) -> Any:
    """Return what stands in a key for a network, for a file (their content) or for data."""
    if isinstance(value, InputFile):
        path = Path(value)
        return {"file": str(value), "sha256": file_hash(path) if path.is_file() else "missing"}
    if isinstance(value, nn.Module):
        return {"network": type(value).__name__, "fingerprint": model_fingerprint(value)}
    return {"object": type(value).__name__}


def chain(key: str, data: Any) -> str:
    """Return the key of what follows `key` and is described by `data`."""
    return hashlib.blake2b((key + canonical_json(data)).encode(), digest_size=16).hexdigest()


def step_keys(setting: Setting, steps: Sequence[Step]) -> list[str]:
    """Return the key of each step: a hash of everything before it and of itself."""
    keys, key = [], setting.key
    for step in steps:
        key = chain(key, step.to_data(describe))
        keys.append(key)
    return keys


def step_seeds(seed: int, steps: Sequence[Step]) -> list[int]:
    """Return the seed of each step.

    It depends on which step of its kind it is, not on its position: so the trainings of the
    control see the same batches in the same order as those of the recipe.
    """
    kinds = [step.spec_name() for step in steps]
    return [derived_seed(seed, kind, kinds[:index].count(kind)) for index, kind in enumerate(kinds)]


def run_steps(
    setting: Setting,
    steps: Sequence[Step],
    folder: RunFolder,
    *,
    prefix: str = "",
    after_each: Callable[[list[StepState]], None] = lambda states: None,
) -> list[StepState]:
    """Run the steps and return the state after each.

    Args:
        setting: What they work on.
        steps: In order, no recipes among them.
        folder: Where finished steps are kept and found again.
        prefix: Put before the label of each step in facts: `control/`.
        after_each: Called with all states so far when a step is finished.
    """
    states: list[StepState] = []
    model: nn.Module | None = None
    traits = setting.traits
    seeds = step_seeds(setting.seed, steps)
    for index, (step, key) in enumerate(zip(steps, step_keys(setting, steps), strict=True)):
        traits = step.check(traits)
        label = f"{prefix}{index} {step.spec_name()}"
        state = folder.load_step(index, key)
        if state is not None and _left_whole(step, folder, setting.progress):
            setting.progress.say(f"{label}: done before, used again")
            states.append(state)
            model = None
            continue
        before = states[-1] if states else None
        if model is None:
            model = rebuilt(setting.original, before)
        setting.progress.say(f"{label}: {step}")
        folder.drop_checkpoints_unless(index, key)
        model, state = _run_step(
            setting,
            step,
            model,
            Context(
                task=setting.task,
                data=setting.data,
                original=setting.original,
                checkpoints=folder.checkpoints(index),
                artifact_folder=folder.artifact,
                seed=seeds[index],
                label=label,
                edits=list(before.edits) if before else [],
                carried=list(before.carried) if before else [],
                progress=setting.progress,
            ),
            key,
            traits,
        )
        folder.save_step(index, state)
        states.append(state)
        after_each(states)
    return states


def _left_whole(step: Step, folder: RunFolder, progress: Progress) -> bool:
    """Tell whether what a finished step left outside its state is still what was written."""
    if Trait.DEPLOYED not in step.gives:
        return True
    try:
        load(folder.artifact, trust=True)
    except (ArtifactError, CorruptedFileError) as error:
        progress.say(f"the artifact is made again: {error}")
        return False
    return True


def rebuilt(original: nn.Module, state: StepState | None) -> nn.Module:
    """Return the model as it was after a step, or a copy of the original."""
    if state is None:
        return deepcopy(original)
    return rebuild(original, state.edits, state.tensors, state.trainable)


def _run_step(
    setting: Setting, step: Step, model: nn.Module, ctx: Context, key: str, traits: Traits
) -> tuple[nn.Module, StepState]:
    with ctx.seeded("apply"):
        model = step.apply(model, ctx)
    _check_rebuilds(setting.original, model, ctx.edits, step)
    return model, StepState(
        key=key,
        label=ctx.label,
        tensors=model_tensors(model),
        trainable=tuple(trainable_names(model)),
        edits=tuple(ctx.edits),
        carried=tuple(ctx.carried),
        facts=(*ctx.facts, *measure(setting, model, ctx.label, traits)),
    )


def _check_rebuilds(original: nn.Module, model: nn.Module, edits: list[Edit], step: Step) -> None:
    try:
        rebuild(original, edits, model_tensors(model), trainable_names(model))
    except ModelError as error:
        raise ModelError(
            f"{type(step).__name__} changed the structure of the model without recording it, so "
            f"the result could not be loaded again: {error} Make the change with `ctx.edit`."
        ) from error


def measure(setting: Setting, model: nn.Module, subject: str, traits: Traits) -> list[Fact]:
    """Return quality on val and nominal cost of a model."""
    facts: list[Fact] = []
    if Trait.FITS_TASK in traits:
        predictions = predict(model, setting.data.val)
        facts += quality_facts(setting.task, predictions, subject=subject, split="val")
    example = next(iter(setting.data.val.in_order(8)))
    return [*facts, *cost_facts(model, example, subject=subject, peak_memory=False)]
