"""`Rescaling`: the scale of channels moves from what makes them into the layers that read them."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from overhaul.core import Batch, Context, evaluating
from overhaul.quantization._calibration import Seen, SquaredError, scale_and_zero
from overhaul.quantization._channel_flow import ChannelFlow, Reader, watch_channels
from overhaul.quantization._integer_map import WeightForm, integers_of, scales_of, spread
from overhaul.quantization._layer_inputs import LayerInputs, layer_inputs
from overhaul.quantization._plan import Plan
from overhaul.quantization._ranges import buffer_name
from overhaul.quantization._repair import QuantizationRepair


class Rescaling(QuantizationRepair, ABC):
    r"""Divides what makes channels by s and multiplies the weights that read them with it.

    .. math:: W\,x = (W \operatorname{diag}(s))\,(\operatorname{diag}(s)^{-1} x)

    The model computes the same; what changes is how much rounding costs. A new one says which s to
    try. The one with the least error is taken: the squared error of the outputs of all layers
    concerned, over the square of the outputs, with weights and inputs rounded. If none is better
    than leaving the model as it is, it is left.
    """

    after_norms: ClassVar[bool] = True
    """Whether norms can take the scale, or layers alone."""
    rounds: ClassVar[int] = 1
    """How often all channels are gone through."""

    rows: int = Field(default=256, ge=1, description="Rows of inputs drawn from each batch.")

    @abstractmethod
    def candidates(self, channels: "Channels") -> Iterator[Tensor]:
        """Yield each s to try, `[C]`; a value that is not positive or not finite stands for 1."""

    @torch.no_grad()
    def prepare_(
        self, model: nn.Module, plan: Plan, batches: Sequence[Batch], ctx: Context
    ) -> None:
        """Move scales where that helps."""
        forms = {
            buffer_name(path, name): own
            for path, form in plan.layers.items()
            for name, own in form.weights.items()
            if own.is_integer
        }
        detail: dict[str, Any] = {"repair": self.spec_name()}
        draws = ctx.generator(self.spec_name())
        inputs, reasons = layer_inputs(model, forms, batches, self.rows, draws)
        flows = watch_channels(model, lambda m: _call(m, batches[0]))
        for flow in flows:
            if flow.blocked is None and flow.layer is None and not self.after_norms:
                flow.blocked = "a norm comes before it, and no layer"
        for name in forms:
            own = [flow for flow in flows for reader in flow.readers if reader.weight == name]
            reason = reasons.get(name) or (
                own[0].blocked if own else "neither a norm nor a layer makes its inputs alone"
            )
            if reason is not None:
                ctx.log("skipped", name, reason=reason, detail=detail)
        integers = any(form.inputs or form.output for form in plan.layers.values())
        state = _State(model, forms, inputs, integers)
        before = [each.double() for each in _outputs(model, batches[0])]
        moved: list[tuple[_Move, Tensor]] = []
        for _ in range(self.rounds):
            for flow in flows:
                if flow.blocked is None and any(each.weight in inputs for each in flow.readers):
                    move = _Move(flow, state)
                    s = self._best(move)
                    if s is not None:
                        move.move_(s)
                        moved.append((move, s))
        same = _alike(before, _outputs(model, batches[0]))
        if not same:
            for move, s in reversed(moved):
                move.move_(1 / s)
            reason = "the model would not compute the same: what reads the channels was not seen"
            ctx.log("skipped", "", reason=reason, detail=detail)
        for name, first in state.first.items():
            last = state.error(name) if same else first
            ctx.log("repair_error", last, detail={**detail, "layer": name, "before": first})

    def _best(self, move: "_Move") -> Tensor | None:
        """Return the scale with the least error; None if it is best to leave all as it is."""
        best, least = None, sum(move.errors().values())
        for s in self.candidates(move.channels):
            s = torch.where(s.isfinite() & (s > 0), s, 1.0).clamp(1e-4, 1e4)
            errors = move.errors(s)
            error = sum(errors.values())
            if error < least and move.no_worse(errors):
                best, least = s, error
        return best


_SLACK = 1.01
"""Two equal roundings differ so much at most, by the order of additions and ties."""


def _call(model: nn.Module, batch: Batch) -> Any:
    args, kwargs = batch.arguments
    return model(*args, **kwargs)


def _outputs(model: nn.Module, batch: Batch) -> list[Tensor]:
    with evaluating(model):
        return [each for each in tree_leaves(batch.forward(model)) if isinstance(each, Tensor)]


def _alike(before: list[Tensor], after: list[Tensor]) -> bool:
    """Return whether outputs differ by no more than a change of scales explains."""
    for old, new in zip(before, after, strict=True):
        allowed = torch.finfo(new.dtype).eps ** 0.5 if new.is_floating_point() else 0.0
        if not float((new.double() - old).norm()) <= allowed * float(old.norm()):
            return False
    return True


class _State:
    """The model as it is now, and what its layers take in now."""

    def __init__(
        self,
        model: nn.Module,
        forms: dict[str, WeightForm],
        inputs: dict[str, LayerInputs],
        integers: bool,
    ) -> None:
        self.model, self.forms, self.inputs, self.integers = model, forms, inputs, integers
        self.units: dict[str, Tensor] = {}
        """What the outputs of a layer have been divided by, `[O]`."""
        self.first: dict[str, float] = {}
        """The error of each layer before anything was moved."""

    def error(self, name: str, into: Tensor | None = None, out: Tensor | None = None) -> float:
        """Return the relative squared error of one layer's outputs, in the units of the beginning.

        Args:
            name: Of its weight.
            into: What its inputs are divided by, `[I]`.
            out: What its outputs are divided by, `[O]`.
        """
        weight, own = self.model.get_parameter(name).detach(), self.inputs[name]
        geometry = own.geometry
        matrix, rows = geometry.matrix(weight), own.rows
        unit = self._unit(self.units.get(name), matrix)
        right = rows @ matrix.mT * unit
        if into is not None:
            factor = geometry.spread(into, weight)
            matrix, rows = matrix * factor, rows / factor
        if out is not None:
            factor = self._unit(out, matrix).mT
            matrix, unit = matrix / factor, unit * factor.mT
        changed = _rounded(geometry.weight(matrix, weight), self.forms[name])
        if self.integers:
            rows = _through_integers(rows)
        found = rows @ geometry.matrix(changed).mT * unit
        return float((found - right).square().sum() / right.square().sum().clamp(min=1e-30))

    def _unit(self, out: Tensor | None, matrix: Tensor) -> Tensor:
        """Return one value for each output so that it meets the outputs, `[G, 1, O]`."""
        if out is None:
            return matrix.new_ones(1, 1, 1)
        groups, outputs, _ = matrix.shape
        return out.repeat_interleave(groups * outputs // len(out)).view(groups, 1, outputs)


@dataclass(frozen=True)
class Channels:
    """What is known of some channels: of their values and of the weights around them.

    Attributes:
        weights: `[C]`, the largest magnitude in the weights that read each.
        made_by: `[C]`, the largest magnitude in the weight that makes each.
        largest: `[C]`, the largest magnitude that each had.
        root_mean_square: `[C]`, of its values.
    """

    weights: Tensor
    made_by: Tensor
    largest: Tensor
    root_mean_square: Tensor


class _Move:
    """A scale that may be moved, on the model as it is now."""

    def __init__(self, flow: ChannelFlow, state: _State) -> None:
        self._flow, self._state = flow, state
        maker = flow.makers[0]
        made_by = state.model.get_parameter(maker.name).detach().abs().movedim(maker.dim, 0)
        seen = [reader for reader in flow.readers if reader.weight in state.inputs]
        largest = [state.inputs[r.weight].largest.view(-1, r.repeat).amax(1) for r in seen]
        self.channels = Channels(
            weights=torch.stack([self._of(reader) for reader in flow.readers]).amax(0),
            made_by=made_by.reshape(flow.channels, -1).amax(1),
            largest=torch.stack(largest).amax(0),
            root_mean_square=torch.stack([self._square(each) for each in seen]).mean(0).sqrt(),
        )

    def errors(self, s: Tensor | None = None) -> dict[str, float]:
        """Return the relative error of each layer concerned, after moving s."""
        found: dict[str, float] = {}
        state, flow = self._state, self._flow
        for reader in flow.readers:
            if reader.weight in state.inputs:
                into = None if s is None else s.repeat_interleave(reader.repeat)
                found[reader.weight] = state.error(reader.weight, into=into)
        name = flow.makers[0].name
        if flow.layer is not None and name in state.inputs:
            found[name] = state.error(name, out=s)
        if s is None:
            state.first = {**found, **state.first}
        return found

    def no_worse(self, errors: dict[str, float]) -> bool:
        """Return whether no layer has a larger error than at the beginning."""
        return all(error <= _SLACK * self._state.first[name] for name, error in errors.items())

    def move_(self, s: Tensor) -> None:
        """Divide what makes the channels by s, and multiply what reads them."""
        model, inputs, units = self._state.model, self._state.inputs, self._state.units
        if self._flow.layer is not None:
            name = self._flow.makers[0].name
            units[name] = units.get(name, torch.ones_like(s)) * s
        for maker in self._flow.makers:
            tensor = model.get_parameter(maker.name)
            tensor.div_(s.view([-1 if d == maker.dim else 1 for d in range(tensor.ndim)]))
        for reader in self._flow.readers:
            weight, into = model.get_parameter(reader.weight), s.repeat_interleave(reader.repeat)
            factor = reader.geometry.spread(into, weight)
            weight.copy_(reader.geometry.weight(reader.geometry.matrix(weight) * factor, weight))
            if reader.weight in inputs:
                own = inputs[reader.weight]
                own.rows, own.largest = own.rows / factor, own.largest / into

    def _of(self, reader: Reader) -> Tensor:
        weight = self._state.model.get_parameter(reader.weight).detach()
        matrix = reader.geometry.matrix(weight).abs().amax(1)  # [G, K]
        return matrix.view(self._flow.channels, -1).amax(1)

    def _square(self, reader: Reader) -> Tensor:
        square = self._state.inputs[reader.weight].rows.square().mean(1)
        return square.view(self._flow.channels, -1).mean(1)


def _rounded(weight: Tensor, form: WeightForm) -> Tensor:
    """Return the real numbers that the integers of a weight stand for."""
    flat = weight.flatten(1) if form.shape else weight
    scale = scales_of(flat, form, search=True)
    return (integers_of(flat, scale, form) * spread(scale, flat, form)).view(weight.shape)


def _through_integers(rows: Tensor) -> Tensor:
    """Return inputs as their integers say them, for the range with the least squared error."""
    seen = Seen(histogram=True)
    seen.see_(rows.cpu())
    scale, zero = scale_and_zero(SquaredError().range_of(seen), symmetric=False)
    return ((rows / scale).round() + zero).clamp(0, 255).sub(zero) * scale
