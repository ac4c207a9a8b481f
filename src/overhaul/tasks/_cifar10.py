"""`Cifar10`: 60,000 colour images in ten classes."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import Field

from overhaul.core import DataError, SplitName, load_optional
from overhaul.tasks._array_samples import ArraySamples
from overhaul.tasks._data_source import DataSource, data_cache, download

_SPLITS: tuple[SplitName, ...] = ("train", "test")
_SHAPE_HWC = (32, 32, 3)
_TORCHVISION_FOLDER = "cifar-10-batches-py"


class Cifar10(DataSource):
    """CIFAR-10: 50,000 + 10,000 colour images of 32 x 32 pixels in ten classes.

    Read from `data_dir` or, without one, from the folder of an earlier download: either parquet
    files of the Hugging Face image form (`train*.parquet`, `test*.parquet`) or torchvision's folder
    `cifar-10-batches-py`; else torchvision downloads it. Images are decoded once and kept in
    memory as bytes (184 MB).

    Shapes: `[N, 3, 32, 32]` of float32 in [0, 1]; 10 classes.

    Args:
        data_dir: The folder with the files; if they are not there they are downloaded into it.

    Raises:
        DataError: the files are nowhere, and cannot be downloaded; or one is damaged.
        MissingExtraError: the packages that read them (extra `vision`) are not installed.

    Example:
        >>> Cifar10(data_dir="data")
        Cifar10(data_dir='data')

    Paper: Krizhevsky, Learning multiple layers of features from tiny images, 2009.
    """

    data_dir: Path | None = Field(default=None, description="The folder with the files.")

    @property
    def class_names(self) -> tuple[str, ...]:
        """What is in the images."""
        return (
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        )

    def load(self) -> Mapping[SplitName, Any]:
        """Return `train` and `test`."""
        root = self.data_dir or data_cache()
        files = {name: sorted(root.glob(f"{name}*.parquet")) for name in _SPLITS}
        if all(files.values()):
            return {name: _read_parquet(paths) for name, paths in files.items()}
        if (root / _TORCHVISION_FOLDER).is_dir():
            return _read_torchvision(root, fetch=False)
        found: Mapping[SplitName, Any] = download(
            self.spec_name(), lambda: _read_torchvision(root, fetch=True), tried=[root]
        )
        return found


def _read_torchvision(root: Path, *, fetch: bool) -> Mapping[SplitName, Any]:
    datasets = load_optional("torchvision.datasets", extra="vision", why="to read CIFAR-10")
    found: dict[SplitName, Any] = {}
    for name in _SPLITS:
        try:
            data = datasets.CIFAR10(root, train=name == "train", download=fetch)
        except RuntimeError as error:
            if fetch:
                raise
            raise DataError(
                f"'{root / _TORCHVISION_FOLDER}' is damaged: {error}. Delete it and get it again."
            ) from error
        found[name] = _samples(data.data, data.targets)
    return found


def _read_parquet(paths: list[Path]) -> ArraySamples:
    parquet = load_optional("pyarrow.parquet", extra="vision", why="to read CIFAR-10")
    pillow = load_optional("PIL.Image", extra="vision", why="to read CIFAR-10")
    images: list[np.ndarray] = []
    labels: list[int] = []
    for path in paths:
        try:
            table = parquet.read_table(path)
            image = "image" if "image" in table.column_names else "img"
            block = np.empty((table.num_rows, *_SHAPE_HWC), dtype=np.uint8)
            for number, row in enumerate(table[image].to_pylist()):
                block[number] = pillow.open(io.BytesIO(row["bytes"])).convert("RGB")
            images.append(block)
            labels += table["label"].to_pylist()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"'{path}' cannot be read as images with labels: {error}. It needs the columns "
                "'image' (or 'img') and 'label'; get it again if it is damaged."
            ) from error
    return _samples(np.concatenate(images), labels)


def _samples(images_NHWC: np.ndarray, labels: list[int]) -> ArraySamples:
    images_NCHW = torch.from_numpy(np.ascontiguousarray(images_NHWC.transpose(0, 3, 1, 2)))
    return ArraySamples((images_NCHW,), torch.tensor(labels), pixels=True)
