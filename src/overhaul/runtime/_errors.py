"""Errors: each says the rule that was broken, the value that broke it, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches
from typing import ClassVar

_MOST_NAMES = 24


class OverhaulError(Exception):
    """Base of every error that Overhaul raises on purpose.

    `exit_code` is what the command line returns for it.
    """

    exit_code: ClassVar[int] = 1


class DataError(OverhaulError, ValueError):
    """The data cannot be used as given: wrong shape, label out of range, NaN, overlap."""

    exit_code = 3


class RunFolderError(OverhaulError, RuntimeError):
    """The run folder cannot be used: busy, full, or not a run folder."""

    exit_code = 4


class CorruptedFileError(RunFolderError):
    """A file of a run or an artifact is not what was written."""

    exit_code = 5


class MissingExtraError(OverhaulError, ImportError):
    """An optional package is needed and not installed."""

    exit_code = 7


class ArtifactError(OverhaulError, RuntimeError):
    """A deployed artifact cannot be made or does not do what it did when it was made."""

    exit_code = 5


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint that names the nearest known names, then all of them.

    Example:
        >>> nearest("sparsty", ["sparsity", "scope"])
        "Did you mean 'sparsity'? Known: scope, sparsity."
    """
    names = sorted(known)
    close = get_close_matches(name, names, n=2, cutoff=0.6)
    hint = f"Did you mean {' or '.join(map(repr, close))}? " if close else ""
    shown = names if len(names) <= _MOST_NAMES else [*names[:_MOST_NAMES], "..."]
    return f"{hint}Known: {', '.join(shown) or 'none'}."
