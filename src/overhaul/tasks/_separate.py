"""From a batch in the user's form to inputs and targets."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from overhaul.core import DataError, Targets, nearest
from overhaul.tasks._samples import Inputs, Pair

TargetKey: TypeAlias = str | tuple[str, ...] | None
"""The key, or keys, of the targets in a mapping; None where all that there is are inputs."""


def separate(batch: Any, target_key: TargetKey, where: str) -> Pair:
    """Return the inputs and targets of a batch: `(x, y)`, `(x1, x2, y)` or a mapping.

    Floats of 64 bits are read as 32 bits, which is what networks compute in; whole-number targets
    as 64 bits, which is what losses take.

    Args:
        batch: What a collate function, a user's iterable or a pair of arrays gives.
        target_key: The key, or keys, of the targets in a mapping; None where there are none, so
            that the targets are empty, `[B, 0]`.
        where: Which split this is, for the error.

    Raises:
        DataError: it has another form, or holds something else than numbers.

    Example:
        >>> inputs, targets = separate({"ids": [[1, 2]], "labels": [0]}, "labels", "train")
        >>> inputs, targets
        ({'ids': tensor([[1, 2]])}, tensor([0]))
    """
    if target_key is None:
        return _without_targets(batch, where)
    if isinstance(batch, Mapping):
        given: Any
        given, wanted = _split_mapping(batch, target_key, where)
    elif isinstance(batch, tuple | list) and len(batch) >= 2:
        *first, wanted = batch
        given = first[0] if len(first) == 1 and isinstance(first[0], Mapping | tuple) else first
    else:
        raise DataError(
            f"`{where}` must give inputs with targets, as (x, y), (x1, x2, y) or a dict with the "
            f"key {target_key!r}, got {_describe(batch)}."
        )
    return _inputs(given, where), _targets(wanted, where)


def _without_targets(batch: Any, where: str) -> Pair:
    several = isinstance(batch, Mapping | tuple | list)
    inputs = _inputs(batch if several else (batch,), where)
    tensors = list(inputs.values()) if isinstance(inputs, dict) else inputs
    if not tensors:
        raise DataError(f"`{where}` has no inputs.")
    return inputs, torch.zeros(*tensors[0].shape[:1], 0)


def _split_mapping(
    batch: Mapping[str, Any], target_key: str | tuple[str, ...], where: str
) -> tuple[Mapping[str, Any], Any]:
    keys = (target_key,) if isinstance(target_key, str) else target_key
    for key in keys:
        if key not in batch:
            raise DataError(
                f"`{where}` has no key '{key}' for the targets. {nearest(key, map(str, batch))} "
                "Name the right one with `target_key`."
            )
    inputs = {key: value for key, value in batch.items() if key not in keys}
    if not inputs:
        raise DataError(f"`{where}` has targets and no inputs: its only keys are {keys}.")
    if isinstance(target_key, str):
        return inputs, batch[target_key]
    return inputs, {key: batch[key] for key in keys}


def _inputs(given: Any, where: str) -> Inputs:
    if isinstance(given, Mapping):
        return {
            str(key): as_tensor(value, f"input {key!r} of `{where}`")
            for key, value in given.items()
        }
    return tuple(
        as_tensor(value, f"input {number} of `{where}`") for number, value in enumerate(given)
    )


def _targets(wanted: Any, where: str) -> Targets:
    if isinstance(wanted, Mapping):
        return {
            str(key): _as_target(value, f"target {key!r} of `{where}`")
            for key, value in wanted.items()
        }
    return _as_target(wanted, f"target of `{where}`")


def _as_target(value: Any, what: str) -> Tensor:
    tensor = as_tensor(value, what)
    return tensor if tensor.is_floating_point() else tensor.long()


def as_tensor(value: Any, what: str) -> Tensor:
    """Return numbers as a tensor on the CPU without gradient.

    Args:
        value: A tensor, a NumPy array, or nested lists of numbers of equal length.
        what: What it is, for the error.

    Raises:
        DataError: it is text, an image object, or ragged.
    """
    if not isinstance(value, Tensor):
        value = _from_other(value, what)
    tensor: Tensor = value.detach().cpu()
    return tensor.float() if tensor.dtype == torch.float64 else tensor


def _from_other(value: Any, what: str) -> Tensor:
    if isinstance(value, np.ndarray):
        plain = value.flags.writeable and value.flags.c_contiguous
        try:
            return torch.from_numpy(value if plain else np.array(value, order="C"))
        except (TypeError, ValueError):
            raise DataError(
                f"the {what} is a NumPy array of type {value.dtype}, which is not numbers that "
                "torch knows. Turn text into token ids and classes into whole numbers 0, 1, 2, ..."
            ) from None
    if isinstance(value, list | tuple | int | float | np.generic):
        try:
            if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
                return torch.stack(value)
            return torch.as_tensor(value)
        except (TypeError, ValueError, RuntimeError):
            pass
    raise DataError(
        f"the {what} is not numbers of one shape: {_describe(value)}. Turn text into token ids, "
        "images into tensors, and pad what differs in length; or leave the field out."
    )


def _describe(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"one {type(value).__name__} of shape {tuple(value.shape)}"
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"
