"""A whole run: checks before any work, the steps, the control, the final evaluation."""

import os
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch
from torch import nn

from overhaul.core import (
    Fact,
    ModelError,
    OrderError,
    Progress,
    RunFolder,
    Spec,
    SpecError,
    Step,
    StepState,
    Task,
    Trait,
    Traits,
    check_model_fits,
    forward_problem,
    model_fingerprint,
    write_text,
    yaml_text,
)
from overhaul.deploy import load
from overhaul.evaluation import (
    Goal,
    Verdict,
    check_max_drop,
    cost_facts,
    forward_call,
    latency_facts,
    measure_latency,
    peak_memory_fact,
)
from overhaul.running._final import Contender, judge
from overhaul.running._machine import machine, versions
from overhaul.running._run import Run
from overhaul.running._steps import (
    Setting,
    chain,
    describe,
    measure,
    rebuilt,
    run_steps,
)

# Part of every key: a change of what is stored makes every run start anew.
_FORMAT = 1


def execute(
    steps: Sequence[Step],
    control: Sequence[Step],
    check: Callable[[Traits], Traits],
    model: nn.Module,
    task: Task,
    *,
    out: Path,
    goal: Goal,
    seed: int,
    with_control: bool,
    with_cost: bool,
    progress: Progress,
) -> Run:
    """Run steps as `Recipe.run` describes.

    Args:
        steps: In order, no recipes among them.
        control: The steps of the same-budget control; empty if nothing is trained.
        check: Checks the order of the steps.
        model: The user's.
        task: The user's.
        out: The run folder.
        goal: What is to be proved.
        seed: Everything random depends on it.
        with_control: Whether the control is run.
        with_cost: Whether latency and memory are measured.
        progress: Where progress is shown.
    """
    folder = RunFolder(out, writable=os.environ.get("RANK", "0") == "0")
    steps_as_data = [step.to_data(describe) for step in steps]
    with folder.locked():
        model_hash = model_fingerprint(model)
        check_max_drop(goal.max_drop, task.selection_metric, "max_drop of the goal")
        setting, misfit = _prepare(model, model_hash, task, seed, check, progress)
        for step in steps:
            step.preflight(model, task, setting.data)
        _write_header(folder, setting, model_hash, steps, steps_as_data, goal)
        why_no_control = _why_no_control(steps, control, with_control)
        run = _WholeRun(setting, folder, steps, goal, misfit)
        return run.finish([] if why_no_control else control, why_no_control, with_cost)


def _prepare(
    model: nn.Module,
    model_hash: str,
    task: Task,
    seed: int,
    check: Callable[[Traits], Traits],
    progress: Progress,
) -> tuple[Setting, str | None]:
    """Check model, data and order of the steps; return also what does not fit about the model."""
    progress.say("reading and checking the data")
    data = task.prepare()
    batch = next(data.train.in_order(2))
    misfit = check_model_fits(task, model, batch)
    traits = initial_traits(model, fits=misfit is None)
    try:
        check(traits)
    except OrderError as error:
        fails = forward_problem(model, batch)
        if fails is not None:
            raise ModelError(f"{fails}.") from None
        raise OrderError(f"{error} ({misfit})" if misfit else str(error)) from None
    key = chain(
        f"overhaul {_FORMAT}",
        [model_hash, data.fingerprint, task.to_data(describe), seed],
    )
    return Setting(model, task, data, seed, key, traits, progress), misfit


def initial_traits(model: nn.Module, *, fits: bool) -> Traits:
    """Return what is true of a model before the first step."""
    traits = {Trait.EDITABLE}
    if any(p.requires_grad and p.is_floating_point() for p in model.parameters()):
        traits.add(Trait.TRAINABLE)
    if fits:
        traits.add(Trait.FITS_TASK)
    return frozenset(traits)


def _write_header(
    folder: RunFolder,
    setting: Setting,
    model_hash: str,
    steps: Sequence[Step],
    steps_as_data: list[object],
    goal: Goal,
) -> None:
    now = datetime.now(UTC).isoformat(timespec="seconds")
    folder.update_manifest(
        created=folder.manifest().get("created", now),
        updated=now,
        steps=None,  # known again when the run is finished
        key=setting.key,
        seed=setting.seed,
        goal={"max_drop": goal.max_drop},
        model={"class": type(setting.original).__qualname__, "hash": model_hash},
        data={"task": setting.task.spec_name(), "hash": setting.data.fingerprint},
        recipe_hash=chain("", steps_as_data),
        machine=machine(),
        versions=versions(),
    )
    recipe = {
        "task": _readable(setting.task),
        "steps": [_readable(step) for step in steps],
        "goal": {"max_drop": goal.max_drop},
        "seed": setting.seed,
    }
    if folder.writable:
        write_text(folder.path / "recipe.yaml", yaml_text(recipe))


def _readable(spec: Spec) -> object:
    """Return the spec as a recipe file can hold it; with stand-ins for what none can hold."""
    try:
        return spec.to_data()
    except SpecError:
        return spec.to_data(describe)


def _why_no_control(steps: Sequence[Step], control: Sequence[Step], wanted: bool) -> str | None:
    if not wanted:
        return "it was not asked for (control=False)"
    if not any(Trait.TRAINABLE in step.needs for step in control):
        return "the recipe trains nothing, so the original is the control"
    if list(control) == [step for step in steps if Trait.DEPLOYED not in step.gives]:
        return "the recipe is training alone, so it is its own control"
    return None


class _WholeRun:
    """One run at work in its folder, with the lock held."""

    def __init__(
        self,
        setting: Setting,
        folder: RunFolder,
        steps: Sequence[Step],
        goal: Goal,
        misfit: str | None,
    ) -> None:
        self.setting, self.folder, self.steps, self.goal = setting, folder, steps, goal
        self.misfit = misfit
        self.facts_by_part: dict[str, list[Fact]] = {}

    def finish(self, control: Sequence[Step], why_no_control: str | None, with_cost: bool) -> Run:
        """Do all that is not done yet."""
        setting, folder = self.setting, self.folder
        self._keep("data", list(setting.data.facts))
        self._keep("original", self._stage("original", setting.key, self._measure_original))
        states = run_steps(
            setting, self.steps, folder, after_each=lambda states: self._keep_states("", states)
        )
        self._keep_states("", states)
        control_states: list[StepState] = []
        if control:
            setting.progress.say("the control: the same training without the methods")
            alone = folder.child("control")
            alone.update_manifest(steps=None)
            control_states = run_steps(setting, control, alone, prefix="control/")
            alone.update_manifest(steps=len(control_states))
            self._keep_states("control/", control_states)
        last = states[-1].key
        if with_cost:
            self._keep("cost", self._stage("cost", last, lambda: self._measure_cost(states)))
        key = chain(last, [self.goal.to_data(), [state.key for state in control_states]])
        contenders = self._contenders(states, control_states)
        self._keep(
            "verdict",
            self._stage(
                "verdict",
                key,
                lambda: judge(
                    setting, folder, self.goal, contenders, self.misfit, why_no_control, key
                ),
            ),
        )
        model = rebuilt(setting.original, states[-1])
        folder.save_weights(model)
        folder.update_manifest(steps=len(states))
        return Run(folder, model, Verdict.from_facts(self.facts_by_part["verdict"]))

    def _stage(self, name: str, key: str, work: Callable[[], list[Fact]]) -> list[Fact]:
        facts = self.folder.load_stage(name, key)
        if facts is None:
            facts = work()
            self.folder.save_stage(name, key, facts)
        return facts

    def _keep(self, part: str, facts: list[Fact]) -> None:
        self.facts_by_part[part] = facts
        self.folder.write_facts([fact for part in self.facts_by_part.values() for fact in part])

    def _keep_states(self, prefix: str, states: list[StepState]) -> None:
        self._keep(f"{prefix}steps", [fact for state in states for fact in state.facts])

    def _measure_original(self) -> list[Fact]:
        setting = self.setting
        facts = measure(setting, setting.original, "original", setting.traits)
        if self.misfit:
            facts.append(Fact(name="misfit", value=self.misfit, subject="original"))
        return facts

    def _measure_cost(self, states: list[StepState]) -> list[Fact]:
        """Time the original, every model of another structure and the artifact in turns."""
        setting = self.setting
        setting.progress.say("measuring latency and memory")
        models = {"original": setting.original}
        edits: object = ()
        for state in states:
            if state.edits != edits:
                models[state.label] = rebuilt(setting.original, state)
            edits = state.edits
        final = rebuilt(setting.original, states[-1])
        models["final"] = final
        batch = setting.data.val.read(torch.arange(1))
        if self.misfit is not None:
            del models["original"]
        calls = {name: forward_call(model, batch) for name, model in models.items()}
        engines = {}
        if any(Trait.DEPLOYED in step.gives for step in self.steps):
            artifact = load(self.folder.artifact, threads=1)
            calls["artifact"] = forward_call(artifact, batch)
            engines["artifact"] = artifact.engine
        facts = latency_facts(measure_latency(calls), batch_size=1, engines=engines)
        if "original" in models:  # its nominal cost is known from `_measure_original`
            facts.append(peak_memory_fact(setting.original, batch, subject="original"))
        return [*facts, *cost_facts(final, batch, subject="final")]

    def _contenders(
        self, states: list[StepState], control_states: list[StepState]
    ) -> dict[str, Contender]:
        original = self.setting.original
        contenders: dict[str, Contender] = {}
        if self.misfit is None:
            contenders["original"] = lambda: original
        contenders["final"] = lambda: rebuilt(original, states[-1])
        if any(Trait.DEPLOYED in step.gives for step in self.steps):
            contenders["final"] = lambda: load(self.folder.artifact, trust=True)
        if control_states:
            contenders["control"] = lambda: rebuilt(original, control_states[-1])
        return contenders
