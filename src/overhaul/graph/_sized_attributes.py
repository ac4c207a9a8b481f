"""`sized_attributes`: the integers of a model remember where they come from, for a while."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from overhaul.graph._sizes import Attribute, Size, Watcher
from overhaul.graph._trace import Trace


@contextmanager
def sized_attributes(model: nn.Module, trace: Trace, watcher: Watcher) -> Iterator[None]:
    """Let the integers among the attributes of all modules remember where they come from."""
    before: list[tuple[dict[str, Any], str, Any]] = []

    def sized(path: str, name: str, value: Any) -> Any:
        attribute = Attribute(path, name)
        trace.attributes[attribute] = value
        return Size(value, attribute, watcher)

    try:
        for path, module in model.named_modules():
            own = vars(module)
            for name, value in list(own.items()):
                if type(value) is int:
                    own[name] = sized(path, name, value)
                elif type(value) in (tuple, list) and any(type(v) is int for v in value):
                    own[name] = type(value)(
                        sized(path, f"{name}.{place}", v) if type(v) is int else v
                        for place, v in enumerate(value)
                    )
                else:
                    continue
                before.append((own, name, value))
        yield
    finally:
        for own, name, value in before:
            own[name] = value
