"""`GradientMatching`: the student answers to changes of the inputs as the teacher does."""

from collections.abc import Mapping
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from overhaul.core import Batch, Context, ModelError, SpecError, Task, part_of
from overhaul.distillation._differentiable_twice import by_inputs_only, differentiable_twice
from overhaul.distillation._match import BoundMatch, Match
from overhaul.distillation._output_match import check_one_shape
from overhaul.distillation._precision import single, unit, without_autocast
from overhaul.distillation._seen import Seen, see


class GradientMatching(Match):
    r"""The squared distance of the two networks' gradients by their inputs.

    .. math::
        L = \frac{1}{B K} \sum_b \sum_{k=1}^{K}
            \bigl\|J_{s,b}^\top v_{bk} - J_{t,b}^\top v_{bk}\bigr\|_2^2

    with the Jacobians :math:`J_b` of the outputs by the input of sample :math:`b`, `[C, D]`, and
    random directions :math:`v` of length one. Its expectation is :math:`\frac{1}{C}
    \|J_s - J_t\|_F^2` averaged over samples, without a Jacobian ever being computed. The logits of
    classes can be shifted together without any effect, so for them the directions sum to zero over
    classes (and :math:`\frac{1}{C - 1}` of what is left of the Jacobians is expected). With
    `normalize`, both gradients are divided by their lengths first: only their directions are
    matched, and the loss is in [0, 4].

    Each projection costs a backward pass of the teacher, and one of the student that is itself
    differentiated: 2.7 backward passes of a ResNet-20 on a CPU, 4.6 of a small CNN
    (`benchmarks/learning_cost.py`). A step took 2.6 and 3.0 times as long as with `SoftTargets`.

    A BatchNorm in training ties the samples of a batch. With one direction for all of them, the sum
    of the outputs would not change with any input behind a BatchNorm, and its gradient would
    say nothing: each sample has a direction of its own, so that the others add noise alone.

    Args:
        projections: :math:`K`, random directions for each sample and step. Default 1.
        normalize: Whether only the directions of the gradients are matched. Default True.
        weight: Factor of this loss beside the others. Default 1.

    Shapes: inputs `[B, ...]` of real numbers; several inputs are taken together.

    Raises:
        SpecError: no input is of real numbers (tokens are not).
        ModelError: a network cannot be differentiated by its inputs, or the student not twice.

    Example:
        >>> GradientMatching(projections=2, normalize=False)
        GradientMatching(projections=2, normalize=False)

    Paper: Srinivas and Fleuret, ICML 2018; Czarnecki et al., NeurIPS 2017 (Sobolev training, whose
    random projections these are).  Differs: directions sum to zero over classes; `normalize` is by
    the length of each projection.
    """

    projections: int = Field(default=1, ge=1, description="Random directions in each step.")
    normalize: bool = Field(default=True, description="Whether lengths are left out.")

    def preflight(self, teacher: nn.Module, task: Task, batch: Batch) -> None:
        """See that there is an input of real numbers."""
        if not _real_inputs(batch):
            raise SpecError(
                f"{self.spec_name()} needs inputs of real numbers, and there is none of them here: "
                "numbers of tokens or of pixels in bytes have no gradient. Use soft_targets, or "
                "scale the inputs to real numbers."
            )

    def bind(
        self, student: nn.Module, teacher: nn.Module, batch: Batch, ctx: Context
    ) -> BoundMatch:
        """Return the match, and see that both networks can be differentiated as it needs."""
        bound = _GradientMatching(self, ctx.task)
        bound.try_on(student, teacher, batch)
        return bound


class _GradientMatching(BoundMatch):
    input_gradients = True

    def __init__(self, plan: GradientMatching, task: Task) -> None:
        super().__init__()
        self.plan, self.task = plan, task

    def forward(self, student: Seen, teacher: Seen) -> dict[str, Tensor]:
        directions = [self._directions(student, teacher) for _ in range(self.plan.projections)]
        # The teacher first: what its graph holds is free before the student's gradients need it.
        last = len(directions) - 1
        theirs = [
            self._gradient(teacher, each, keep=self.keep_teacher_graph or number < last)
            for number, each in enumerate(directions)
        ]
        own = [self._gradient(student, each, differentiable=True) for each in directions]
        losses = [self._distance(*pair) for pair in zip(own, theirs, strict=True)]
        return {self.plan.spec_name(): sum(losses[1:], losses[0]) / len(losses)}

    def _distance(self, own_BD: Tensor, theirs_BD: Tensor) -> Tensor:
        if self.plan.normalize:
            own_BD, theirs_BD = unit(own_BD), unit(theirs_BD)
        return (own_BD - theirs_BD).square().sum() / len(own_BD)

    def _directions(self, student: Seen, teacher: Seen) -> list[Tensor]:
        """Return a direction for each sample, of length one over the outputs of all parts."""
        drawn = []
        for name, part in self.task.parts.items():
            output = part_of(student.outputs, name)
            check_one_shape(output, part_of(teacher.outputs, name))
            direction = torch.randn_like(single(output))
            if part.output_kind == "classes":
                direction = direction - direction.mean(1, keepdim=True)
            drawn.append(direction)
        flat_BC = unit(torch.cat([each.reshape(len(each), -1) for each in drawn], dim=1))
        sizes = [each[0].numel() for each in drawn]
        return [
            part_BC.reshape(each.shape)
            for part_BC, each in zip(flat_BC.split(sizes, dim=1), drawn, strict=True)
        ]

    def _gradient(
        self,
        seen: Seen,
        directions: list[Tensor],
        *,
        keep: bool = True,
        differentiable: bool = False,
    ) -> Tensor:
        """Return the gradient of the outputs along the directions by all inputs, `[B, D]`."""
        outputs = [part_of(seen.outputs, name) for name in self.task.parts]
        inputs = _real_inputs(seen.batch)
        # A backward pass goes in the types of its forward pass; autocast would meddle with them.
        with without_autocast(inputs[0]), by_inputs_only():
            gradients = torch.autograd.grad(
                outputs,
                inputs,
                [each.to(output.dtype) for each, output in zip(directions, outputs, strict=True)],
                retain_graph=keep,
                create_graph=differentiable,
                materialize_grads=True,
            )
        return torch.cat([single(each).reshape(len(each), -1) for each in gradients], dim=1)

    def try_on(self, student: nn.Module, teacher: nn.Module, batch: Batch) -> None:
        """Make one step's computation, so that a network that cannot is refused before training.

        Raises:
            ModelError: a network cannot be differentiated by its inputs, or the student not twice.
        """
        batch = batch.map_inputs(
            lambda tensor: tensor.detach().requires_grad_() if _is_real(tensor) else tensor
        )
        trained = [each for each in student.parameters() if each.requires_grad]
        with torch.enable_grad(), differentiable_twice():
            try:
                (loss,) = self(see(student, batch), see(teacher, batch)).values()
                torch.autograd.grad(loss, trained, allow_unused=True)
            except RuntimeError as error:
                raise ModelError(
                    f"{self.plan.spec_name()} needs the gradients of both networks by their "
                    f"inputs, and that of the student differentiated again, which fails: {error} "
                    "Use other matches for these networks."
                ) from error


def _is_real(tensor: Tensor) -> bool:
    return tensor.is_floating_point()


def _real_inputs(batch: Batch) -> list[Tensor]:
    """Return the inputs that are real numbers and belong to samples."""
    return [
        tensor
        for tensor in _tensors(batch.inputs)
        if _is_real(tensor) and tensor.ndim > 0 and len(tensor) == len(batch)
    ]


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = tuple(value.values())
    if isinstance(value, tuple | list):
        return [found for each in value for found in _tensors(each)]
    return []
