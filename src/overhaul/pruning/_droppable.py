"""`droppable`: the layers in whose place their input could be handed on."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from overhaul.core import (
    Batch,
    ModelError,
    evaluating,
    matching_names,
    owner_of,
    replace_module_,
)
from overhaul.pruning._replace_by_identity import ReplaceByIdentity


def droppable(
    model: nn.Module, batch: Batch, patterns: Sequence[str], spared: set[str]
) -> tuple[dict[str, ReplaceByIdentity], dict[str, str]]:
    """Return how each layer can be replaced that can go, and why others cannot, by path.

    Args:
        model: It is left as it was.
        batch: The inputs of one pass, on the model's device.
        patterns: Of paths that can go: of what is inside each other, the outermost that matches.
            Without any, the blocks in containers.
        spared: Paths that stay, and with them what they are in.

    Raises:
        ModelError: a pattern matches nothing, or nothing that can go.
    """
    modules = dict(model.named_modules())
    ways, refused = _ways(model, batch)
    for path in list(ways):
        if not any(parameter.ndim > 1 for parameter in modules[path].parameters()):
            refused[path] = "it has no weights but vectors"
        elif any(path == name or name.startswith(f"{path}.") for name in spared):
            refused[path] = "`exclude` names it, or a part of it"
        if path in refused:
            del ways[path]
    if patterns:
        named = {pattern: _outermost(modules, pattern) for pattern in patterns}
    else:
        named = {"": of_nested([path for path in ways if _is_block(modules, path)])}
    wanted = [path for path in modules if any(path in paths for paths in named.values())]
    for path in wanted:
        if path in ways and (why := _failure(model, batch, ways[path])) is not None:
            refused[path] = f"the model does not run without it ({why})"
            del ways[path]
    for pattern, paths in named.items():
        if pattern and not any(path in ways for path in paths):
            each = "; ".join(f"'{path}' cannot go: {refused[path]}" for path in paths)
            raise ModelError(
                f"`layers` '{pattern}': {each}. Name layers that can go; the parts of a layer are "
                "named by a pattern of their own."
            )
    wanted = [path for path in wanted if not any(path.startswith(f"{w}.") for w in wanted)]
    can_go = {path: ways[path] for path in wanted if path in ways}
    return can_go, {path: refused[path] for path in wanted if path in refused}


def _outermost(modules: Mapping[str, nn.Module], pattern: str) -> list[str]:
    """Return what a pattern matches by itself, but for what is inside of it.

    A ModuleList or ModuleDict, which nobody calls, stands for what is in it.
    """
    matching_names(modules, (pattern,), "layers")
    found: list[str] = []
    for path, module in modules.items():
        if not path or any(path.startswith(f"{outer}.") for outer in found):
            continue
        parent = owner_of(path)
        listed = isinstance(modules[parent], nn.ModuleList | nn.ModuleDict)
        named = fnmatchcase(path, pattern) or (listed and parent and fnmatchcase(parent, pattern))
        if named and not isinstance(module, nn.ModuleList | nn.ModuleDict):
            found.append(path)
    return found


@contextmanager
def without(model: nn.Module, way: ReplaceByIdentity) -> Iterator[None]:
    """Take a layer out for a block, then put it back."""
    old = model.get_submodule(way.path)
    way.apply(model)
    try:
        yield
    finally:
        replace_module_(model, way.path, old)


def _failure(model: nn.Module, batch: Batch, way: ReplaceByIdentity) -> str | None:
    """Return the error with which the model does not run without a layer."""
    with without(model, way), evaluating(model):
        try:
            batch.forward(model)
        except Exception as error:  # the user's own code, which may want the layer
            return f"{type(error).__name__}: {error}"
    return None


def _is_block(modules: dict[str, nn.Module], path: str) -> bool:
    container = modules[owner_of(path)]
    inside = any(True for _ in modules[path].children())
    return inside and isinstance(container, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def of_nested(paths: Sequence[str]) -> list[str]:
    """Return, of layers inside each other, those with more siblings, or else the outer ones.

    Example:
        >>> of_nested(["stages.0", "stages.0.0", "stages.0.1"])
        ['stages.0.0', 'stages.0.1']
        >>> of_nested(["blocks.0", "blocks.0.conv.1", "blocks.1"])
        ['blocks.0', 'blocks.1']
    """
    siblings = Counter(owner_of(path) for path in paths)
    kept: list[str] = []
    for path in sorted(paths, key=lambda path: (-siblings[owner_of(path)], path.count("."))):
        if not any(path.startswith(f"{k}.") or k.startswith(f"{path}.") for k in kept):
            kept.append(path)
    return [path for path in paths if path in kept]


def _ways(model: nn.Module, batch: Batch) -> tuple[dict[str, ReplaceByIdentity], dict[str, str]]:
    """Return how modules can be replaced that are called once and keep the shape, and why not."""
    calls: Counter[str] = Counter()
    found: dict[str, ReplaceByIdentity | str] = {}

    def watch(path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, named_inputs: Any, outputs: Any) -> None:
            calls[path] += 1
            found[path] = _way(path, [*inputs, *named_inputs.values()], outputs)

        return hook

    handles = [
        module.register_forward_hook(watch(path), with_kwargs=True)
        for path, module in model.named_modules()
        if path and not isinstance(module, torch.jit.ScriptModule)  # which takes no hooks
    ]
    try:
        with evaluating(model):
            batch.forward(model)
    except Exception as error:
        raise ModelError(
            f"the model does not run while its layers are watched ({type(error).__name__}: "
            f"{str(error).splitlines()[0]}). Take what is compiled in it, such as torch.cond, out."
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    # A module with two names would still be there under the other one.
    names = Counter(module for _, module in model.named_modules(remove_duplicate=False))
    ways: dict[str, ReplaceByIdentity] = {}
    refused: dict[str, str] = {}
    for path, module in model.named_modules():
        way = found.get(path, "it is not called as a module")
        if calls[path] > 1:
            way = f"it is called {calls[path]} times in one pass"
        elif names[module] > 1:
            way = "it is in the model under two names"
        if isinstance(way, str):
            refused[path] = way
        else:
            ways[path] = way
    return ways, refused


def _way(path: str, inputs: Sequence[Any], outputs: Any) -> ReplaceByIdentity | str:
    """Return how a layer can be replaced that was called so, or why it cannot."""
    first, way = outputs, ReplaceByIdentity(path=path)
    if type(outputs) in (tuple, list) and outputs:
        if any(value is not None for value in outputs[1:]):
            return "it returns more than one thing, and nothing could stand for the rest"
        form = "list" if isinstance(outputs, list) else "tuple"
        first, way = outputs[0], ReplaceByIdentity(path=path, form=form, outputs=len(outputs))
    if not isinstance(first, Tensor) or not inputs or not isinstance(inputs[0], Tensor):
        return "it does not take a tensor and return one"
    if (first.shape, first.dtype) != (inputs[0].shape, inputs[0].dtype):
        return (
            f"it makes {_form(first)} of {_form(inputs[0])}, and its input could not stand for it"
        )
    return way


def _form(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
