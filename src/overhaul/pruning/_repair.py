"""`Repair`: what is done, without training, so that the layers behind notice less."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from overhaul.core import Context, Spec, owner_of
from overhaul.graph import Gone, Graph
from overhaul.pruning._reader_inputs import whole_readers


@dataclass(frozen=True)
class Reader:
    """A layer that is about to lose some of its inputs.

    Attributes:
        path: Where it is.
        layer: A linear layer or an ungrouped convolution.
        lost: Which of its inputs go, `[C]`.
    """

    path: str
    layer: nn.Linear | nn.modules.conv._ConvNd
    lost: Tensor


class Repair(Spec, ABC):
    """A change of the layers that read removed units, made just before the removal."""

    @abstractmethod
    def apply_(self, model: nn.Module, readers: list[Reader], ctx: Context) -> None:
        """Change the layers in place; the weights of lost inputs are removed after it."""


def readers_that_lose(model: nn.Module, graph: Graph, gone: Gone) -> Iterator[Reader]:
    """Yield each linear layer and ungrouped convolution that loses some of its inputs."""
    modules = dict(model.named_modules())
    seen: set[str] = set()
    for group in graph.groups:
        for place in whole_readers(group, modules):
            path, layer = owner_of(place.tensor), modules[owner_of(place.tensor)]
            dim = graph.trace.state[place.tensor].dims[place.dim]
            if path in seen or dim is None or not gone[dim].any():
                continue
            seen.add(path)
            assert isinstance(layer, nn.Linear | nn.modules.conv._ConvNd)
            yield Reader(path, layer, torch.from_numpy(np.asarray(gone[dim])))
