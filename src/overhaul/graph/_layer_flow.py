"""`watch_layers`: which layers a model has, and what happens between them."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from overhaul.core import ModelError, evaluating


@dataclass(eq=False)
class WatchedLayer:
    """A linear or convolutional layer, as it was called.

    Attributes:
        operation: `linear`, `conv2d`, `conv_transpose1d`, ...
        weight: The name of its weight.
        bias: The name of its bias, if it has one.
        groups: Into how many groups its channels are cut.
        pads: Whether it puts zeros around its input.
        low: `[I]`, the smallest value that each channel of its input had.
        high: `[I]`, the largest.
        operations: What its output went through before it reached other layers.
        readers: The weights of the layers that it reached.
        norm: The running mean of the BatchNorm that alone gets its output.
    """

    operation: str
    weight: str
    bias: str | None
    groups: int
    pads: bool
    low: Tensor
    high: Tensor
    operations: set[str] = field(default_factory=set)
    readers: set[str] = field(default_factory=set)
    norm: str | None = None

    @property
    def transposed(self) -> bool:
        """Whether the weight is `[I, O, ...]` and not `[O, I, ...]`."""
        return self.operation.startswith("conv_transpose")

    @property
    def out_dim(self) -> int:
        """Which dimension of the weight its outputs are."""
        return 1 if self.transposed else 0


@dataclass(eq=False)
class LayerFlow:
    """What one forward pass showed.

    Attributes:
        layers: Each layer by the name of its weight; none that is called twice.
        uses: How many operations used each parameter and buffer.
        operations: Which operation used it last.
    """

    layers: dict[str, WatchedLayer]
    uses: Counter[str]
    operations: dict[str, str]


def watch_layers(model: nn.Module, run: Callable[[nn.Module], Any]) -> LayerFlow:
    """Run one forward pass in evaluation mode and return what it shows of the layers.

    Args:
        model: It is left as it was.
        run: Calls it on the inputs.

    Raises:
        ModelError: it has a part that cannot be watched.
    """
    watch = _Watch(model)
    try:
        with evaluating(model), watch:
            run(model)
    except Exception as error:
        raise ModelError(
            f"the model does not run while its operations are watched ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). Take what is compiled in it, such as torch.cond, out."
        ) from error
    for layer in watch.layers.values():
        if watch.output_uses[layer.weight] != 1:
            layer.norm = None
    once = {name: layer for name, layer in watch.layers.items() if watch.uses[name] == 1}
    return LayerFlow(once, watch.uses, watch.operations)


_Named: TypeAlias = dict[str, Any]
_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = (*_CONV[:5], "output_padding", "groups", "dilation")
LAYER_ARGUMENTS = {
    "linear": _CONV[:3],
    **{f"conv{d}d": _CONV for d in (1, 2, 3)},
    **{f"conv_transpose{d}d": _TRANSPOSED for d in (1, 2, 3)},
}
"""Linear layers and convolutions, by the names of torch's functions, and their arguments."""
_ARGUMENTS = {**LAYER_ARGUMENTS, "batch_norm": ("input", "running_mean")}


class _Watch(TorchFunctionMode):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.names: Any = WeakIdKeyDictionary()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            self.names.setdefault(tensor, name)
        self.layers: dict[str, WatchedLayer] = {}
        self.uses: Counter[str] = Counter()
        self.operations: dict[str, str] = {}
        self.output_uses: Counter[str] = Counter()
        self.makers: Any = WeakIdKeyDictionary()
        """The layers that each tensor comes from, without another layer between."""
        self.fresh: Any = WeakIdKeyDictionary()
        """The layer whose output a tensor is."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "")
        given = [v for v in tree_leaves((args, kwargs)) if isinstance(v, Tensor)]
        makers = {id(m): m for tensor in given for m in self.makers.get(tensor, ())}
        called = dict(zip(_ARGUMENTS.get(name, ()), args, strict=False)) | kwargs
        weight = self.names.get(called["weight"]) if name in LAYER_ARGUMENTS else None
        layer = None if weight is None else self._layer(name, weight, called)
        out = func(*args, **kwargs)
        outs = [v for v in tree_leaves(out) if isinstance(v, Tensor)]
        if not outs:
            return out  # a size or a flag was asked for
        for tensor in given:
            if tensor in self.names:
                self.uses[self.names[tensor]] += 1
                self.operations[self.names[tensor]] = name
            if tensor in self.fresh:
                self._reach_(self.fresh[tensor], name, called, tensor)
        if layer is None:
            for maker in makers.values():
                maker.operations.add(name)
            for tensor in outs:
                self.makers[tensor] = list(makers.values())
            return out
        for maker in makers.values():
            maker.readers.add(layer.weight)
        self.layers[layer.weight] = layer
        self.fresh[out] = layer
        self.makers[out] = [layer]
        return out

    def _layer(self, name: str, weight: str, called: _Named) -> WatchedLayer:
        x, bias = called["input"], called.get("bias")
        channels = -1 if name == "linear" else 1 - called["weight"].ndim
        flat = x.detach().movedim(channels, 0).flatten(1)
        return WatchedLayer(
            operation=name,
            weight=weight,
            bias=None if bias is None else self.names.get(bias, ""),
            groups=int(called.get("groups", 1)),
            pads=_pads(called),
            low=flat.amin(1),
            high=flat.amax(1),
        )

    def _reach_(self, layer: WatchedLayer, name: str, called: _Named, output: Tensor) -> None:
        self.output_uses[layer.weight] += 1
        plain = layer.operation != "linear" or output.ndim == 2
        if name == "batch_norm" and called["input"] is output and plain:
            mean = called.get("running_mean")
            layer.norm = None if mean is None else self.names.get(mean)


def _pads(called: _Named) -> bool:
    padding = called.get("padding", 0)
    if padding == "same":
        return any(size > 1 for size in called["weight"].shape[2:])
    if isinstance(padding, str):
        return padding != "valid"
    return any(size != 0 for size in tree_leaves(padding))
