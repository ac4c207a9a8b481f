"""`mixed_class`: a layer's own class with something before it."""

from typing import Any
from weakref import WeakKeyDictionary

from torch import nn


class Mixed(nn.Module):
    """A module whose class was made by `mixed_class`: it is copied and pickled by its parts."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Return how it is made again."""
        return _new, type(self).__bases__, self.__getstate__()  # type: ignore[no-untyped-call]


def mixed_class(mixin: type[Mixed], kind: type[nn.Module]) -> type[nn.Module]:
    """Return the class that is `kind` with `mixin` before it; the same one each time.

    Args:
        mixin: At the top of its module, so that it can be pickled; its `prefix` comes before the
            name of the class.
        kind: The layer's own.
    """
    known = _CLASSES.setdefault(kind, {})
    if mixin not in known:
        name = f"{getattr(mixin, 'prefix', mixin.__name__)}{kind.__name__}"
        known[mixin] = type(name, (mixin, kind), {"__doc__": kind.__doc__})
        known[mixin].__module__ = kind.__module__
    return known[mixin]


def plain_class(layer: nn.Module) -> type[Any]:
    """Return the class that a layer had before."""
    return type(layer).__bases__[1]


_CLASSES: WeakKeyDictionary[type[nn.Module], dict[type[Mixed], type[nn.Module]]] = (
    WeakKeyDictionary()
)


def _new(mixin: type[Mixed], kind: type[nn.Module]) -> nn.Module:
    made = mixed_class(mixin, kind)
    module: nn.Module = made.__new__(made)
    return module
