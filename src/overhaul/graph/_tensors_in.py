"""`tensors_in`: the tensors of whatever a model returns."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Yield the tensors of a tree that may have dataclasses and other objects in it."""
    seen: set[int] = set()
    queue = [value]
    while queue:
        item = queue.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, Mapping):
            queue += item.values()
        elif isinstance(item, list | tuple | set):
            queue += item
        elif hasattr(item, "__dict__") and not isinstance(item, nn.Module | type):
            queue += vars(item).values()
