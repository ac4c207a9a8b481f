"""`droppable`: the layers in whose place their input could be handed on."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from overhaul.core import Batch, ModelError, evaluating, owner_of
from overhaul.pruning._replace_by_identity import ReplaceByIdentity


def droppable(
    model: nn.Module, batch: Batch, wanted: set[str] | None, spared: set[str]
) -> dict[str, ReplaceByIdentity]:
    """Return how each layer can be replaced that can go, by path, in the model's order.

    Args:
        model: It is left as it was.
        batch: The inputs of one pass, on the model's device.
        wanted: Paths that can go; None for the blocks in containers.
        spared: Paths that stay, and with them what they are in.
    """
    modules = dict(model.named_modules())
    ways = {
        path: way
        for path, way in _same_shape(model, batch).items()
        if any(parameter.ndim > 1 for parameter in modules[path].parameters())
        and not any(path == name or name.startswith(f"{path}.") for name in spared)
        and (path in wanted if wanted is not None else _is_block(modules, path))
    }
    return {path: ways[path] for path in of_nested(list(ways))}


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


def _same_shape(model: nn.Module, batch: Batch) -> dict[str, ReplaceByIdentity]:
    """Return how each module can be replaced that is called once and keeps the shape."""
    calls: Counter[str] = Counter()
    found: dict[str, ReplaceByIdentity] = {}

    def watch(path: str) -> Any:
        def hook(module: nn.Module, inputs: Any, named_inputs: Any, outputs: Any) -> None:
            calls[path] += 1
            first = [*inputs, *named_inputs.values()][:1]
            way = _way(path, outputs)
            if way is not None and first and isinstance(first[0], Tensor):
                out = outputs if way.form == "tensor" else outputs[0]
                if (out.shape, out.dtype) == (first[0].shape, first[0].dtype):
                    found[path] = way

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
    return {
        path: found[path]
        for path, module in model.named_modules()
        if path in found and calls[path] == 1 and names[module] == 1
    }


def _way(path: str, outputs: Any) -> ReplaceByIdentity | None:
    if isinstance(outputs, Tensor):
        return ReplaceByIdentity(path=path)
    if type(outputs) not in (tuple, list) or not outputs or not isinstance(outputs[0], Tensor):
        return None
    if any(value is not None for value in outputs[1:]):
        return None  # nothing could stand for what else it returns
    form = "list" if isinstance(outputs, list) else "tuple"
    return ReplaceByIdentity(path=path, form=form, outputs=len(outputs))
