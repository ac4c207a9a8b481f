"""The sealed test split: what a user gave, and what a run gets."""

from typing import Any, NoReturn

from overhaul.core import DataError, SealedSplit, SealedTestError, Split
from overhaul.tasks._split import DataSplit

_WHY = (
    "the test split is sealed: it is read once, by the final evaluation, so that the verdict is "
    "given on data that no choice was made on. Use `val` for everything before that"
)


class _Closed:
    """Refuses every way of reading samples."""

    __slots__ = ()

    def __getitem__(self, index: object) -> NoReturn:
        raise SealedTestError(f"{_WHY}; indexing it is refused.")

    def __iter__(self) -> NoReturn:
        raise SealedTestError(f"{_WHY}; iterating over it is refused.")

    def __contains__(self, item: object) -> NoReturn:
        raise SealedTestError(f"{_WHY}; searching it is refused.")

    def __array__(self, *args: object, **kwargs: object) -> NoReturn:
        raise SealedTestError(f"{_WHY}; turning it into an array is refused.")

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("_"):
            # Python and notebooks look for optional methods this way.
            raise AttributeError(name)
        raise SealedTestError(f"{_WHY}; `.{name}` is refused.")


class SealedData(_Closed):
    """What a user gave as `test`: it cannot be read through the task that holds it.

    Its length is known. Everything else raises `SealedTestError`.

    Example:
        >>> len(SealedData([(0.5, 1), (0.7, 0)]))
        2
    """

    __slots__ = ("__raw",)

    def __init__(self, raw: Any) -> None:
        """Seal the data."""
        self.__raw = raw

    def __len__(self) -> int:
        """Return the number of samples.

        Raises:
            DataError: it is an iterable, whose length is known only once it has been read.
        """
        size = _size(self.__raw)
        if size is None:
            raise DataError(
                f"`test` is {type(self.__raw).__name__}, whose number of samples is known only "
                "once it has been read: see `len(task.prepare().test)`."
            )
        return size

    def __repr__(self) -> str:
        """Say what it is, and nothing of what is in it."""
        return "<sealed test data>"

    def __eq__(self, other: object) -> bool:
        """Tell whether both seal the same object, or tuples of the same objects."""
        if not isinstance(other, SealedData):
            return NotImplemented
        left, right = self.__raw, other.__raw
        if isinstance(left, tuple) and isinstance(right, tuple) and len(left) == len(right):
            return all(a is b for a, b in zip(left, right, strict=True))
        return left is right

    def __hash__(self) -> int:
        """Hash by what it is; the data takes no part."""
        return hash(repr(self))

    def _unsealed(self) -> Any:
        """Return the data; for the checks before a run, which read every split."""
        return self.__raw


def _size(raw: Any) -> int | None:
    if isinstance(raw, tuple):
        return _size_of_first(raw[0])
    if isinstance(raw, dict):
        return _size_of_first(next(iter(raw.values()), ()))
    holders: tuple[Any, ...] = (raw, getattr(raw, "dataset", None))
    for holder in holders:
        if hasattr(type(holder), "__getitem__") and hasattr(type(holder), "__len__"):
            return len(holder)
    return None


def _size_of_first(value: Any) -> int:
    if isinstance(value, dict | tuple):
        return _size_of_first(next(iter(value.values() if isinstance(value, dict) else value), ()))
    return len(value)


class Sealed(_Closed, SealedSplit):
    """The test split as a run gets it: length and fingerprint are known, samples only after `open`.

    Example:
        >>> import torch
        >>> from overhaul.tasks import Classification
        >>> x, y = torch.rand(60, 2), torch.arange(60) % 2
        >>> test = Classification(train=(x, y)).prepare().test
        >>> len(test)
        12
        >>> len(test.open())
        12
    """

    __slots__ = ("__split",)

    def __init__(self, split: DataSplit) -> None:
        """Seal the split."""
        self.__split = split

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.__split)

    def open(self) -> Split:
        """Break the seal. Only the final evaluation does this, and every opening is counted."""
        return self.__split

    @property
    def fingerprint(self) -> str:
        """A hash of every sample in order."""
        return self.__split.fingerprint
