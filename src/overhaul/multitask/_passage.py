"""`observe`: what happens in one forward pass before a module, and what only after it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from overhaul.core import Batch, ModelError, nearest
from overhaul.multitask._shared_trunk import first_tensor, trunk_output

_CHANNELS_SECOND = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
)


@dataclass(frozen=True)
class Passage:
    """What one forward pass showed about a module.

    Attributes:
        features: What the module returned, or got.
        channels: Which dimension of it holds the channels; None if that is not clear.
        earlier: Paths of the modules that began to run before that.
        later: Paths of the modules that began to run after it.
    """

    features: Tensor
    channels: int | None
    earlier: frozenset[str]
    later: frozenset[str]


def observe(model: nn.Module, batch: Batch, path: str, *, at_input: bool) -> Passage:
    """Run the model once and see what happens before and after the module at `path`.

    Args:
        model: In the mode that is to be observed, with gradients or without.
        batch: Real inputs, on the model's device.
        path: The module.
        at_input: Whether what the module gets is in question, so that the module itself is after
            it; otherwise it is what the module returns.

    Raises:
        ModelError: there is no such module, or it does not run exactly once, or what is in question
            is not a tensor.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if path not in modules or not path:
        paths = [name for name in modules if name]
        raise ModelError(f"the model has no module '{path}'. {nearest(path, paths)}")
    watch = _Watch(path, modules[path], at_input)
    handles: list[RemovableHandle] = []
    for module in set(modules.values()):
        handles.append(module.register_forward_pre_hook(watch.before))
        handles.append(module.register_forward_hook(watch.after))
    inputs, named_inputs = batch.arguments
    try:
        model(*inputs, **named_inputs)
    finally:
        for handle in handles:
            handle.remove()
    if len(watch.found) != 1:
        raise ModelError(
            f"'{path}' must run exactly once in a forward pass to be where the heads begin, and "
            f"it runs {len(watch.found)} times. Name another module."
        )
    return Passage(
        watch.found[0],
        watch.channels(),
        frozenset(name for name, module in modules.items() if module in watch.earlier),
        frozenset(name for name, module in modules.items() if module in watch.later),
    )


def features_of(model: nn.Module, batch: Batch, path: str, *, at_input: bool) -> Tensor:
    """Return what the module at `path` returns, or gets, with no hook anywhere else.

    Some layers of torch compute in another way, with other rounding, where there is a hook inside.
    """
    inputs, named_inputs = batch.arguments
    if not at_input:
        return trunk_output(model, path, inputs, named_inputs)
    found: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(
        lambda module, args: found.append(first_tensor(args, path).clone())
    )
    try:
        model(*inputs, **named_inputs)
    finally:
        handle.remove()
    return found[0]


@dataclass
class _Watch:
    """Notes what runs before the features are there, and what after."""

    path: str
    target: nn.Module
    at_input: bool
    found: list[Tensor] = field(default_factory=list)
    earlier: set[nn.Module] = field(default_factory=set)
    later: set[nn.Module] = field(default_factory=set)
    last_layer: nn.Module | None = None

    def before(self, module: nn.Module, args: tuple[object, ...]) -> None:
        if self.at_input and module is self.target:
            self.found.append(first_tensor(args, self.path).clone())
        (self.later if self.found else self.earlier).add(module)

    def after(self, module: nn.Module, args: object, output: object) -> None:
        if not self.found and _width(module) is not None:
            self.last_layer = module
        if not self.at_input and module is self.target:
            self.found.append(first_tensor(output, self.path).clone())

    def channels(self) -> int | None:
        """Find the dimension that is as long as the last layer is wide.

        After a convolution it is the second one, also where several outputs were concatenated.
        """
        shape = self.found[0].shape
        if len(shape) == 2:
            return 1
        width = None if self.last_layer is None else _width(self.last_layer)
        places = [place for place, size in enumerate(shape) if place > 0 and size == width]
        if isinstance(self.last_layer, _CHANNELS_SECOND) and (
            not places or (1 in places and len(shape) > 3)
        ):
            return 1
        return places[0] if len(places) == 1 else None


def _width(module: nn.Module) -> int | None:
    """Return how many channels a layer returns, if it is one that has channels."""
    for kind, width in _WIDTHS.items():
        if isinstance(module, kind):
            return width(module)
    return None


_WIDTHS: dict[type[nn.Module], Callable[[Any], int]] = {
    nn.modules.conv._ConvNd: lambda layer: layer.out_channels,
    nn.Linear: lambda layer: layer.out_features,
    nn.modules.batchnorm._NormBase: lambda layer: layer.num_features,
    nn.GroupNorm: lambda layer: layer.num_channels,
    nn.LayerNorm: lambda layer: layer.normalized_shape[-1],
    nn.RMSNorm: lambda layer: layer.normalized_shape[-1],
    nn.Embedding: lambda layer: layer.embedding_dim,
    nn.RNNBase: lambda layer: (
        (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
    ),
    nn.MultiheadAttention: lambda layer: layer.embed_dim,
}
