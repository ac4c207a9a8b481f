"""`as_samples`: whatever the user gave, as data that can be read by position."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
)

from overhaul.core import DataError, Fact
from overhaul.tasks._array_samples import ArraySamples
from overhaul.tasks._lazy_samples import LazySamples
from overhaul.tasks._samples import Samples, joined
from overhaul.tasks._separate import TargetKey, separate

_FORMS = (
    "Give (x, y) arrays, a dict of arrays, a Dataset, a DataLoader, a datasets.Dataset, or an "
    "iterable of batches."
)


def as_samples(raw: Any, where: str, target_key: TargetKey = "labels") -> Samples:
    """Return the user's data as samples that can be read by position.

    Args:
        raw: `(x, y)` or `(x1, x2, y)` of tensors or arrays; a dict of them; a map-style data set
            (a list is one, of samples), whose samples are tuples or dicts; a `DataLoader`, whose
            data set and `collate_fn` are used; a `datasets.Dataset`; or any other iterable of
            batches, which is read into memory.
        where: Which split it is, for errors.
        target_key: The key, or keys, of the targets where batches are dicts; None where there are
            inputs alone, which may then be one tensor.

    Raises:
        DataError: it is none of these.

    Example:
        >>> len(as_samples((torch.zeros(5, 2), torch.zeros(5)), "train"))
        5
    """
    if isinstance(raw, Samples):
        return raw
    if _is_of("datasets.dataset_dict", raw):
        names = ", ".join(map(str, raw))
        raise DataError(f"`{where}` holds several splits ({names}). Pass one: {where}=data['...'].")
    alone = target_key is None and isinstance(raw, Tensor | np.ndarray)
    if alone or isinstance(raw, tuple | Mapping):
        return ArraySamples(*separate(raw, target_key, where), where=where)
    if type(raw) is TensorDataset:
        return ArraySamples(*separate(raw.tensors, target_key, where), where=where)
    if _is_of("datasets.arrow_dataset", raw):
        # Without a format, its rows are lists; a format of the user's own stays.
        plain = raw.format["type"] is None
        dataset = raw.with_format("torch") if plain else raw
        return LazySamples(dataset, target_key, where, reads_batches=True)
    if isinstance(raw, Tensor | np.ndarray | str | bytes):
        hint = " Built-in data is given as data='digits'." if isinstance(raw, str) else ""
        raise DataError(f"`{where}` is {type(raw).__name__} without targets. {_FORMS}{hint}")
    if type(raw) is Subset:
        whole = as_samples(raw.dataset, where, target_key)
        if isinstance(whole, ArraySamples):
            return whole.take(torch.as_tensor(raw.indices, dtype=torch.long))
    if _is_map_style(raw):
        return LazySamples(raw, target_key, where)
    if _is_map_style(getattr(raw, "dataset", None)) and not _is_unbatched(raw):
        return _from_loader(raw, where, target_key)
    if isinstance(raw, IterableDataset):
        raw = DataLoader(raw, batch_size=256)
    if isinstance(raw, Iterable):
        return _read_all(raw, where, target_key)
    raise DataError(f"`{where}` is {type(raw).__name__}, which cannot be read. {_FORMS}")


def _is_of(module: str, value: Any) -> bool:
    """Tell what a value of an optional package is without importing that package."""
    return any(cls.__module__ == module for cls in type(value).__mro__)


def _is_map_style(value: Any) -> bool:
    return hasattr(type(value), "__getitem__") and hasattr(type(value), "__len__")


def _is_unbatched(loader: Any) -> bool:
    return isinstance(loader, DataLoader) and loader.batch_sampler is None


def _from_loader(loader: Any, where: str, target_key: TargetKey) -> Samples:
    collate: Callable[[list[Any]], Any] = getattr(loader, "collate_fn", default_collate)
    if collate is default_collate:
        samples = as_samples(loader.dataset, where, target_key)
    else:
        samples = LazySamples(loader.dataset, target_key, where, collate=collate)
    sampler = getattr(loader, "sampler", None)
    if sampler is not None and not isinstance(sampler, RandomSampler | SequentialSampler):
        note = Fact(
            name="sampler_not_used",
            value=type(sampler).__name__,
            reason="the loader's data set is read, every sample once per epoch in a random order",
        )
        samples.notes = (*samples.notes, note)
    return samples


def _read_all(batches: Iterable[Any], where: str, target_key: TargetKey) -> Samples:
    pairs = [separate(batch, target_key, where) for batch in batches]
    if not pairs:
        raise DataError(
            f"`{where}` gave no batches. An iterator can be read only once: pass a new one."
        )
    try:
        inputs, targets = map(joined, zip(*pairs, strict=True))
    except (RuntimeError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"the batches of `{where}` do not fit together: {error}. Make every sample the same "
            "shape, or pass a Dataset, which is not read into memory."
        ) from error
    return ArraySamples(inputs, targets, where=where)
