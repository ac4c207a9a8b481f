"""`FashionMnist`: 70,000 grey images of clothing."""

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from overhaul.core import DataError, SplitName, load_optional
from overhaul.tasks._array_samples import ArraySamples
from overhaul.tasks._data_source import DataSource, data_cache, download

_DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_FILES: dict[SplitName, str] = {"train": "train", "test": "t10k"}


class FashionMnist(DataSource):
    """Fashion-MNIST: 60,000 + 10,000 grey images of clothing, 28 x 28 pixels.

    Read from its four `idx` files (`.gz` or not), wherever they are first found: in `data_dir`, in
    the folder of the Debian package `dataset-fashion-mnist`, or in the folder of an earlier
    download; else torchvision downloads them.

    Shapes: `[N, 1, 28, 28]` of float32 in [0, 1]; 10 classes.

    Args:
        data_dir: The folder with the files, or torchvision's root folder; if they are not there
            they are downloaded into it.

    Raises:
        DataError: the files are nowhere, and cannot be downloaded; or one is damaged.

    Example:
        >>> FashionMnist(data_dir="data")
        FashionMnist(data_dir='data')

    Paper: Xiao, Rasul and Vollgraf, arXiv:1708.07747, 2017.
    """

    data_dir: Path | None = Field(default=None, description="The folder with the files.")

    @property
    def class_names(self) -> tuple[str, ...]:
        """The kinds of clothing."""
        return (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        )

    def load(self) -> Mapping[SplitName, Any]:
        """Return `train` and `test`."""
        root = self.data_dir or data_cache()
        folders = [root] if self.data_dir else [_DEBIAN_FOLDER, root]
        places = [place for f in folders for place in (f, f / "raw", f / "FashionMNIST" / "raw")]
        found = next(filter(_holds_all, places), None)
        if found is None:
            download(
                self.spec_name(),
                lambda: _download(root),
                tried=folders,
                package="install the Debian package dataset-fashion-mnist",
            )
            found = root / "FashionMNIST" / "raw"
        return {name: _read(found, prefix) for name, prefix in _FILES.items()}


def _download(root: Path) -> None:
    datasets = load_optional(
        "torchvision.datasets", extra="vision", why="to download Fashion-MNIST"
    )
    datasets.FashionMNIST(root, download=True)


def _file(folder: Path, prefix: str, kind: str) -> Path | None:
    name = f"{prefix}-{kind}-ubyte"
    candidates = (folder / f"{name}.gz", folder / name)
    return next((path for path in candidates if path.is_file()), None)


def _holds_all(folder: Path) -> bool:
    kinds = ("images-idx3", "labels-idx1")
    return all(_file(folder, prefix, kind) for prefix in _FILES.values() for kind in kinds)


def _read(folder: Path, prefix: str) -> ArraySamples:
    images = _read_idx(_file(folder, prefix, "images-idx3"), dimensions=3)
    labels = _read_idx(_file(folder, prefix, "labels-idx1"), dimensions=1)
    return ArraySamples((images[:, None],), labels.long(), pixels=True)


def _read_idx(path: Path | None, dimensions: int) -> Tensor:
    """Read an idx file: two zeros, a type, the number of dimensions, their sizes, the bytes."""
    if path is None:
        raise DataError("the files of Fashion-MNIST disappeared while they were read.")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        if content[:3] != b"\0\0\x08" or content[3] != dimensions:
            raise ValueError("it is not an idx file of bytes")
        start = 4 + 4 * dimensions
        sizes = [int(size) for size in np.frombuffer(content[4:start], dtype=">u4")]
        values = np.frombuffer(content, dtype=np.uint8, offset=start).reshape(sizes)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise DataError(f"'{path}' is damaged: {error}. Delete it and get it again.") from error
    return torch.from_numpy(values.copy())
