"""Names of specs in recipes: from class to short name, and from short name or path to object."""

import inspect
import re
import sys
from abc import ABC
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any, TypeVar

from overhaul.core._errors import SpecError
from overhaul.runtime import nearest

T = TypeVar("T")


def snake_case(name: str) -> str:
    """Turn a class name into its name in a recipe file.

    Example:
        >>> snake_case("PruneWeights"), snake_case("AdamW"), snake_case("SGD")
        ('prune_weights', 'adamw', 'sgd')
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", name).lower()


def spec_name(cls: type) -> str:
    """Return the short name of a class: what its `spec_name` says, or its name in snake case."""
    own = getattr(cls, "spec_name", None)
    return str(own()) if own is not None else snake_case(cls.__name__)


def is_kind(cls: type) -> bool:
    """Tell whether a class names a kind of things and is none itself.

    A kind whose methods all do nothing by default has no abstract one; it derives from `ABC`.
    """
    return inspect.isabstract(cls) or ABC in cls.__bases__


def concrete_subclasses(base: type[T]) -> Iterator[type[T]]:
    """Yield `base` and everything below it that can be instantiated and is public.

    All rooms of the package are imported before, since only a class that is imported is found.
    """
    import_module(__name__.partition(".")[0]).import_rooms()
    yield from _below(base)


def find_class(base: type[T], name: str) -> type[T]:
    """Return the public subclass of `base` that a recipe calls `name`.

    Args:
        base: The kind that is wanted, for example `Step`.
        name: The short name (`prune_weights`) or, for a class that shares its name with
            another, its path (`my_package.steps:PruneWeights`).

    Raises:
        SpecError: nothing, or more than one class, has this name.
    """
    if ":" in name:
        found = import_object(name)
        if isinstance(found, type) and issubclass(found, base) and not is_kind(found):
            return found
        raise SpecError(f"'{name}' is not a {base.__name__} that can be made.")
    known: dict[str, list[type[T]]] = {}
    for cls in concrete_subclasses(base):
        known.setdefault(spec_name(cls), []).append(cls)
    matches = {cls.__qualname__ + cls.__module__: cls for cls in known.get(name, [])}
    if len(matches) == 1:
        return next(iter(matches.values()))
    if matches:
        paths = ", ".join(f"{cls.__module__}:{cls.__qualname__}" for cls in matches.values())
        raise SpecError(f"'{name}' is ambiguous. Write one of: {paths}.")
    kind = snake_case(base.__name__).replace("_", " ")
    raise SpecError(f"unknown {kind} '{name}'. {nearest(name, known)}")


def _below(base: type[T]) -> Iterator[type[T]]:
    if not is_kind(base) and not base.__name__.startswith("_"):
        yield base
    for sub in base.__subclasses__():
        yield from _below(sub)


def import_object(path: str) -> Any:
    """Import `package.module:name` and return what it names.

    Raises:
        SpecError: the path has not this form, the module cannot be imported, or it lacks the name.

    Example:
        >>> import_object("math:sqrt")(9.0)
        3.0
    """
    module_name, _, attribute = path.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), *attribute.split("."))):
        raise SpecError(
            f"'{path}' is not an import path. Write 'package.module:name', for example "
            "'torchvision.models:resnet18'."
        )
    try:
        found: Any = import_module(module_name)
    except ImportError as error:
        raise SpecError(
            f"cannot import '{module_name}' of '{path}': {error}. Is the package installed and, "
            "for a file of yours, is its folder on PYTHONPATH?"
        ) from error
    for part in attribute.split("."):
        if not hasattr(found, part):
            names = [name for name in dir(found) if not name.startswith("_")]
            raise SpecError(f"'{module_name}' has no '{attribute}'. {nearest(part, names)}")
        found = getattr(found, part)
    return found


def import_path(obj: Callable[..., Any]) -> str | None:
    """Return the shortest path under which `obj` can be imported again, or None if there is none.

    Lambdas, local functions and bound methods have none.

    Example:
        >>> import torch
        >>> import_path(torch.nn.Linear), import_path(lambda x: x)
        ('torch.nn:Linear', None)
    """
    module_name = getattr(obj, "__module__", None)
    qualname = getattr(obj, "__qualname__", None)
    if module_name is None or qualname is None or "<" in qualname:
        return None
    parts = module_name.split(".")
    for length in range(1, len(parts) + 1):
        package = ".".join(parts[:length])
        found: Any = sys.modules.get(package)
        for part in qualname.split("."):
            found = getattr(found, part, None)
        if found is obj:
            return f"{package}:{qualname}"
    return None
