"""`quantized_class`: a layer's own class, with its weights and activations in integers."""

import math
import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from overhaul.core import StoresIntegers, dequantize, quantize
from overhaul.quantization._integer_map import WeightForm
from overhaul.quantization._mixed_class import Mixed, mixed_class, plain_class

FORMS = "_weight_forms"
_SIDES = re.compile(r"(input(_\d+)?|output)_(scale|zero_point)")


class Quantized(Mixed, StoresIntegers):
    """What a quantized layer has besides its own class.

    A weight `w` that is stored as integers is no parameter any more, but three buffers: `w_q`,
    `w_scale` and `w_zero_point`; who asks the layer for `w` gets the real numbers that they stand
    for. Activations pass through integers where the buffers `input_scale` and `input_zero_point`
    (`input_1_scale`, ... for further inputs) or `output_scale` and `output_zero_point` are there.
    """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what the layer computes, on quantized inputs."""
        args = tuple(through_integers(self, input_name(n), value) for n, value in enumerate(args))
        out = super().forward(*args, **kwargs)
        return through_integers(self, "output", out)

    def stored_weights(self) -> Iterator[tuple[Tensor, int]]:
        """Yield the integers of each weight, one in a byte, and how many they are."""
        for name, form in self.__dict__.get(FORMS, {}).items():
            stored = self._buffers[f"{name}_q"]
            assert stored is not None
            count = math.prod(form.shape) if form.shape else stored.numel()
            yield stored, count

    @property
    def rounds_inputs(self) -> bool:
        """Whether its inputs, or its output, pass through integers."""
        return any(_SIDES.fullmatch(name) for name in self._buffers)

    @torch.no_grad()
    def restore_(self) -> None:
        """Become the plain layer again, with the real numbers that its integers stand for."""
        forms = self.__dict__.pop(FORMS, {})
        weights = {name: restored(self, name, form) for name, form in forms.items()}
        stored = {f"{name}_{part}" for name in forms for part in ("q", "scale", "zero_point")}
        for name in list(self._buffers):
            if name in stored or _SIDES.fullmatch(name):
                del self._buffers[name]
        self.__class__ = plain_class(self)
        for name, weight in weights.items():
            self.register_parameter(name, nn.Parameter(weight, requires_grad=False))
        if (names := self.__dict__.get("_flat_weights_names")) is not None:
            self._flat_weights = [getattr(self, name) for name in names]

    def __getattr__(self, name: str) -> Any:
        """Return the real numbers of a weight that is stored as integers."""
        forms: dict[str, WeightForm] = self.__dict__.get(FORMS, {})
        if name in forms:
            return restored(self, name, forms[name])
        if name == "_flat_weights" and "_flat_weights_names" in self.__dict__:
            return [getattr(self, each) for each in self._flat_weights_names]
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        """Return what the layer says, and how its numbers are stored."""
        forms: dict[str, WeightForm] = self.__dict__.get(FORMS, {})
        types = dict.fromkeys(form.type for form in forms.values())
        sides = [side for side in ("input", "output") if f"{side}_scale" in self._buffers]
        notes = [f"weights={'/'.join(types)}"] * bool(types)
        notes += [f"{side}=int8" for side in sides]
        return ", ".join([*filter(None, [super().extra_repr()]), *notes])


def quantized_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class that does what `kind` does, in integers."""
    return kind if issubclass(kind, Quantized) else mixed_class(Quantized, kind)


def input_name(position: int) -> str:
    """Return what the buffers of an input begin with.

    Example:
        >>> input_name(0), input_name(2)
        ('input', 'input_2')
    """
    return f"input_{position}" if position else "input"


def through_integers(layer: nn.Module, name: str, x: Any) -> Any:
    """Return an activation as its integers say it, where the layer has a scale for it."""
    scale = layer._buffers.get(f"{name}_scale")
    if scale is None or not isinstance(x, Tensor):
        return x
    zero_point = layer._buffers[f"{name}_zero_point"]
    assert zero_point is not None
    return dequantize(quantize(x, scale, zero_point), scale, zero_point)


def restored(layer: nn.Module, name: str, form: WeightForm) -> Tensor:
    """Return the real numbers of a stored weight."""
    buffers = layer._buffers
    stored = buffers[f"{name}_q"]
    assert stored is not None
    if not form.is_integer:
        return stored.to(torch.float32)
    scale, zero_point = buffers[f"{name}_scale"], buffers[f"{name}_zero_point"]
    assert scale is not None
    assert zero_point is not None
    return form.restored(stored, scale, zero_point)
