"""`needless_layers`: what a model can do without if it ends at one of its modules."""

from collections.abc import Sequence
from copy import deepcopy

import torch
from torch import Tensor, nn

from overhaul.core import Batch, seeded
from overhaul.multitask._passage import Passage, observe


def needless_layers(
    model: nn.Module, batch: Batch, path: str, evaluation: Passage, *, at_input: bool
) -> tuple[str, ...]:
    """Return the paths of the layers that a trunk does not need, none inside another.

    These are the layers that run after its end only, and those that run in training only and whose
    weights do not take part in its output (an auxiliary classifier). What does not run at all
    stays: it may run on other inputs.

    Args:
        model: Not changed.
        batch: Real inputs, on the model's device.
        path: Where the trunk ends.
        evaluation: What was observed in evaluation mode.
        at_input: Whether the trunk ends before the module at `path`, or after it.
    """
    copy = deepcopy(model).train()
    weights = {name: p for name, p in copy.named_parameters() if p.is_floating_point()}
    for weight in weights.values():
        weight.requires_grad_(True)
    with torch.enable_grad(), seeded(0):
        training = observe(copy, batch, path, at_input=at_input)
    used = used_parameters(training.features, weights)
    ran = evaluation.later | training.later | training.earlier
    needless = set()
    for name, module in model.named_modules(remove_duplicate=False):
        inside = {f"{name}.{each}".rstrip(".") for each, _ in module.named_modules()}
        own = {f"{name}.{each}" for each, _ in module.named_parameters()}
        if name in ran and inside.isdisjoint(evaluation.earlier):
            without_effect = bool(own) and own.isdisjoint(used)
            if inside.isdisjoint(training.earlier) or without_effect:
                needless.add(name)
    return tuple(sorted(name for name in needless if not _inside_one_of(name, needless)))


def used_parameters(output: Tensor, parameters: dict[str, nn.Parameter]) -> set[str]:
    """Return the names of the parameters that a gradient of the output reaches.

    Example:
        >>> weights = {"a": nn.Parameter(torch.ones(1)), "b": nn.Parameter(torch.ones(1))}
        >>> used_parameters(2 * weights["a"], weights)
        {'a'}
    """
    if not output.requires_grad:
        return set()
    gradients: Sequence[Tensor | None] = torch.autograd.grad(
        output.float().sum(), list(parameters.values()), allow_unused=True
    )
    return {name for name, g in zip(parameters, gradients, strict=True) if g is not None}


def _inside_one_of(name: str, paths: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:length]) in paths for length in range(1, len(parts)))
