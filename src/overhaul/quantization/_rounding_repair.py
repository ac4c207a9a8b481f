"""`RoundingRepair`: another choice of integers, layer by layer, with the scales as they are."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor, nn

from overhaul.core import Batch, Context, owner_of
from overhaul.quantization._integer_map import spread
from overhaul.quantization._layer_inputs import LayerInputs, layer_inputs
from overhaul.quantization._plan import Plan
from overhaul.quantization._ranges import buffer_name
from overhaul.quantization._repair import QuantizationRepair

_AT_ONCE = 8
"""How many layers' inputs are held in memory; each further such number costs one more pass."""


class RoundingRepair(QuantizationRepair, ABC):
    """Chooses the integers of one layer after the other so that its output changes less.

    A new one says which integers; each output channel keeps those that it had where they are
    better on the same inputs.
    """

    rows: int = Field(default=512, ge=1, description="Rows of inputs drawn from each batch.")

    @abstractmethod
    def integers(
        self,
        weight: Tensor,
        step: Tensor,
        limits: tuple[int, int],
        inputs: LayerInputs,
        ctx: Context,
    ) -> Tensor:
        """Return the integers of one layer as real numbers, `[G, O, K]`.

        Args:
            weight: `[G, O, K]`, as it was before rounding, in double precision.
            step: `[G, O, K]`, the scale of each.
            limits: The smallest and the largest integer.
            inputs: What the layer takes in.
            ctx: For random numbers.
        """

    @torch.no_grad()
    def finish_(
        self,
        model: nn.Module,
        quantized: nn.Module,
        plan: Plan,
        batches: Sequence[Batch],
        ctx: Context,
    ) -> None:
        """Change the integers of the quantized model."""
        forms = {
            buffer_name(path, name): own
            for path, form in plan.layers.items()
            for name, own in form.weights.items()
        }
        detail = {"repair": self.spec_name()}
        wanted = [name for name, form in forms.items() if form.is_integer]
        for name in sorted(set(forms) - set(wanted)):
            ctx.log("skipped", name, reason="it is no integer", detail=detail)
        for first in range(0, len(wanted), _AT_ONCE):
            names = wanted[first : first + _AT_ONCE]
            draws = ctx.generator(self.spec_name(), first)
            found, reasons = layer_inputs(model, names, batches, self.rows, draws)
            for name in names:
                if name in reasons:
                    ctx.log("skipped", name, reason=reasons[name], detail=detail)
                    continue
                path = owner_of(name)
                module, own = quantized.get_submodule(path), name.rpartition(".")[2]
                real = model.get_parameter(name).detach()
                form, inputs = forms[name], found[name]
                scale = module.get_buffer(f"{own}_scale")
                flat = real.flatten(1) if form.shape else real
                wide = spread(scale, flat, form).expand_as(flat).reshape(real.shape)
                weight, step, rounded = (
                    inputs.geometry.matrix(each.double())
                    for each in (real, wide, getattr(module, own))
                )
                had = (rounded / step).round()
                new = self.integers(weight, step, form.limits, inputs, ctx)
                gram = inputs.gram()
                before, after = (_error(weight - q * step, gram) for q in (had, new))
                better = after < before
                chosen = torch.where(better[..., None], new, had)
                q = inputs.geometry.weight(chosen, real).view(flat.shape).to(torch.int8)
                module.get_buffer(f"{own}_q").copy_(form.stored(q))
                whole = _error(weight, gram).sum().clamp(min=1e-30)
                ctx.log(
                    "repair_error",
                    float(torch.where(better, after, before).sum() / whole),
                    detail={
                        **detail,
                        "layer": name,
                        "before": float(before.sum() / whole),
                        "changed": float((chosen != had).double().mean()),
                    },
                )


def _error(difference: Tensor, gram: Tensor) -> Tensor:
    """Return the mean squared error of each output, `[G, O]`."""
    return ((difference @ gram) * difference).sum(-1).clamp(min=0)
