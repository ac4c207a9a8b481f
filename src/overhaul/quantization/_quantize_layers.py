"""`QuantizeLayers`: the edit that puts integers in the place of real numbers."""

from typing import Any

import torch
from torch import Tensor, nn

from overhaul.core import Edit, ModelError, Spec, nearest
from overhaul.quantization._integer_map import WeightForm, integers_of, scales_of
from overhaul.quantization._quantized_layer import FORMS, input_name, quantized_class

_FAST_PATHS: tuple[tuple[type[nn.Module], str, Any], ...] = (
    (nn.TransformerEncoderLayer, "activation_relu_or_gelu", 0),
    (nn.TransformerEncoder, "use_nested_tensor", False),
)
"""Where these note that they may go by their layers, and what forbids it."""


class LayerForm(Spec):
    """What of a module is in integers.

    Attributes:
        weights: How each of its weights is stored.
        inputs: Which of its inputs pass through integers, by position.
        output: Whether its output does.
    """

    weights: dict[str, WeightForm] = {}
    inputs: tuple[int, ...] = ()
    output: bool = False

    @property
    def scaled(self) -> list[str]:
        """What of the module has scales: names of weights, `input`, `output`."""
        weights = [name for name, own in self.weights.items() if own.is_integer]
        return [*weights, *map(input_name, self.inputs), *["output"] * self.output]


class QuantizeLayers(Edit):
    r"""Weights become integers with a scale, and activations pass through integers.

    Each weight :math:`w` becomes :math:`q = \mathrm{round}(w / s)` with
    :math:`s = \max|w| / q_{\max}` for each channel or block; a scale of an activation is one until
    it is set. The module keeps its class: the new one is a subclass of it.

    Args:
        layers: The form of each module.

    Raises:
        ModelError: there is no such module or weight.

    Example:
        >>> form = LayerForm(weights={"weight": WeightForm(type="int8")}, inputs=(0,))
        >>> QuantizeLayers(layers={"0": form}).apply(nn.Sequential(nn.Linear(3, 2)))
        Sequential(
          (0): QuantizedLinear(in_features=3, out_features=2, bias=True, weights=int8, input=int8)
        )

    Paper: Jacob et al., CVPR 2018.
    """

    layers: dict[str, LayerForm]

    @torch.no_grad()
    def apply(self, model: nn.Module) -> nn.Module:
        """Swap classes, and parameters for buffers."""
        modules = dict(model.named_modules())
        shared: dict[tuple[int, WeightForm], dict[str, Tensor]] = {}
        kept: list[nn.Parameter] = []  # an address must not be given to another weight meanwhile
        for path, form in self.layers.items():
            if path not in modules:
                raise ModelError(
                    f"there is no module '{path}' to quantize. {nearest(path, modules)}"
                )
            layer = modules[path]
            layer.__class__ = quantized_class(type(layer))
            for name, own in form.weights.items():
                weight = layer._parameters.get(name)
                if weight is None:
                    raise ModelError(f"'{path}' has no weight '{name}' that could be quantized.")
                kept.append(weight)
                buffers = shared.setdefault((id(weight), own), _buffers(weight, own))
                _store_(layer, name, own, buffers)
            for position in form.inputs:
                _give_scale_(layer, input_name(position))
            if form.output:
                _give_scale_(layer, "output")
        forbid_fast_paths_(model)
        return model

    def rename(self, name: str) -> str | None:
        """Return None for a weight that is no parameter any more."""
        path, _, own = name.rpartition(".")
        form = self.layers.get(path)
        return None if form is not None and own in form.weights else name


def forbid_fast_paths_(model: nn.Module) -> list[tuple[nn.Module, str, Any]]:
    """Have transformer layers call their parts; return the attributes as they were."""
    before = [
        (module, name, getattr(module, name))
        for module in model.modules()
        for kind, name, _ in _FAST_PATHS
        if isinstance(module, kind) and hasattr(module, name)
    ]
    forbidden = {name: value for _, name, value in _FAST_PATHS}
    for module, name, _ in before:
        setattr(module, name, forbidden[name])
    return before


def _buffers(weight: Tensor, form: WeightForm) -> dict[str, Tensor]:
    if not form.is_integer:
        return {"q": weight.detach().to(getattr(torch, form.type))}
    flat = form.flat(weight)
    scale = scales_of(flat, form, search=False)
    return {
        "q": form.stored(integers_of(flat, scale, form)),
        "scale": scale,
        "zero_point": torch.zeros_like(scale, dtype=torch.int8),
    }


def _store_(layer: nn.Module, name: str, form: WeightForm, buffers: dict[str, Tensor]) -> None:
    del layer._parameters[name]
    layer.__dict__.pop("_flat_weights", None)
    layer.__dict__[FORMS] = {**layer.__dict__.get(FORMS, {}), name: form}
    for suffix, tensor in buffers.items():
        layer.register_buffer(f"{name}_{suffix}", tensor)


def _give_scale_(layer: nn.Module, name: str) -> None:
    layer.register_buffer(f"{name}_scale", torch.tensor(1.0))
    layer.register_buffer(f"{name}_zero_point", torch.tensor(128, dtype=torch.uint8))
