"""`watch_channels`: between which tensors of a model the scale of a channel can be moved."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from overhaul.core import evaluating
from overhaul.quantization._layer_inputs import (
    ARGUMENTS,
    ATTENTION,
    Geometry,
    attention_arguments,
)


class Maker(NamedTuple):
    """A tensor that makes the channels: dividing it along a dimension divides them."""

    name: str
    dim: int


class Reader(NamedTuple):
    """A layer that takes the channels in.

    Attributes:
        weight: The name of its weight.
        geometry: How it is a matrix product.
        repeat: How many of its inputs, side by side, are one channel.
    """

    weight: str
    geometry: Geometry
    repeat: int


@dataclass(eq=False)
class ChannelFlow:
    r"""Channels on their way from what makes them to the layers that read them.

    For any positive s, dividing the makers by s and multiplying the weights of the readers with it
    changes nothing.

    Attributes:
        makers: Weight and bias of a norm or a layer.
        layer: How the maker is a matrix product; None for a norm.
        channels: C, how many there are.
        readers: All that read them.
        blocked: Why the scale cannot be moved after all.
    """

    makers: list[Maker]
    layer: Geometry | None
    channels: int
    readers: list[Reader] = field(default_factory=list)
    blocked: str | None = None


def watch_channels(model: nn.Module, run: Callable[[nn.Module], Any]) -> list[ChannelFlow]:
    """Run one forward pass in evaluation mode and return where channels go.

    An operation that is not known to pass the scale of each channel on blocks it, and so does a
    parameter that is used elsewhere too.

    Args:
        model: It is left as it was.
        run: Calls it on the inputs.
    """
    watch = _Watch(model)
    with evaluating(model), watch:
        out = run(model)
    inside = [vars(each) for each in tree_leaves(out) if hasattr(each, "__dict__")]
    for tensor in _tensors_of((out, inside)):
        watch.block(tensor, "it is an output of the model")
    for flow in watch.flows:
        names = [*(maker.name for maker in flow.makers), *(each.weight for each in flow.readers)]
        often = [name for name in names if watch.uses[name] != 1]
        if often and flow.blocked is None:
            flow.blocked = f"'{often[0]}' is used more than once"
    return watch.flows


_SAME = {
    *("relu", "relu_", "leaky_relu", "leaky_relu_", "prelu", "abs", "neg"),
    *("dropout", "dropout_", "dropout1d", "dropout2d", "dropout3d"),
    *("clone", "contiguous", "detach"),
}
"""f(x / s) = f(x) / s for each value."""
_CASTS = {"float", "double", "half", "bfloat16", "to", "type_as"}
_POOLS = {
    f"{kind}_pool{dims}d": dims
    for kind in ("max", "avg", "adaptive_avg", "adaptive_max")
    for dims in (1, 2, 3)
}
"""The same for the last dimensions together."""
_RESHAPES = {"reshape", "view", "flatten", "squeeze", "unsqueeze", "unflatten"}
_REDUCTIONS = {"mean", "sum", "amax"}
_ASKS = {"size", "dim", "__get__", "numel", "__len__", "is_floating_point", "stride", "ndimension"}
"""What returns no values of a tensor."""
_NORMS = {
    "layer_norm": ("input", "normalized_shape", "weight", "bias"),
    "rms_norm": ("input", "normalized_shape", "weight"),
    "group_norm": ("input", "num_groups", "weight", "bias"),
    "batch_norm": ("input", "running_mean", "running_var", "weight", "bias"),
}


class _Carried(NamedTuple):
    """What is known of a tensor: whose channels it has, in which dimension, each how often."""

    flow: ChannelFlow
    dim: int
    repeat: int


class _Watch(TorchFunctionMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names = {id(tensor): name for name, tensor in model.named_parameters()}
        self.uses: Counter[str] = Counter()
        self.flows: list[ChannelFlow] = []
        self.carried: dict[int, _Carried] = {}
        self.kept: list[Tensor] = []
        """All tensors that carry channels, so that no address is used twice."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        given = _tensors_of((args, kwargs))
        # Before the call, since one in place changes what is known.
        own = [self.carried[id(each)] for each in given if id(each) in self.carried]
        before = {id(each): tuple(each.shape) for each in given}
        out = func(*args, **kwargs)
        outs = _tensors_of(out)
        if not outs:
            if name not in _ASKS:
                self._block_all(own, name)
            return out
        for each in given:
            if id(each) in self.names:
                self.uses[self.names[id(each)]] += 1
        if name == "__get__":
            self._block_all(own, name)
        elif name in ARGUMENTS:
            called = dict(zip(ARGUMENTS[name], args, strict=False)) | kwargs
            self._layer_(name, called, out, own)
        elif name == ATTENTION:
            self._attention_(attention_arguments(args, kwargs), own)
        elif name in _NORMS:
            self._block_all(own, name)
            self._norm_(name, dict(zip(_NORMS[name], args, strict=False)) | kwargs, out)
        elif name in ("mul", "__mul__", "__rmul__", "multiply"):
            self._product_(args, out, own)
        elif len(own) == 1 and len(outs) == 1:
            self._pass_(name, own[0], before, args, kwargs, outs[0])
        else:
            self._block_all(own, name)
        return out

    def _pass_(
        self,
        name: str,
        what: _Carried,
        shapes: dict[int, tuple[int, ...]],
        args: Any,
        kwargs: Any,
        out: Tensor,
    ) -> None:
        """Say that `out` has the channels of the first argument, if it has."""
        x = args[0] if args else kwargs.get("input")
        # Otherwise they are those of another argument, or of a tensor in a list.
        if isinstance(x, Tensor) and self.carried.get(id(x)) == what:
            same_type = name in _CASTS or out.dtype == x.dtype
            passed = _passed(name, what, shapes[id(x)], args, kwargs, out)
            if passed is not None and same_type and out.is_floating_point():
                self._carry_(out, passed)
                return
        self._block_all([what], name)

    def block(self, tensor: Tensor, reason: str) -> None:
        if id(tensor) in self.carried:
            flow = self.carried[id(tensor)].flow
            flow.blocked = flow.blocked or reason

    def _block_all(self, own: list[_Carried], name: str) -> None:
        for each in own:
            each.flow.blocked = each.flow.blocked or f"'{name}' reads it too, or lies between"

    def _carry_(self, tensor: Tensor, what: _Carried) -> None:
        self.kept.append(tensor)
        self.carried[id(tensor)] = what

    def _begin_(self, tensor: Tensor, flow: ChannelFlow, dim: int) -> None:
        self.flows.append(flow)
        self._carry_(tensor, _Carried(flow, dim % tensor.ndim, 1))

    def _layer_(self, name: str, called: dict[str, Any], out: Tensor, own: list[_Carried]) -> None:
        x, weight, bias = called["input"], called["weight"], called.get("bias")
        turned = name == "addmm" or name.startswith("conv_transpose")
        geometry = Geometry(int(called.get("groups", 1)), turned)
        channels = -1 if name in ("linear", "addmm") else 1 - weight.ndim
        weight_name = self.names.get(id(weight))
        what = self.carried.get(id(x))
        if what is not None:
            fits = len(own) == 1 and what.dim == x.ndim + channels
            if fits and weight_name is not None and not (turned and geometry.groups > 1):
                what.flow.readers.append(Reader(weight_name, geometry, what.repeat))
            else:
                self._block_all(own, name)
        elif own:
            self._block_all(own, name)
        if weight_name is None or name == "addmm" or (turned and geometry.groups > 1):
            return
        makers = [Maker(weight_name, 1 if turned else 0)]
        if bias is not None:
            if id(bias) not in self.names:
                return
            makers.append(Maker(self.names[id(bias)], 0))
        size = out.shape[channels]
        if size > 1:
            self._begin_(out, ChannelFlow(makers, geometry, size), channels)

    def _attention_(self, called: dict[str, Any], own: list[_Carried]) -> None:
        query = called["query"]
        what = self.carried.get(id(query))
        name = self.names.get(id(called["in_proj_weight"]))
        alone = all(called[each] is query for each in ("key", "value"))
        if what is None or name is None or not alone or what.dim != query.ndim - 1:
            self._block_all(own, ATTENTION)
        else:
            what.flow.readers.append(Reader(name, Geometry(), what.repeat))

    def _norm_(self, name: str, called: dict[str, Any], out: Tensor) -> None:
        weight, bias = called.get("weight"), called.get("bias")
        tensors = [each for each in (weight, bias) if each is not None]
        if weight is None or weight.ndim != 1 or any(id(t) not in self.names for t in tensors):
            return
        makers = [Maker(self.names[id(each)], 0) for each in tensors]
        if len(weight) > 1:
            dim = -1 if name in ("layer_norm", "rms_norm") else 1
            self._begin_(out, ChannelFlow(makers, None, len(weight)), dim)

    def _product_(self, args: Any, out: Tensor, own: list[_Carried]) -> None:
        """Begin at a norm written by hand, or go on through a gate."""
        factors = [each for each in args[:2] if isinstance(each, Tensor)]
        for one, other in zip(factors, factors[::-1], strict=True):
            name = self.names.get(id(one))
            whole = one is not other and one.ndim == 1 and other.shape == out.shape
            if name is not None and whole and len(one) == out.shape[-1] > 1:
                self._block_all(own, "mul")
                self._begin_(out, ChannelFlow([Maker(name, 0)], None, len(one)), -1)
                return
        through = [each for each in factors if id(each) in self.carried]
        if len(own) == len(through) == 1 and through[0].shape == out.shape:
            self._carry_(out, own[0])
            return
        self._block_all(own, "mul")


def _tensors_of(value: Any) -> list[Tensor]:
    return [each for each in tree_leaves(value) if isinstance(each, Tensor)]


def _passed(
    name: str, what: _Carried, shape: tuple[int, ...], args: Any, kwargs: Any, out: Tensor
) -> _Carried | None:
    """Return where the channels are after an operation that passes their scale on, else None."""
    dim = what.dim
    if (name in _SAME or name in _CASTS) and tuple(out.shape) == shape:
        return what
    if name in _POOLS and dim < len(shape) - _POOLS[name]:
        return what
    if name in _RESHAPES:
        return _reshaped(what, shape, tuple(out.shape))
    if name in ("transpose", "swapaxes") and len(args) == 3:
        one, other = (each % len(shape) for each in args[1:])
        return what._replace(dim={one: other, other: one}.get(dim, dim))
    if name == "permute":
        dims = args[1] if len(args) == 2 and isinstance(args[1], tuple | list) else args[1:]
        dims = kwargs.get("dims", dims)
        return what._replace(dim=[each % len(shape) for each in dims].index(dim))
    if name in _REDUCTIONS:
        dims = args[1] if len(args) > 1 else kwargs.get("dim")
        if dims is None:
            return None
        gone = {each % len(shape) for each in ((dims,) if isinstance(dims, int) else dims)}
        if dim in gone or not gone:
            return None
        kept = out.ndim == len(shape)
        return what._replace(dim=dim if kept else dim - sum(each < dim for each in gone))
    if name == "__getitem__":
        keys = args[1] if isinstance(args[1], tuple) else (args[1],)
        plain = all(type(each) in (int, slice) for each in keys)
        if not plain or len(keys) > dim:
            return None
        return what._replace(dim=dim - sum(isinstance(each, int) for each in keys))
    return None


def _reshaped(what: _Carried, shape: tuple[int, ...], new: tuple[int, ...]) -> _Carried | None:
    """Return where the channels are after the values were cut into other dimensions."""
    size, inner = shape[what.dim], math.prod(shape[what.dim + 1 :])
    for dim, found in enumerate(new):
        behind = math.prod(new[dim + 1 :])
        if found * behind == size * inner and found > 1 and found % size == 0:
            return what._replace(dim=dim, repeat=what.repeat * (found // size))
    return None
