"""`DataSource`: built-in data, by name."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from overhaul.core import DataError, MissingExtraError, Spec, SplitName, snake_case


class DataSource(Spec, ABC):
    """Built-in data, by name: `data="digits"`.

    A new one is one file: a subclass that returns raw data in any of the forms that tasks take.
    Names in recipe files have hyphens (`fashion-mnist`).
    """

    @classmethod
    def spec_name(cls) -> str:
        """Return the name that recipe files use."""
        return snake_case(cls.__name__).replace("_", "-")

    @property
    @abstractmethod
    def class_names(self) -> tuple[str, ...] | None:
        """What the classes are called, in the order of their numbers; None if there are none."""

    @abstractmethod
    def load(self) -> Mapping[SplitName, Any]:
        """Return the data of each split that it comes with; `train` at least.

        Raises:
            DataError: it is not on this machine and cannot be downloaded.
        """


def data_cache() -> Path:
    """Return the folder that downloads of built-in data go to."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "overhaul" / "data"


def download(
    name: str, fetch: Callable[[], Any], *, tried: Sequence[Path], package: str | None = None
) -> Any:
    """Return what `fetch` downloads, or say what was tried and what to do.

    Args:
        name: What the data is called.
        fetch: Downloads and reads it.
        tried: Where it was looked for before.
        package: How a package manager installs it, as the end of a sentence.

    Raises:
        DataError: the download failed.
    """
    try:
        return fetch()
    except (OSError, RuntimeError, MissingExtraError) as error:
        places = ", ".join(f"'{path}'" for path in tried)
        ways = [package, "pass data_dir=... with a folder that holds it"]
        if isinstance(error, MissingExtraError):
            ways.append('install torchvision, which downloads it (pip install "overhaul[vision]")')
        else:
            ways.append("start once with a network connection, which downloads it")
        listed = "; or ".join(way for way in ways if way)
        raise DataError(
            f"{name} was not found in {places}, and the download failed: {error}. Either {listed}."
        ) from error
