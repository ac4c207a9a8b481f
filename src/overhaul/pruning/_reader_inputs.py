"""What the layers that read the units of groups take in, on training data."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from overhaul.core import Batch, evaluating, owner_of
from overhaul.graph import Group, Place


def whole_readers(group: Group, modules: dict[str, nn.Module]) -> list[Place]:
    """Return the weights of linear layers and ungrouped convolutions that read a group."""
    found = []
    for place in group.places:
        module = modules.get(owner_of(place.tensor))
        whole = isinstance(module, nn.Linear) or (
            isinstance(module, nn.modules.conv._ConvNd)
            and not isinstance(module, nn.modules.conv._ConvTransposeNd)
            and module.groups == 1
        )
        if place.reads and whole and place.tensor.endswith(".weight"):
            found.append(place)
    return found


def watch_inputs(
    model: nn.Module,
    paths: set[str],
    batches: Iterator[Batch],
    see: Callable[[str, nn.Module, Tensor], None],
) -> None:
    """Run batches in evaluation mode and show what each of these layers takes in."""
    modules = dict(model.named_modules())

    def hook(path: str) -> Any:
        def watch(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            see(path, module, inputs[0].detach())

        return watch

    handles = [modules[path].register_forward_pre_hook(hook(path)) for path in sorted(paths)]
    device = next(model.parameters()).device
    try:
        with evaluating(model), torch.no_grad():
            for batch in batches:
                batch.to(device).forward(model)
    finally:
        for handle in handles:
            handle.remove()


def mean_inputs(
    model: nn.Module,
    paths: set[str],
    batches: Iterator[Batch],
    measure: Callable[[Tensor], Tensor] = torch.Tensor.double,
) -> dict[str, Tensor]:
    """Return what each of these layers takes in on average, by channel, `[C]`.

    Args:
        model: It is run in evaluation mode.
        paths: The layers; one that is never called is left out.
        batches: What to run it on.
        measure: What to take the mean of, for rows of channels. Default: the values themselves.
    """
    sums: dict[str, Tensor] = {}
    counts: dict[str, int] = {}

    def add(path: str, module: nn.Module, values: Tensor) -> None:
        rows = _by_channel(module, values)
        total = measure(rows).double().sum(0)
        sums[path] = sums[path] + total if path in sums else total
        counts[path] = counts.get(path, 0) + len(rows)

    watch_inputs(model, paths, batches, add)
    return {path: total / counts[path] for path, total in sums.items()}


def _by_channel(module: nn.Module, values: Tensor) -> Tensor:
    """Return the inputs of a layer as rows of channels, `[samples and places, C]`."""
    if isinstance(module, nn.modules.conv._ConvNd):
        values = values.movedim(values.ndim - len(module.kernel_size) - 1, -1)
    return values.reshape(-1, values.shape[-1])
