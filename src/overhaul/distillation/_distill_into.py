"""`DistillInto`: the model teaches another network, which takes its place."""

import math
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar

from pydantic import Field, field_validator
from torch import nn

from overhaul.core import (
    Carried,
    Context,
    Edit,
    Fact,
    Network,
    OrderError,
    OverhaulError,
    SpecError,
    Splits,
    Step,
    Task,
    Trait,
    Traits,
    derived_seed,
    model_tensors,
    rebuild,
    trainable_names,
)
from overhaul.distillation._distill import Distill
from overhaul.distillation._given_network import built_to_fit, network_of
from overhaul.distillation._layer_match import LayerMatch
from overhaul.distillation._swap_model import SwapModel
from overhaul.evaluation import count_parameters, model_device, predict
from overhaul.training import TaskLoss, Train


class DistillInto(Step):
    r"""The model teaches a student, which takes its place.

    The student is another network, or what a step makes of a copy of the model: with
    `student=PruneChannels(macs=0.5)` it inherits the weights that are left. It learns by `train`,
    with the model that came in as the teacher.

    With `assistants`, the model teaches the first of them, each the next one, and the last the
    student; so a large gap of capacity is taken in steps. With several `generations`, the student
    is made anew each time, and learns from the generation before; the one that is best on `val` is
    kept.

    The control is the same student, from the same initial weights, trained alone for all the
    epochs that the recipe spends: those of `train`, trials included, for each assistant and each
    generation, in one training. A `Distill` with the weight 0 stands for that.

    Args:
        student: A `Network`, a factory, or a step that makes it of a copy of the model.
        train: How each network is trained. If its objective is no `Distill`, `Distill()` is taken;
            the teacher is set by this step. What is `auto` is chosen for each network anew.
        assistants: Networks between model and student, the largest first, each given like the
            student; steps are applied to a copy of the model. Layers that a match names have to be
            in all of them. Default none.
        generations: How many students learn one after the other. Default 1.

    Raises:
        SpecError: the objective is another one than `Distill`, or has a teacher of its own.
        ModelError: a network does not fit the task.

    Example:
        >>> small = Network(factory="overhaul.testing:TinyCNN")
        >>> DistillInto(student=small, train=Train(epochs=1))
        DistillInto(student=Network(factory='overhaul.testing:TinyCNN'), train=Train(epochs=1))

    Paper: Mirzadeh et al., AAAI 2020 (assistants); Furlanello et al., ICML 2018 (generations).
    Differs: born-again networks are of the teacher's own architecture, and the last one or an
    ensemble of all is kept; here the student may be any network, and the best on `val` is kept.
    """

    # That it trains is how a run knows that a control has something to show.
    needs: ClassVar[Traits] = frozenset({Trait.EDITABLE, Trait.TRAINABLE, Trait.FITS_TASK})

    student: Step | Network
    train: Train
    assistants: tuple[Step | Network, ...] = ()
    generations: int = Field(
        default=1, ge=1, description="It is how many students learn one after the other."
    )

    @field_validator("student", mode="before")
    @classmethod
    def _from_factory(cls, value: Any) -> Any:
        return network_of(value)

    @field_validator("assistants", mode="before")
    @classmethod
    def _from_factories(cls, value: Any) -> Any:
        return [network_of(each) for each in value] if isinstance(value, tuple | list) else value

    @field_validator("train")
    @classmethod
    def _teacher_is_free(cls, train: Train) -> Train:
        objective = train.objective
        if not isinstance(objective, Distill | TaskLoss):
            raise SpecError(
                f"the objective of the training in DistillInto must be a Distill, got {objective}. "
                "Use it in a Train of its own, after SwapModel."
            )
        if isinstance(objective, Distill) and objective.teacher != "original":
            raise SpecError(
                "the teacher in DistillInto is the model that comes in. Leave `teacher` out, or "
                "use SwapModel and Train, whose objective may have any teacher."
            )
        return train

    def check(self, traits: Traits) -> Traits:
        """Check that each network can be made, and trained when it is."""
        # Nothing of the teacher is trained: it may be frozen where the student is another network.
        after = super().check(traits | {Trait.TRAINABLE})
        for whose, made in self._networks():
            try:
                after = self.train.check(_step_of(made).check(traits))
            except OrderError as error:
                raise OrderError(f"{whose}: {error}") from None
        return after

    def preflight(self, original: nn.Module, task: Task, data: Splits) -> None:
        """See that each network can be built and fits the task, before any step starts."""
        self.train.model_copy(update={"objective": TaskLoss()}).preflight(original, task, data)
        batch, matches = next(data.train.in_order(2)), self._objective.match
        for match in matches:
            if not isinstance(match, LayerMatch):  # an earlier step may change layers
                match.preflight(original, task, batch)
        for whose, made in self._networks():
            if isinstance(made, Step):
                try:
                    made.preflight(original, task, data)
                except OverhaulError as error:
                    raise type(error)(f"{whose}: {error}") from None
                continue
            network = built_to_fit(made, whose, task, data)
            if made in self.assistants:  # a teacher, then
                for match in matches:
                    match.preflight(network, task, batch)

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Teach the assistants, then the generations, and return the best of these."""
        # All are made before one is trained: what cannot be made is refused at once.
        assistants = [
            _Stage(("assistant", number), made, model, ctx)
            for number, made in enumerate(self.assistants, 1)
        ]
        student = self._generation(1, model, ctx)
        _log_quality(model, "teacher", ctx)
        teacher = model
        for stage in assistants:
            stage.train_(self._train_from(teacher), ctx)
            teacher = stage.network
        best = student
        for number in range(1, self.generations + 1):
            if number > 1:
                student = self._generation(number, model, ctx)
            student.train_(self._train_from(teacher), ctx)
            teacher = student.network
            if student.score > best.score:
                best = student
        if self.generations > 1:
            ctx.log("best_generation", best.number)
        ctx.edits[:], ctx.carried[:] = best.ctx.edits, best.ctx.carried
        return best.network

    def control(self) -> Step:
        """Return the same student, trained alone for as many epochs as all networks together."""
        once = self.train.control()
        epochs = once.epochs * (len(self.assistants) + self.generations)
        alone = once.model_copy(update={"objective": Distill(weight=0.0), "epochs": epochs})
        return type(self)(student=self.student, train=alone)

    @property
    def _objective(self) -> Distill:
        objective = self.train.objective
        return objective if isinstance(objective, Distill) else Distill()

    def _networks(self) -> Iterator[tuple[str, Step | Network]]:
        """Yield all that is made, the student last, with what it is called in an error."""
        for number, made in enumerate(self.assistants, 1):
            yield f"assistant {number} of DistillInto", made
        yield "the student of DistillInto", self.student

    def _generation(self, number: int, model: nn.Module, ctx: Context) -> "_Stage":
        return _Stage(("student", number), self.student, model, ctx)

    def _train_from(self, teacher: nn.Module) -> Train:
        objective = self._objective
        if objective.weight == 0:
            return self.train.model_copy(update={"objective": TaskLoss()})
        taught = objective.model_copy(update={"teacher": teacher})
        return self.train.model_copy(update={"objective": taught})


class _Stage:
    """One network on the way: made of the model, and then trained."""

    def __init__(
        self, name: tuple[str, int], made: Step | Network, model: nn.Module, ctx: Context
    ) -> None:
        self.name, self.number = f"{name[0]} {name[1]}", name[1]
        self.score = -math.inf
        self.ctx = replace(
            ctx,
            seed=derived_seed(ctx.seed, *name),
            label=f"{ctx.label}, {self.name}",
            edits=list(ctx.edits),
            carried=list(ctx.carried),
            facts=[],
            checkpoints=ctx.checkpoints.part("{}-{}".format(*name)),
        )
        self.network = self._made(_step_of(made), model)

    def _made(self, step: Step, model: nn.Module) -> nn.Module:
        """Apply the step, or read what it made before an interruption."""
        ctx, checkpoints = self.ctx, self.ctx.checkpoints.part("made")
        found = checkpoints.latest()
        if found is not None:
            ctx.edits[:] = [Edit.from_data(data) for data in found["edits"]]
            ctx.carried[:] = [Carried.from_data(data) for data in found["carried"]]
            ctx.facts[:] = [Fact.model_validate(data) for data in found["facts"]]
            network = rebuild(ctx.original, ctx.edits, found["tensors"], found["trainable"])
            return network.to(model_device(model)).train(model.training)
        inner = replace(ctx, checkpoints=ctx.checkpoints.part("making"))
        with inner.seeded("made"):
            network = step.apply(deepcopy(model), inner)
        ctx.edits, ctx.carried = inner.edits, inner.carried
        checkpoints.save(
            0,
            {
                "edits": [edit.to_data() for edit in ctx.edits],
                "carried": [item.to_data() for item in ctx.carried],
                "facts": [fact.model_dump(mode="json") for fact in ctx.facts],
                "tensors": model_tensors(network),
                "trainable": trainable_names(network),
            },
        )
        return network

    def train_(self, train: Train, ctx: Context) -> None:
        """Train the network, and hand on what was found."""
        self.network = train.apply(self.network, self.ctx)
        ctx.facts += self.ctx.facts
        quality = _log_quality(self.network, self.name, ctx)
        self.score = quality if ctx.task.higher_is_better else -quality


def _log_quality(network: nn.Module, stage: str, ctx: Context) -> float:
    found, metric = predict(network, ctx.data.val), ctx.task.selection_metric
    quality = ctx.task.metrics(found.outputs, found.targets)[metric]
    detail = {"stage": stage, "metric": metric, "parameters": count_parameters(network)}
    ctx.log("stage_quality", quality, split="val", n=len(found), detail=detail)
    return quality


def _step_of(made: Step | Network) -> Step:
    if isinstance(made, Step):
        return made
    return SwapModel(factory=made.factory, arguments=made.arguments, weights=made.weights)
