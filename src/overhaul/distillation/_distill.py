"""`Distill`: a student learns from a teacher."""

from collections.abc import Container
from contextlib import nullcontext
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Literal, Self, TypeAlias

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
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
from overhaul.distillation._layer_match import LayerMatch
from overhaul.distillation._match import BoundMatch, Match
from overhaul.distillation._mixture import MIXTURE_LOSS, Mixture
from overhaul.distillation._seen import Seen, see
from overhaul.distillation._soft_targets import SoftTargets
from overhaul.distillation._teacher_cache import CachedTeacher, TeacherCache
from overhaul.training import BoundObjective, Objective

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
        weight: :math:`\lambda`, the share of the teacher in the loss, in [0, 1]. Default 0.5.
        mix: How several teachers are weighted: `equal`, or `learned` by the task's loss of their
            mixture on the training batches; no gradient of it reaches the student.
        cache: Where outputs of the teacher are kept, so that they are computed once. Default: they
            are computed each time.

    Raises:
        SpecError: layers of several teachers are to be matched; or a cache is given, and more than
            the outputs of one teacher is needed.
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
    weight: float = Field(
        default=0.5, ge=0, le=1, description="It is the teacher's share of the loss."
    )
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
        if isinstance(teacher, Mixture) and teacher.learned:
            self.companions, self.beside = teacher.companions, (MIXTURE_LOSS,)
        self._cached = None if plan.cache is None else CachedTeacher(plan.cache, teacher, ctx)
        self.matches = nn.ModuleList(matches)
        self._student = (student,)  # in a tuple, or it would be a part of this module
        self._student_paths = {path for match in matches for path in match.student_paths}
        self._teacher_paths = {path for match in matches for path in match.teacher_paths}
        self._input_gradients = any(match.input_gradients for match in matches)

    def forward(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        if self._input_gradients:
            batch = batch.map_inputs(_with_gradient)
        # The other kernels of attention cannot be differentiated twice.
        twice = sdpa_kernel(SDPBackend.MATH) if self._input_gradients else nullcontext()
        with twice:
            student = see(self._student[0], batch, self._student_paths, call=model)
        teacher, beside = self._teacher_sees(batch)
        fixed = teacher.detached()
        share = self.plan.weight
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
