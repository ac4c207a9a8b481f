"""`fake_class`: a layer's own class, that rounds as the quantized one and can be trained."""

from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from overhaul.core import dequantize, quantize
from overhaul.quantization._integer_map import WeightForm, integers_of
from overhaul.quantization._mixed_class import Mixed, mixed_class, plain_class
from overhaul.quantization._quantized_layer import input_name
from overhaul.quantization._straight_through import straight_through

_FORMS, _RATE, _ZEROS = "_fake_forms", "_fake_rate", "_fake_zeros"
_MADE = "_fake_made"
_ACTIVATION = WeightForm(type="int8", per_tensor=True)
_UNSIGNED = 255


class FakeQuantized(Mixed):
    """What a layer has besides its own class while it is trained for its quantized form.

    A weight stays the parameter that it was; who asks the layer for it gets the numbers that its
    integers would stand for. Each weight or activation `w` that has a scale gets a buffer
    `fake_w_start`, what the scale was before, and a parameter `fake_w_step`, how far it is from
    that; an activation has the buffer `fake_w_zero`, its zero point.
    """

    prefix: ClassVar[str] = "FakeQuantized"

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute what the quantized layer computes."""
        args = tuple(_rounded(self, input_name(n), value) for n, value in enumerate(args))
        self.__dict__[_MADE] = {}  # attention asks for a weight several times
        try:
            out = super().forward(*args, **kwargs)
        finally:
            del self.__dict__[_MADE]
        return _rounded(self, "output", out)

    def __getattr__(self, name: str) -> Any:
        """Return the rounded numbers of a weight."""
        form = self.__dict__.get(_FORMS, {}).get(name)
        if form is None:
            return super().__getattr__(name)
        made: dict[str, Tensor] = self.__dict__.get(_MADE, {})
        if name not in made:
            made[name] = _rounded_weight(self, name, form)
        return made[name]


class FakeRecurrent(FakeQuantized):
    """The same for a recurrent layer, which has a list of its weights."""

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._flat_weights_names]

    @_flat_weights.setter
    def _flat_weights(self, weights: list[Tensor]) -> None:
        """Keep none: a list that is kept has the numbers of an earlier step."""

    def _update_flat_weights(self) -> None:
        """Do nothing, for the same reason."""

    def flatten_parameters(self) -> None:
        """Do nothing: rounded numbers are made anew in each step."""


def fake_class(kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class that does what `kind` does, in rounded numbers."""
    return mixed_class(FakeRecurrent if issubclass(kind, nn.RNNBase) else FakeQuantized, kind)


def become_fake_(layer: nn.Module, forms: dict[str, WeightForm], rate: float) -> None:
    """Give a layer the class that rounds."""
    layer.__dict__.update({_FORMS: dict(forms), _RATE: rate, _ZEROS: {}})
    layer.__class__ = fake_class(type(layer))


def become_real_(layer: nn.Module, scaled: Iterable[str]) -> None:
    """Undo `become_fake_` and `add_scale_`, which these weights and activations got."""
    for name in scaled:
        del layer._buffers[_start(name)], layer._parameters[_step(name)]
        layer._buffers.pop(_zero(name), None)
    del layer.__dict__[_FORMS], layer.__dict__[_RATE], layer.__dict__[_ZEROS]
    layer.__class__ = plain_class(layer)
    if isinstance(layer, nn.RNNBase):
        layer._init_flat_weights()


def add_scale_(
    layer: nn.Module, name: str, start: Tensor, step: nn.Parameter, zero_point: int | None = None
) -> None:
    """Give a weight or an activation of such a layer its scale."""
    layer.register_buffer(_start(name), start)
    layer.register_parameter(_step(name), step)
    if zero_point is not None:
        zero = torch.tensor(zero_point, dtype=torch.uint8, device=start.device)
        layer.register_buffer(_zero(name), zero)
        layer.__dict__[_ZEROS][name] = zero_point  # to ask a GPU for it would wait


@torch.no_grad()
def scale_now(layer: nn.Module, name: str) -> Tensor:
    r"""Return a scale as training has made it: :math:`s_0 e^{\rho\,t}`."""
    start, step = layer._buffers[_start(name)], layer._parameters[_step(name)]
    assert start is not None
    assert step is not None
    scale: Tensor = start * (layer.__dict__[_RATE] * step).exp().view(start.shape)
    return scale


def _start(name: str) -> str:
    return f"fake_{name}_start"


def _step(name: str) -> str:
    return f"fake_{name}_step"


def _zero(name: str) -> str:
    return f"fake_{name}_zero"


def _rounded(layer: nn.Module, name: str, x: Any) -> Any:
    """Return an activation as its integers say it, where the layer has a scale for it."""
    step = layer._parameters.get(_step(name))
    if step is None or not isinstance(x, Tensor):
        return x
    scale, zero_point = scale_now(layer, name), layer._buffers[_zero(name)]
    assert zero_point is not None
    zero = layer.__dict__[_ZEROS][name]

    def exact(values: Tensor) -> Tensor:
        return dequantize(quantize(values, scale, zero_point), scale, zero_point)

    limits, count = (-zero, _UNSIGNED - zero), x.numel() / len(x)
    return straight_through(x, step, scale, _ACTIVATION, limits, count, exact)


def _rounded_weight(layer: nn.Module, name: str, form: WeightForm) -> Tensor:
    weight = layer._parameters[name]
    assert weight is not None
    if not form.is_integer:
        # The difference is exact, so that the sum is the number of few bits to the last bit.
        return weight + (weight.to(getattr(torch, form.type)).to(weight.dtype) - weight).detach()
    flat, scale = form.flat(weight), scale_now(layer, name)
    step = layer._parameters[_step(name)]
    assert step is not None

    def exact(values: Tensor) -> Tensor:
        q = integers_of(values, scale, form)
        zero_point = torch.zeros_like(scale, dtype=torch.int8)
        return dequantize(q, scale, zero_point, form.axis, form.block)

    count = flat.numel() / scale.numel()
    rounded = straight_through(flat, step, scale, form, form.limits, count, exact)
    return rounded.view(weight.shape)
