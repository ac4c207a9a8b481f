"""`find_places`: where in a model integers can stand, and where activations become integers."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from overhaul.core import evaluating

_ADDS = ("add", "add_", "__add__", "__radd__", "__iadd__")
_AVERAGES = ("mean", "avg_pool2d", "adaptive_avg_pool2d")


@dataclass
class Places:
    """What one forward pass showed.

    Attributes:
        calls: How often each module was called.
        inputs: For each layer the positions of the inputs that become integers there; also for a
            module around several layers or sums that read one tensor.
        outputs: The modules whose outputs become integers, because several layers, or a sum of
            which a layer is a part, or the average of an image, read them.
    """

    calls: Counter[str] = field(default_factory=Counter)
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    outputs: list[str] = field(default_factory=list)


def find_places(model: nn.Module, run: Callable[[nn.Module], Any], layers: set[str]) -> Places:
    """Watch one forward pass and say where activations become integers.

    A tensor becomes integers once, for all that read it: where the outermost module ends that
    returns it, if it is called once. What no module returns becomes integers where the outermost
    module begins that all of its readers are in, or else where each layer begins that reads it.

    Args:
        model: It is left as it was.
        run: Calls it on the inputs.
        layers: The paths of the layers that are to compute in integers.
    """
    places, watch = Places(), _Watch(layers)
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    with evaluating(model), _watched(model, watch, names), watch:
        run(model)
    places.calls = watch.calls
    for state, readers in watch.readers().items():
        makers = [m for m in watch.makers.get(state, []) if m and watch.calls[m] == 1]
        if makers and state not in watch.results:
            places.outputs.append(makers[-1])
            continue
        door = watch.door(state, readers)
        doors = [reader.place for reader in readers if reader.place] if door is None else [door]
        for path, position in doors:
            places.inputs[path] = tuple(sorted({*places.inputs.get(path, ()), position}))
    for path in layers & set(watch.calls):
        places.inputs.setdefault(path, ())
    return places


_State: TypeAlias = tuple[int, int]
"""A tensor between two changes in place: its address and its version."""


@dataclass(frozen=True)
class _Reader:
    """Who reads a tensor.

    Attributes:
        place: The layer and the position of its input; None for a sum or an average.
        inside: The modules that had begun and not ended.
    """

    place: tuple[str, int] | None = None
    inside: tuple[str, ...] = ()


class _Watch(TorchFunctionMode):
    def __init__(self, layers: set[str]) -> None:
        super().__init__()
        self.layers = layers
        self.calls: Counter[str] = Counter()
        self.makers: dict[_State, list[str]] = {}
        """The modules that ended with this tensor, from the inside out."""
        self.results: set[_State] = set()
        """What the model returns: its caller reads it."""
        self.convolved: set[_State] = set()
        """What is the output of a convolution that computes in integers."""
        self.found: list[tuple[_State, _Reader]] = []
        """Each tensor that is read, and by whom."""
        self.running: list[str] = []
        """The modules that have begun and not ended."""
        self.doors: dict[_State, list[tuple[str, int]]] = {}
        """The modules that a tensor was given to, with its position, from the outside in."""
        self.uses: Counter[_State] = Counter()
        """How many operations read what a module returned."""
        self.averaged: list[tuple[_State, _State]] = []
        """Images of which an operation takes the average, and that."""
        self.kept: list[Tensor] = []
        """All of these, so that no address is used twice."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__name__", "") in _ADDS and len(args) > 1:
            terms = [self.state(each) for each in args[:2] if isinstance(each, Tensor)]
            if len(terms) == 2 and not self.convolved.isdisjoint(terms):
                self.found += [(term, _Reader(inside=tuple(self.running))) for term in terms]
        read = [(id(each), each._version) for each in args if isinstance(each, Tensor)]
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor):
            self.uses.update(state for state in read if state in self.makers)
            if getattr(func, "__name__", "") in _AVERAGES and args[0].ndim == 4:
                self.averaged.append((self.state(args[0]), self.state(out)))
        return out

    def state(self, tensor: Tensor) -> _State:
        self.kept.append(tensor)
        return id(tensor), tensor._version

    def readers(self) -> dict[_State, list[_Reader]]:
        found: dict[_State, list[_Reader]] = {}
        # The last convolution then gives integers. What else is read stays as exact as it is.
        alone = [
            (image, _Reader()) for image, mean in self.averaged if self._is_between(image, mean)
        ]
        for state, reader in (*self.found, *alone):
            found.setdefault(state, []).append(reader)
        return found

    def door(self, state: _State, readers: list[_Reader]) -> tuple[str, int] | None:
        """Return the outermost module that all readers are in, and the position of its input.

        None if there is one reader alone, or no such module that is called once.
        """
        if len(readers) == 1:
            return None
        for path, position in self.doors.get(state, []):
            if path and self.calls[path] == 1 and all(path in each.inside for each in readers):
                return path, position
        return None

    def _is_between(self, image: _State, mean: _State) -> bool:
        return self.uses[image] == 1 and mean not in self.results


@contextmanager
def _watched(model: nn.Module, watch: _Watch, names: dict[nn.Module, list[str]]) -> Iterator[None]:
    def begin(module: nn.Module, args: Any) -> None:
        path = names[module][0]
        watch.calls[path] += 1
        watch.running.append(path)
        reads = 0
        if path in watch.layers:
            reads = 3 if isinstance(module, nn.MultiheadAttention) else 1
        for position, value in enumerate(args):
            if not isinstance(value, Tensor) or not value.is_floating_point():
                continue
            state, place = watch.state(value), (path, position)
            watch.doors.setdefault(state, []).append(place)
            if position < reads:
                watch.found.append((state, _Reader(place, tuple(watch.running))))

    def end(module: nn.Module, args: Any, out: Any) -> None:
        path = names[module][0]
        watch.running.pop()
        if isinstance(out, Tensor) and out.is_floating_point():
            state = watch.state(out)
            watch.makers.setdefault(state, []).append(path)
            if path in watch.layers and isinstance(module, _ConvNd):
                watch.convolved.add(state)
        if path == "":
            watch.results |= {watch.state(x) for x in tree_leaves(out) if isinstance(x, Tensor)}

    hooks = [
        hook
        for module in names
        for hook in (
            module.register_forward_pre_hook(begin),
            module.register_forward_hook(end),
        )
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
