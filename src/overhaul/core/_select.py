"""Choosing layers by patterns of their paths."""

from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase

from torch import nn

from overhaul.core._errors import ModelError
from overhaul.runtime import nearest


def matching_names(names: Iterable[str], patterns: Sequence[str], field: str) -> set[str]:
    """Return the names that a pattern matches, by itself or by one of its parents.

    `layer1` matches `layer1`, `layer1.0` and `layer1.0.conv1`; `*.conv1` each `conv1` inside
    another module; `*` everything.

    Args:
        names: Paths of modules or parameters.
        patterns: Shell patterns; `*` also matches dots.
        field: What the patterns are called in the error.

    Raises:
        ModelError: a pattern matches nothing.

    Example:
        >>> sorted(matching_names(["a", "a.b", "c"], ["a"], "layers"))
        ['a', 'a.b']
    """
    every = [name for name in names if name]
    chosen: set[str] = set()
    for pattern in patterns:
        found = {
            name for name in every if any(fnmatchcase(p, pattern) for p in _with_parents(name))
        }
        if not found:
            raise ModelError(f"`{field}` '{pattern}' matches nothing. {nearest(pattern, every)}")
        chosen |= found
    return chosen


def _with_parents(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def owner_of(parameter: str) -> str:
    """Return the path of the module that a parameter belongs to.

    Example:
        >>> owner_of("layer1.conv.weight"), owner_of("scale")
        ('layer1.conv', '')
    """
    return parameter.rpartition(".")[0]


def replace_module_(model: nn.Module, path: str, new: nn.Module) -> None:
    """Put `new` in the place of the module at `path`."""
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, new)
