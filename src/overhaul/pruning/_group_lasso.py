"""`GroupLasso`: training that drives whole units to zero."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from overhaul.core import Context, ModelError, matching_names
from overhaul.evaluation import model_device
from overhaul.graph import Graph, Group
from overhaul.pruning._unit_norms import squared_norms, unit_size
from overhaul.training import BoundConstraint, Constraint


class GroupLasso(Constraint):
    r"""Drive whole units to exactly zero while the training goes on.

    With :math:`w_g` the :math:`p_g` weights that make a unit or read it (of all layers of its
    group), the penalty :math:`\lambda_t \sum_g \sqrt{p_g}\,\lVert w_g \rVert_2` is added to
    whatever is minimized, by its proximal step after each step :math:`t` of the optimizer:

    .. math:: w_g \leftarrow \max\Bigl(0,\; 1 - \frac{\lambda_t \sqrt{p_g}}
              {\lVert w_g \rVert_2}\Bigr)\, w_g, \qquad
              \lambda_t = \lambda + t\,\delta

    A unit that the loss does not hold up becomes zero; `RemoveRedundant` then takes it out without
    loss. Like decoupled weight decay, the shrinkage depends neither on the learning rate nor on the
    optimizer's scaling. Train with `keep="last"`: the best epoch on `val` may be one from before
    the zeros.

    A fact `zero_units` says at the end how many units are zero, of how many, and how many more are
    `near_zero`: so small that ten steps more would do. The control is the same training without it.

    Args:
        weight: :math:`\lambda`, by how much the root mean square of a unit's weights shrinks at
            each step: against nothing, one of 0.05 is gone after 500 steps with 1e-4.
        growth: :math:`\delta`, how much is added to it with each step. Default 0.
        exclude: Patterns of module paths whose units are left.

    Raises:
        ModelError: a pattern matches nothing, the model cannot be analysed, or it has no unit that
            could be removed.

    Example:
        >>> GroupLasso(weight=1e-4, growth=1e-7)
        GroupLasso(weight=0.0001, growth=1e-07)

    Paper: Wen et al., NeurIPS 2016 (group lasso of structures); Wang et al., ICLR 2021 (growing
    regularization).  Differs: a proximal step instead of a term of the loss, so that zeros are
    exact, and a growing penalty on the norm of every unit, not on the square of chosen ones. Where
    a weight belongs to two units, by its row and by its column, it shrinks for each.
    """

    weight: float = Field(gt=0, description="It is the shrinkage of a unit's weights at each step.")
    growth: float = Field(default=0.0, ge=0, description="It is added to `weight` at each step.")
    exclude: tuple[str, ...] = ()

    def bind(self, model: nn.Module, ctx: Context) -> BoundConstraint:
        """Find the units from one forward pass."""
        modules = dict(model.named_modules())
        spared = matching_names(modules, self.exclude, "exclude") if self.exclude else set()
        batch = next(ctx.data.train.in_order(2)).to(model_device(model))
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        graph = Graph(model, *batch.arguments)
        groups = [
            group
            for group in graph.groups
            if spared.isdisjoint(group.owners)
            and any(place.tensor in trained for place in group.places)
        ]
        if not groups:
            why = (
                f"All {len(graph.groups)} groups are in `exclude`, or frozen."
                if graph.groups
                else f"Nothing of this model can be removed. {graph.main_reason}"
            )
            raise ModelError(f"GroupLasso has no unit to shrink. {why}".rstrip())
        return _Shrinkage(self, groups, trained, ctx)


_NEAR_STEPS = 10
"""A unit is near zero if so many further steps would make it zero against nothing."""


class _Shrinkage(BoundConstraint):
    def __init__(
        self,
        plan: GroupLasso,
        groups: Sequence[Group],
        parameters: Mapping[str, nn.Parameter],
        ctx: Context,
    ) -> None:
        self.plan, self.groups, self.parameters, self.ctx = plan, groups, parameters, ctx
        self.steps = 0

    @torch.no_grad()
    def project_(self) -> None:
        weight = self.plan.weight + self.plan.growth * self.steps
        self.steps += 1
        for group in self.groups:
            shrink_(group, self.parameters, weight)

    @torch.no_grad()
    def release_(self) -> None:
        """Say how many units are zero, and how many would be soon if nothing held them up."""
        weight = self.plan.weight + self.plan.growth * self.steps
        zeros = near = 0
        for group in self.groups:
            norms = squared_norms(group, self.parameters).sqrt()
            size = norms / unit_size(group, self.parameters) ** 0.5
            zeros += int((size == 0).sum())
            near += int(((size > 0) & (size <= _NEAR_STEPS * weight)).sum())
        self.ctx.log(
            "zero_units",
            zeros,
            reason=None if zeros else "a larger `weight`, or more epochs, makes more of them zero",
            detail={"of": sum(group.units for group in self.groups), "near_zero": near},
        )

    def state(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_(self, state: dict[str, Any]) -> None:
        self.steps = int(state["steps"])


def shrink_(group: Group, parameters: Mapping[str, Tensor], weight: float) -> None:
    r"""Scale each unit by :math:`\max(0, 1 - \lambda\sqrt{p}/\lVert w \rVert)`."""
    norms = squared_norms(group, parameters).sqrt()
    threshold = weight * unit_size(group, parameters) ** 0.5
    factors = (1 - threshold / norms.clamp_min(1e-30)).clamp_min(0)
    for place in group.places:
        tensor = parameters.get(place.tensor)
        if tensor is None:
            continue
        positions = torch.from_numpy(place.positions).to(tensor.device)
        scale = torch.ones(tensor.shape[place.dim], dtype=tensor.dtype, device=tensor.device)
        scale[positions] = factors.to(scale)[:, None]
        shape = [1] * tensor.ndim
        shape[place.dim] = -1
        tensor.mul_(scale.view(shape))
