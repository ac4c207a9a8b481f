"""`saturating`: a quantized model computes as on a CPU that saturates sums of products."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from overhaul.quantization._convolution import border, each_dimension
from overhaul.quantization._saturation import conv_excess, linear_excess

_SHAPES = ("view", "reshape", "flatten", "transpose", "permute", "contiguous", "unsqueeze", "pad")
"""What leaves the integers as they are, in another shape."""


@dataclass
class Saturation:
    """What was lost.

    Attributes:
        lost: For each layer the squares of what its outputs lost, summed.
        outputs: And those of its outputs.
        cut: How many outputs lost something.
        numbers: And how many there were.
    """

    lost: dict[str, float] = field(default_factory=dict)
    outputs: dict[str, float] = field(default_factory=dict)
    cut: dict[str, int] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)

    @property
    def errors(self) -> dict[str, float]:
        """The norm of what each layer lost over that of its outputs."""
        return {
            path: (lost / max(self.outputs[path], 1e-30)) ** 0.5 for path, lost in self.lost.items()
        }

    @property
    def part(self) -> float:
        """Which part of all outputs lost something."""
        return sum(self.cut.values()) / max(1, sum(self.numbers.values()))

    def add_(self, path: str, lost: Tensor, out: Tensor) -> None:
        """Add what a layer lost in one call."""
        for sums, value in ((self.lost, lost.square().sum()), (self.outputs, out.square().sum())):
            sums[path] = sums.get(path, 0.0) + float(value)
        for counts, number in ((self.cut, int((lost != 0).sum())), (self.numbers, lost.numel())):
            counts[path] = counts.get(path, 0) + number


@contextmanager
def saturating(model: nn.Module) -> Iterator[Saturation]:
    """Let a quantized model lose, for a block, what a CPU without VNNI loses.

    It holds for linear layers and convolutions in one and two dimensions that get `uint8`, where
    the layer itself or the module before makes the integers. Attention, transposed convolutions and
    those in three dimensions are computed exactly; they are not among `Saturation.numbers`.
    """
    names = {
        id(tensor): name.removesuffix("_q").rpartition(".")[0]
        for name, tensor in model.named_buffers()
        if name.endswith("_q")
    }
    watch = _Watch(names)
    hook = model.register_forward_pre_hook(lambda module, args: watch.known.clear())
    try:
        with watch:
            yield watch.found
    finally:
        hook.remove()


@dataclass
class _Integers:
    """The integers that a tensor of real numbers stands for, less their zero point."""

    q: Tensor
    scale: Tensor
    zero_point: Tensor
    path: str | None


class _Watch(TorchFunctionMode):
    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.found = Saturation()
        self.known: dict[int, tuple[Tensor, _Integers]] = {}
        """Each tensor, kept so that its address is not used again, with its integers."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        out = func(*args, **kwargs)
        if name == "dequantize":
            self._note_(out, *args)
        elif name in _SHAPES and (known := self._integers(args[0])) is not None:
            filled = name == "pad" and (kwargs.get("value") or any(args[3:]))
            if known.scale.ndim == 0 and not filled:
                q = func(known.q, *args[1:], **kwargs)
                self.known[id(out)] = (out, replace(known, q=q, path=None))
        elif name in _RULES and isinstance(out, Tensor):
            return self._saturated(_RULES[name], out, args, kwargs)
        return out

    def _note_(
        self, out: Tensor, q: Tensor, scale: Tensor, zero_point: Tensor, axis: int, block: int
    ) -> None:
        if q.dtype not in (torch.uint8, torch.int8) or block or axis:
            return
        if q.dtype == torch.int8:
            integers = _Integers(q, scale, zero_point, self.names.get(id(q)))
        else:
            centered = q.float() - zero_point.float()
            integers = _Integers(centered, scale, zero_point, None)
        self.known[id(out)] = (out, integers)

    def _integers(self, tensor: Any) -> _Integers | None:
        kept = self.known.get(id(tensor))
        return None if kept is None else kept[1]

    def _saturated(self, rule: "_Rule", out: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor:
        x, weight = self._integers(args[0]), self._integers(args[1])
        if x is None or weight is None or weight.path is None or x.scale.ndim:
            return out
        excess = rule(x, weight.q, args, kwargs)
        if excess is None:
            return out
        channel = -1 if rule is _linear else 1
        steps = weight.scale.view([-1 if d == channel % out.ndim else 1 for d in range(out.ndim)])
        lost = excess.to(out.dtype) * (x.scale * steps)
        self.found.add_(weight.path, lost, out)
        return out - lost


_Rule = Callable[[_Integers, Tensor, Any, dict[str, Any]], Tensor | None]


def _linear(x: _Integers, weight: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor:
    numbers = (x.q + x.zero_point).flatten(0, -2)
    return linear_excess(numbers, weight).view(*x.q.shape[:-1], -1)


def _conv(x: _Integers, weight: Tensor, args: Any, kwargs: dict[str, Any]) -> Tensor:
    dims = weight.ndim - 2
    named = dict(zip(("bias", "stride", "padding", "dilation", "groups"), args[2:], strict=False))
    named |= kwargs
    stride, dilation = (each_dimension(named.get(key, 1), dims) for key in ("stride", "dilation"))
    q = x.q if x.q.ndim == dims + 2 else x.q.unsqueeze(0)
    numbers = F.pad(q, border(named.get("padding", 0), weight.shape[2:], dilation)) + x.zero_point
    if dims == 1:
        numbers, weight = numbers.unsqueeze(2), weight.unsqueeze(2)
        stride, dilation = (1, *stride), (1, *dilation)
    excess = conv_excess(
        numbers,
        weight,
        stride=(stride[0], stride[1]),
        dilation=(dilation[0], dilation[1]),
        groups=named.get("groups", 1),
    )
    excess = excess.squeeze(2) if dims == 1 else excess
    return excess if x.q.ndim == dims + 2 else excess.squeeze(0)


_RULES: dict[str, _Rule] = {"linear": _linear, "conv1d": _conv, "conv2d": _conv}
