"""`Distill`: a student learns from a teacher."""

from collections.abc import Container, Mapping
from contextlib import nullcontext
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Literal, Self, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from overhaul.core import (
    Batch,
    Context,
    InputFile,
    ModelError,
    Network,
    SpecError,
    Splits,
    Task,
    check_model_fits,
    evaluating,
    load_weights_,
)
from overhaul.distillation._auto import Share, as_number, open_temperature
from overhaul.distillation._differentiable_twice import differentiable_twice
from overhaul.distillation._layer_match import LayerMatch
from overhaul.distillation._match import BoundMatch, Match
from overhaul.distillation._mixture import MIXTURE_LOSS, Mixture
from overhaul.distillation._output_match import OutputMatch
from overhaul.distillation._seen import Seen, see
from overhaul.distillation._soft_targets import SoftTargets
from overhaul.distillation._teacher_cache import CachedTeacher, TeacherCache
from overhaul.training import BoundObjective, Objective, OpenSetting, TaskLoss

_WEIGHTS, _WEIGHT = (0.0, 0.25, 0.5, 0.9), 0.5
_NO_HELP = "the teacher was found not to help on val, so that the model learns without it"

Teacher: TypeAlias = Literal["original"] | Network | InputFile | nn.Module
"""The original, a network as data, a file of weights for the original, or a network."""


class Distill(Objective):
    r"""The task's loss and what of a teacher the student is to match.

    .. math:: L = (1 - \lambda)\,L_\text{task} + \lambda \sum_k w_k\,L_k

    with a loss :math:`L_k` and its weight for each match. The teacher sees the very inputs that the
    student sees, augmentations included, is in evaluation mode and does not learn. Losses that
    would have the same name are numbered: `hints`, `hints_2`.

    Args:
        teacher: `original` (the model that the run was given), a network, a `Network` (factory and
            weights), or a file with weights for the original's architecture; or several of these,
            whose outputs (logits, for classes) are mixed. Default `original`.
        match: What the student matches of the teacher. Default `SoftTargets()`.
        weight: :math:`\lambda`, the share of the teacher in the loss, in [0, 1]; or `auto`, for the
            one of 0, 0.25, 0.5 and 0.9 that does best on `val` in short trials. Default 0.5.
        mix: How several teachers are weighted: `equal`, or `learned` by the task's loss of their
            mixture on the training batches; no gradient of it reaches the student.
        cache: Where outputs of the teacher are kept, so that they are computed once. Default: they
            are computed each time.

    Raises:
        SpecError: layers of several teachers are to be matched; a cache is given, and more than
            the outputs of one teacher is needed; or a temperature is `auto` and the weight is 0.
        ModelError: the teacher's outputs do not fit the task, or are not finite.

    Example:
        >>> Distill(match=[SoftTargets(temperature=2.0)], weight=0.9)
        Distill(match=(SoftTargets(temperature=2.0),), weight=0.9)

    Paper: Hinton, Vinyals and Dean, 2015; You et al., KDD 2017 (several teachers).  Differs: the
    two weights sum to one; outputs of several teachers are mixed before they are softened.
    """

    teacher: Teacher | tuple[Teacher, ...] = "original"
    match: tuple[Match, ...] = Field(
        default=(SoftTargets(),),
        min_length=1,
        description="At least one match, such as soft_targets.",
    )
    weight: Share = Field(default=0.5, description="It is the teacher's share of the loss.")
    mix: Literal["equal", "learned"] = "equal"
    cache: TeacherCache | None = None

    @model_validator(mode="after")
    def _several_teachers(self) -> Self:
        if not self._teachers:
            raise SpecError("`teacher` is an empty list. Give at least one teacher.")
        if len(self._teachers) > 1:
            for match in _layer_matches(self.match):
                raise SpecError(_no_layers(match))
            if self.cache is not None:
                raise SpecError("`cache` keeps the outputs of one teacher, and there are several.")
        elif self.cache is not None and (layers := _layer_matches(self.match)):
            raise SpecError(_not_kept(layers[0]))
        elif self.mix == "learned":
            raise SpecError("`mix` is 'learned', and there is one teacher. Give several, or none.")
        return self

    @model_validator(mode="after")
    def _temperatures_matter(self) -> Self:
        if self.weight == 0 and self.open_settings:
            raise SpecError(
                "a temperature is 'auto' and `weight` is 0, so that none makes a difference. Give "
                "a weight above 0, or weight='auto'."
            )
        return self

    @property
    def open_settings(self) -> tuple[OpenSetting, ...]:
        """Temperatures that are `auto`, and then the weight."""
        found: dict[str, OpenSetting] = {}
        for match in self.match:
            if isinstance(match, OutputMatch) and match.temperature == "auto":
                name = _free_name(f"{match.spec_name()}.temperature", found)
                default = type(match).model_fields["temperature"].default
                found[name] = open_temperature(name, default)
        share = OpenSetting("weight", _WEIGHTS, _WEIGHT, {0.0: _NO_HELP})
        return (*found.values(), *((share,) if self.weight == "auto" else ()))

    def settled(self, values: Mapping[str, float]) -> Objective:
        """Return the objective with these temperatures and this weight; `TaskLoss` for 0."""
        temperatures = iter(v for name, v in values.items() if name != "weight")
        match = tuple(
            each.model_copy(update={"temperature": next(temperatures)})
            if isinstance(each, OutputMatch) and each.temperature == "auto"
            else each
            for each in self.match
        )
        weight = values["weight"] if self.weight == "auto" else self.weight
        if weight == 0:
            return TaskLoss()
        return self.model_copy(update={"match": match, "weight": weight})

    @property
    def _teachers(self) -> tuple[Teacher, ...]:
        return self.teacher if isinstance(self.teacher, tuple) else (self.teacher,)

    def preflight(self, original: nn.Module, task: Task, data: Splits) -> None:
        """Load each teacher and see that its outputs fit the task, and every match the teacher."""
        teacher, batch = self._load(original), next(data.train.in_order(2))
        each = teacher.teachers if isinstance(teacher, Mixture) else [teacher]
        for number, one in enumerate(each, 1):
            problem = check_model_fits(task, one, batch) or _not_finite(one, batch)
            if problem is not None:
                name = "the teacher" if len(each) == 1 else f"teacher {number}"
                raise ModelError(f"{name} cannot teach this task: {problem}")
        if self.cache is not None:
            if len(task.parts) > 1:
                raise SpecError(
                    "`cache` keeps one tensor of the teacher, and this task has several "
                    f"({', '.join(task.parts)}). Leave it out."
                )
            self.cache.opened().close()
        for match in self.match:
            match.preflight(teacher, task, batch)

    def bind(self, model: nn.Module, ctx: Context) -> BoundObjective:
        """Return the objective with its teacher."""
        device = next(model.parameters()).device
        teacher = self._load(ctx.original).to(device)
        batch = next(ctx.data.train.in_order(2)).to(device)
        with evaluating(model), ctx.seeded("match"):
            matches = [match.bind(model, teacher, batch, ctx) for match in self.match]
        for plan, bound in zip(self.match, matches, strict=True):
            if self.cache is not None and (bound.teacher_paths or bound.input_gradients):
                raise SpecError(_not_kept(plan))
            if bound.teacher_paths and isinstance(teacher, Mixture):
                raise SpecError(_no_layers(plan))
        return _Distillation(self, model, teacher, matches, ctx)

    def _load(self, original: nn.Module) -> nn.Module:
        teachers = [_load_teacher(given, original) for given in self._teachers]
        if len(teachers) == 1:
            return teachers[0]
        return Mixture(teachers, learned=self.mix == "learned")


def _load_teacher(given: Teacher, original: nn.Module) -> nn.Module:
    if isinstance(given, Network):
        teacher = given.build()
    elif isinstance(given, nn.Module):
        teacher = deepcopy(given)
    else:
        teacher = deepcopy(original)
        if given != "original":
            load_weights_(teacher, Path(given))
    return teacher.eval().requires_grad_(False)


@torch.no_grad()
def _not_finite(teacher: nn.Module, batch: Batch) -> str | None:
    outputs = batch.forward(teacher)
    if all(bool(each.isfinite().all()) for each in tree_leaves(outputs)):
        return None
    return (
        "its outputs for the first samples of `train` are not all finite. Look for a weight that "
        "is not (`torch.isfinite`), and for an overflow in its forward pass."
    )


def _layer_matches(matches: tuple[Match, ...]) -> list[LayerMatch]:
    return [match for match in matches if isinstance(match, LayerMatch)]


def _not_kept(match: Match) -> str:
    return (
        f"`cache` keeps outputs of the teacher, and {match.spec_name()} needs more of it. Leave "
        "one of them out."
    )


def _no_layers(match: Match) -> str:
    return (
        f"{match.spec_name()} matches layers, and several teachers have no layers in common. Give "
        "one teacher, or match outputs (soft_targets)."
    )


class _Distillation(BoundObjective):
    def __init__(
        self,
        plan: Distill,
        student: nn.Module,
        teacher: nn.Module,
        matches: list[BoundMatch],
        ctx: Context,
    ) -> None:
        super().__init__()
        self.plan, self.teacher, self.task, self._ctx = plan, teacher, ctx.task, ctx
        self.networks, self.share = (teacher,), as_number(plan.weight, "weight")
        if isinstance(teacher, Mixture) and teacher.learned:
            self.companions, self.beside = teacher.companions, (MIXTURE_LOSS,)
        self._cached = None if plan.cache is None else CachedTeacher(plan.cache, teacher, ctx)
        self.matches = nn.ModuleList(matches)
        self._student = (student,)  # in a tuple, or it would be a part of this module
        self._student_paths = {path for match in matches for path in match.student_paths}
        self._teacher_paths = {path for match in matches for path in match.teacher_paths}
        of_inputs = [match for match in matches if match.input_gradients]
        self._input_gradients = bool(of_inputs)
        for match in of_inputs[-1:]:
            match.keep_teacher_graph = False

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        if self._input_gradients:
            batch = batch.map_inputs(_with_gradient)
        with differentiable_twice() if self._input_gradients else nullcontext():
            student = see(self._student[0], batch, self._student_paths, call=model)
        teacher, beside = self._teacher_sees(batch)
        fixed = teacher.detached()
        share = self.share
        losses = self.task.losses(student.outputs, batch.targets)
        weighted = {name: (1 - share) * loss for name, loss in losses.items()}
        for plan, match in zip(self.plan.match, self.matches, strict=True):
            losses = match(student, teacher if match.input_gradients else fixed)
            for name, loss in losses.items():
                weighted[_free_name(name, weighted)] = share * plan.weight * loss
        return weighted | beside

    def after_epoch(self, epoch: int) -> None:
        if self._cached is not None:
            self._cached.log(epoch)
        if isinstance(self.teacher, Mixture) and self.teacher.learned:
            for number, weight in enumerate(self.teacher.weights(), 1):
                self._ctx.log("teacher_weight", weight, detail={"epoch": epoch, "teacher": number})

    def _teacher_sees(self, batch: Batch) -> tuple[Seen, dict[str, Tensor]]:
        if self._cached is not None:
            with torch.no_grad():
                return self._cached.see(batch), {}
        with torch.set_grad_enabled(self._input_gradients):
            if isinstance(self.teacher, Mixture):
                return self.teacher.see(batch, self.task)
            return see(self.teacher, batch, self._teacher_paths), {}


def _with_gradient(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor


def _free_name(name: str, taken: Container[str]) -> str:
    numbered = (f"{name}_{number}" for number in count(2))
    return name if name not in taken else next(each for each in numbered if each not in taken)
