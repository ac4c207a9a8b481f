"""`check_spec`: what holds of every step, plug, task and edit."""

import doctest
import inspect
import json
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import overhaul
from overhaul.core import Spec, SpecError


def example_of(cls: type[Spec]) -> Spec:
    """Return the object that the `Example:` of a spec's docstring makes.

    Raises:
        AssertionError: the docstring has no example that makes one.
    """
    namespace: dict[str, Any] = {**_public_names(), **vars(sys.modules[cls.__module__])}
    for example in doctest.DocTestParser().get_examples(inspect.getdoc(cls) or ""):
        try:
            made = eval(example.source, namespace)
        except SyntaxError:
            exec(example.source, namespace)
            continue
        if isinstance(made, cls):
            return made
    raise AssertionError(f"the docstring of {cls.__name__} has no Example that makes one")


def check_spec(spec: Spec) -> None:
    """Check what holds of every spec.

    It prints as code that makes an equal one; it survives YAML and JSON; a copy is equal; it is
    frozen; an unknown field is refused with the nearest known ones; its docstring has an example.

    Raises:
        AssertionError: something of this does not hold.

    Example:
        >>> from overhaul.training import Train
        >>> check_spec(Train(epochs=2))
    """
    cls = type(spec)
    name = cls.__name__
    assert "Example:" in (inspect.getdoc(cls) or ""), f"{name}: the docstring has no Example"
    namespace = {**_public_names(), **{each.__name__: each for each in _classes_in(spec)}}
    assert eval(repr(spec), namespace) == spec, f"{name}: repr does not evaluate to an equal one"
    assert cls.from_yaml(spec.to_yaml()) == spec, f"{name}: YAML does not round-trip"
    as_json = json.loads(json.dumps(spec.to_data()))
    assert cls.from_data(as_json) == spec, f"{name}: JSON does not round-trip"
    assert spec.model_copy() == spec, f"{name}: a copy is not equal"
    assert hash(spec.model_copy()) == hash(spec), f"{name}: an equal one has another hash"
    try:
        spec.model_copy(update={"no_such_field": 1})
    except SpecError as error:
        refusal = str(error)
    else:
        raise AssertionError(f"{name} takes a field that it does not have")
    assert "Known:" in refusal, f"{name}: the error names no known field: {refusal}"


def _public_names() -> dict[str, Any]:
    return {name: getattr(overhaul, name) for name in overhaul.__all__}


def _classes_in(value: Any) -> Iterator[type[Spec]]:
    """Yield the classes of a spec and of all specs in its fields."""
    if isinstance(value, Spec):
        yield type(value)
        value = dict(value)
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _classes_in(item)
