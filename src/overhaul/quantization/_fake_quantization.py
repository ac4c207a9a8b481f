"""`FakeQuantization`: training under the rounding that the quantized model will have."""

from collections.abc import Callable, Iterator, Mapping
from typing import Self

import torch
from pydantic import Field
from torch import Tensor, nn

from overhaul.core import Context, ModelError, nearest
from overhaul.evaluation import model_device
from overhaul.quantization._fake_layer import (
    FakeQuantized,
    add_scale_,
    become_fake_,
    become_real_,
    scale_now,
)
from overhaul.quantization._integer_map import WeightForm, scales_of
from overhaul.quantization._quantize_layers import LayerForm, forbid_fast_paths_
from overhaul.quantization._ranges import buffer_name
from overhaul.training import BoundConstraint, Constraint


class FakeQuantization(Constraint):
    r"""While it trains, the model computes with the rounded numbers that it will be stored in.

    Weights and activations are

    .. math:: \hat x = s\,(\mathrm{clip}(\mathrm{round}(x / s) + z) - z)

    to the last bit as in the quantized model, in evaluation too: the epoch that is kept is the best
    one of the quantized model. The parameters stay the real numbers, which get the gradient as if
    nothing were rounded. Scales are trained along: see `overhaul.quantization.Quantize`, whose
    field `training` uses this. The zero points stay.

    Where an earlier step left it (`ctx.carry`), a training leaves it with the scales that it ended
    with.

    Args:
        layers: The form of each module.
        scales: By the name of the weight (`conv.weight`), the input (`conv.input`, `conv.input_1`)
            or the output (`conv.output`): one number, or as many as the weight has scales.
        zero_points: The zero point of each input and output, in 0 .. 255.
        rate: By how much faster scales learn than weights. A scale changes by a part of itself,
            with Adam by the learning rate times this in each step; 0 keeps them. Default 1.

    Raises:
        ModelError: there is no such module, weight or scale, or a scale has another size.

    Example:
        >>> form = LayerForm(weights={"weight": WeightForm(type="int8", per_tensor=True)})
        >>> FakeQuantization(layers={"fc": form}, scales={"fc.weight": (0.01,)})
        FakeQuantization(layers={'fc': LayerForm(weights={'weight': WeightForm(type='int8',
            per_tensor=True)})}, scales={'fc.weight': (0.01,)})

    Paper: Jacob et al., CVPR 2018, section 3; Esser et al., ICLR 2020.  Differs: zero points do not
    learn, and a scale changes by a part of itself.
    """

    layers: dict[str, LayerForm]
    scales: dict[str, tuple[float, ...]] = {}
    zero_points: dict[str, int] = {}
    rate: float = Field(
        default=1.0, ge=0, description="By how much faster scales learn than weights."
    )

    def bind(self, model: nn.Module, ctx: Context) -> BoundConstraint:
        """Put the rounding into the layers."""
        return _Rounding(self, model, ctx)

    def renamed(self, rename: Callable[[str], str | None]) -> Self | None:
        """Follow the modules to their new names."""
        new = {path: rename(path) if path else path for path in self.layers}
        kept = {path: name for path, name in new.items() if name is not None}
        if not kept:
            return None
        names = {
            buffer_name(path, own): buffer_name(name, own)
            for path, name in kept.items()
            for own in self.layers[path].scaled
        }
        return self.model_copy(
            update={
                "layers": {name: self.layers[path] for path, name in kept.items()},
                "scales": {names[k]: v for k, v in self.scales.items() if k in names},
                "zero_points": {names[k]: v for k, v in self.zero_points.items() if k in names},
            }
        )


class _Rounding(BoundConstraint):
    def __init__(self, plan: FakeQuantization, model: nn.Module, ctx: Context) -> None:
        self.plan, self.ctx = plan, ctx
        self.layers: dict[str, nn.Module] = {}
        modules = dict(model.named_modules())
        for path, form in plan.layers.items():
            self.layers[path] = _checked(modules, path, form)
        # What can be refused is, before anything changes.
        starts = {
            name: _start(plan, name, layer._parameters.get(own), form.weights.get(own))
            for name, layer, own, form in self._scaled()
        }
        for path, layer in self.layers.items():
            become_fake_(layer, plan.layers[path].weights, plan.rate)
        shared: dict[tuple[int, WeightForm], tuple[Tensor, nn.Parameter]] = {}
        device = model_device(model)
        for name, layer, own, form in self._scaled():
            weight, start = layer._parameters.get(own), starts[name].to(device)
            step = nn.Parameter(torch.zeros_like(start).flatten())
            if weight is None:
                add_scale_(layer, own, start, step, plan.zero_points[name])
                continue
            step.requires_grad_(weight.requires_grad)
            # A weight that two layers have has one scale, if both store it alike.
            both = shared.setdefault((id(weight), form.weights[own]), (start, step))
            add_scale_(layer, own, *both)
        self.fast = forbid_fast_paths_(model)

    def release_(self) -> None:
        learned = self.plan.model_copy(
            update={
                "scales": {
                    name: tuple(scale_now(layer, own).flatten().tolist())
                    for name, layer, own, _ in self._scaled()
                }
            }
        )
        self.ctx.carried[:] = [learned if item is self.plan else item for item in self.ctx.carried]
        for path, layer in self.layers.items():
            become_real_(layer, self.plan.layers[path].scaled)
        for module, name, before in self.fast:
            setattr(module, name, before)

    def _scaled(self) -> Iterator[tuple[str, nn.Module, str, LayerForm]]:
        for path, form in self.plan.layers.items():
            for own in form.scaled:
                yield buffer_name(path, own), self.layers[path], own, form


def _checked(modules: Mapping[str, nn.Module], path: str, form: LayerForm) -> nn.Module:
    if path not in modules:
        raise ModelError(f"FakeQuantization: there is no module '{path}'. {nearest(path, modules)}")
    layer = modules[path]
    if isinstance(layer, FakeQuantized):
        raise ModelError(
            f"'{path}' is under a FakeQuantization already: give it in `constraints` or leave it "
            "to the one that an earlier step left, not both."
        )
    for name in form.weights:
        if layer._parameters.get(name) is None:
            raise ModelError(f"'{path}' has no weight '{name}' that could be rounded.")
    return layer


def _start(
    plan: FakeQuantization, name: str, weight: Tensor | None, form: WeightForm | None
) -> Tensor:
    values = plan.scales.get(name)
    if values is None:
        raise ModelError(f"FakeQuantization has no scale for '{name}'. Give it in `scales`.")
    if weight is None or form is None:
        if name not in plan.zero_points:
            raise ModelError(
                f"FakeQuantization has no zero point for '{name}'. Give it in `zero_points`."
            )
        shape, like = torch.Size(()), torch.tensor(1.0)
    else:
        like = scales_of(form.flat(weight), form, search=False)
        shape = like.shape
    if len(values) != shape.numel():
        raise ModelError(
            f"'{name}' has {shape.numel()} scales, and FakeQuantization gives {len(values)}. Was "
            "its size changed? Quantize after that."
        )
    return like.new_tensor(values).view(shape)
