"""`Distill`: a student learns from a teacher."""

from collections.abc import Container
from contextlib import nullcontext
from copy import deepcopy
from itertools import count
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from overhaul.core import (
    Batch,
    Context,
    InputFile,
    ModelError,
    Network,
    Splits,
    Task,
    check_model_fits,
    evaluating,
    load_weights_,
)
from overhaul.distillation._match import BoundMatch, Match
from overhaul.distillation._seen import Seen, see
from overhaul.distillation._soft_targets import SoftTargets
from overhaul.training import BoundObjective, Objective


class Distill(Objective):
    r"""The task's loss and what of a teacher the student is to match.

    .. math:: L = (1 - \lambda)\,L_\text{task} + \lambda \sum_k w_k\,L_k

    with a loss :math:`L_k` and its weight for each match. The teacher sees the very inputs that the
    student sees, augmentations included, is in evaluation mode and does not learn. Losses that
    would have the same name are numbered: `hints`, `hints_2`.

    Args:
        teacher: `original` (the model that the run was given), a network, a `Network` (factory and
            weights), or a file with weights for the original's architecture.
        match: What the student matches of the teacher. Default `SoftTargets()`.
        weight: :math:`\lambda`, the share of the teacher in the loss, in [0, 1]. Default 0.5.

    Raises:
        ModelError: the teacher's outputs do not fit the task.

    Example:
        >>> Distill(match=[SoftTargets(temperature=2.0)], weight=0.9)
        Distill(match=(SoftTargets(temperature=2.0),), weight=0.9)

    Paper: Hinton, Vinyals and Dean, 2015.  Differs: the two weights sum to one.
    """

    teacher: Literal["original"] | Network | InputFile | nn.Module = "original"
    match: tuple[Match, ...] = Field(
        default=(SoftTargets(),),
        min_length=1,
        description="At least one match, such as soft_targets.",
    )
    weight: float = Field(
        default=0.5, ge=0, le=1, description="It is the teacher's share of the loss."
    )

    def preflight(self, original: nn.Module, task: Task, data: Splits) -> None:
        """Load the teacher and see that its outputs fit the task, and every match the teacher."""
        teacher, batch = self._load_teacher(original), next(data.train.in_order(2))
        problem = check_model_fits(task, teacher, batch)
        if problem is not None:
            raise ModelError(f"the teacher cannot teach this task: {problem}")
        for match in self.match:
            match.preflight(teacher, task, batch)

    def bind(self, model: nn.Module, ctx: Context) -> BoundObjective:
        """Return the objective with its teacher."""
        device = next(model.parameters()).device
        teacher = self._load_teacher(ctx.original).to(device)
        batch = next(ctx.data.train.in_order(2)).to(device)
        with evaluating(model), ctx.seeded("match"):
            matches = [match.bind(model, teacher, batch, ctx) for match in self.match]
        return _Distillation(self, model, teacher, matches, ctx.task)

    def _load_teacher(self, original: nn.Module) -> nn.Module:
        if isinstance(self.teacher, Network):
            teacher = self.teacher.build()
        elif isinstance(self.teacher, nn.Module):
            teacher = deepcopy(self.teacher)
        else:
            teacher = deepcopy(original)
            if self.teacher != "original":
                load_weights_(teacher, Path(self.teacher))
        return teacher.eval().requires_grad_(False)


class _Distillation(BoundObjective):
    def __init__(
        self,
        plan: Distill,
        student: nn.Module,
        teacher: nn.Module,
        matches: list[BoundMatch],
        task: Task,
    ) -> None:
        super().__init__()
        self.plan, self.teacher, self.task = plan, teacher, task
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
        teacher = self._teacher_sees(batch)
        fixed = teacher.detached()
        share = self.plan.weight
        losses = self.task.losses(student.outputs, batch.targets)
        weighted = {name: (1 - share) * loss for name, loss in losses.items()}
        for plan, match in zip(self.plan.match, self.matches, strict=True):
            losses = match(student, teacher if match.input_gradients else fixed)
            for name, loss in losses.items():
                weighted[_free_name(name, weighted)] = share * plan.weight * loss
        return weighted

    def _teacher_sees(self, batch: Batch) -> Seen:
        with torch.set_grad_enabled(self._input_gradients):
            return see(self.teacher, batch, self._teacher_paths)


def _with_gradient(tensor: Tensor) -> Tensor:
    return tensor.detach().requires_grad_() if tensor.is_floating_point() else tensor


def _free_name(name: str, taken: Container[str]) -> str:
    numbered = (f"{name}_{number}" for number in count(2))
    return name if name not in taken else next(each for each in numbered if each not in taken)
