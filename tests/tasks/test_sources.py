import gzip
import io
import struct
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from torch import Tensor

from overhaul.core import Batch, DataError, MissingExtraError, SpecError
from overhaul.tasks import Cifar10, Classification, DataSource, Digits, FashionMnist, Normalize

DEBIAN = Path("/usr/share/datasets/fashion-mnist")


def inputs_of(batch: Batch) -> Tensor:
    assert isinstance(batch.inputs, tuple)
    only: Tensor = batch.inputs[0]
    return only


def idx(values: np.ndarray) -> bytes:
    sizes = struct.pack(f">{values.ndim}I", *values.shape)
    return bytes([0, 0, 8, values.ndim]) + sizes + values.tobytes()


def write_fashion(folder: Path, *, compressed: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for prefix, size in (("train", 60), ("t10k", 20)):
        contents = {
            "images-idx3": draw.integers(0, 256, (size, 28, 28), dtype=np.uint8),
            "labels-idx1": (np.arange(size) % 10).astype(np.uint8),
        }
        for kind, values in contents.items():
            path = folder / f"{prefix}-{kind}-ubyte{'.gz' if compressed else ''}"
            path.write_bytes(gzip.compress(idx(values)) if compressed else idx(values))


def write_cifar(folder: Path, *, image: str = "image", size: int = 60) -> None:
    import pyarrow as pa
    from PIL import Image
    from pyarrow import parquet

    draw = np.random.default_rng(0)
    for name, count in (("train", size), ("test", 20)):
        rows = []
        for _ in range(count):
            buffer = io.BytesIO()
            picture = Image.fromarray(draw.integers(0, 256, (32, 32, 3), dtype=np.uint8))
            picture.save(buffer, format="PNG")
            rows.append({"bytes": buffer.getvalue(), "path": None})
        table = pa.table({image: rows, "label": [n % 10 for n in range(count)]})
        parquet.write_table(table, folder / f"{name}-00000-of-00001.parquet")


def offline(*args: Any, **kwargs: Any) -> None:
    if kwargs.get("download"):
        raise URLError("no route to host")
    raise RuntimeError("Dataset not found or corrupted.")


def test_digits() -> None:
    task = Classification(data="digits")
    splits = task.prepare()
    batch = splits.val.read(torch.arange(180))
    assert inputs_of(batch).shape == (180, 1, 8, 8)
    assert (float(inputs_of(batch).min()), float(inputs_of(batch).max())) == (0, 1)
    assert task.output_size(splits) == 10
    assert Digits().class_names == tuple("0123456789")


@pytest.mark.parametrize("compressed", [True, False], ids=["gz", "plain"])
@pytest.mark.parametrize("below", ["", "raw", "FashionMNIST/raw"])
def test_fashion_mnist_from_files(tmp_path: Path, below: str, compressed: bool) -> None:
    write_fashion(tmp_path / below, compressed=compressed)
    task = Classification(data=FashionMnist(data_dir=tmp_path))
    splits = task.prepare()
    assert (len(splits.train), len(splits.val), len(splits.test)) == (54, 6, 20)
    pixels = inputs_of(splits.train.read(torch.arange(54)))
    assert pixels.shape == (54, 1, 28, 28)
    assert pixels.dtype == torch.float32
    assert float(pixels.max()) == 1
    assert task.output_names is not None
    assert task.output_names[9] == "Ankle boot"


def test_fashion_mnist_of_the_debian_package() -> None:
    if not DEBIAN.is_dir():
        pytest.skip("the Debian package dataset-fashion-mnist is not installed")
    splits = Classification(data="fashion-mnist").prepare()
    assert (len(splits.train), len(splits.val), len(splits.test)) == (54_000, 6_000, 10_000)
    overlap = [fact.value for fact in splits.facts if fact.name == "overlap"]
    assert overlap == [0]
    assert {fact.detail["least"] for fact in splits.facts if fact.name == "classes_present"} == {
        5400,
        600,
        1000,
    }


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\x1f\x8b broken", "is damaged"),
        (gzip.compress(b"\0\0\x09\x03"), "is damaged: it is not an idx file"),
        (gzip.compress(idx(np.zeros((3, 28, 28), np.uint8))[:-5]), "is damaged"),
        (gzip.compress(b""), "is damaged"),
    ],
    ids=["gzip", "type", "short", "empty"],
)
def test_a_damaged_fashion_mnist_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    write_fashion(tmp_path, compressed=True)
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(content)
    with pytest.raises(DataError, match=f"'.*train-images-idx3-ubyte.gz' {message}.*get it again"):
        FashionMnist(data_dir=tmp_path).load()


def test_fashion_mnist_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", offline)
    with pytest.raises(
        DataError,
        match=rf"fashion-mnist was not found in '{tmp_path}', and the download failed: .*no route.*"
        r"install the Debian package .*; or pass data_dir=.*; or start once with a network",
    ):
        Classification(data=FashionMnist(data_dir=tmp_path)).prepare()


def test_a_download_is_read_where_it_was_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fetch(root: Path, *, download: bool) -> None:
        assert download
        write_fashion(root / "FashionMNIST" / "raw", compressed=True)

    monkeypatch.setattr("torchvision.datasets.FashionMNIST", fetch)
    monkeypatch.setattr("overhaul.tasks._fashion_mnist._DEBIAN_FOLDER", tmp_path / "none")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert set(FashionMnist().load()) == {"train", "test"}
    assert (tmp_path / "overhaul" / "data" / "FashionMNIST" / "raw").is_dir()


@pytest.mark.parametrize("image", ["image", "img"])
def test_cifar10_from_parquet(tmp_path: Path, image: str) -> None:
    write_cifar(tmp_path, image=image)
    task = Classification(data=Cifar10(data_dir=tmp_path), preprocess=Normalize(mean=(0.5,) * 3))
    splits = task.prepare()
    assert (len(splits.train), len(splits.val), len(splits.test)) == (54, 6, 20)
    pixels = inputs_of(splits.train.read(torch.arange(54)))
    assert pixels.shape == (54, 3, 32, 32)
    assert pixels.dtype == torch.float32
    assert (float(pixels.min()), float(pixels.max())) == (-0.5, 0.5)
    assert task.output_names is not None
    assert task.output_names[0] == "airplane"


def test_cifar10_as_torchvision_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stored:
        def __init__(self, root: Path, *, train: bool, download: bool) -> None:
            size = 50 if train else 20
            draw = np.random.default_rng(int(train))
            self.data = draw.integers(0, 256, (size, 32, 32, 3), dtype=np.uint8)
            self.targets = [n % 10 for n in range(size)]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Stored)
    (tmp_path / "cifar-10-batches-py").mkdir()
    test = Classification(data=Cifar10(data_dir=tmp_path)).prepare().test.open()
    stored = Stored(tmp_path, train=False, download=False)
    read = inputs_of(test.read(torch.arange(20)))
    wanted = torch.from_numpy(stored.data).permute(0, 3, 1, 2) / 255
    assert torch.equal(read, wanted)


def test_cifar10_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torchvision.datasets.CIFAR10", offline)
    with pytest.raises(
        DataError, match=r"cifar10 was not found in .*no route to host.*Either pass data_dir="
    ):
        Cifar10(data_dir=tmp_path).load()
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(DataError, match=r"cifar-10-batches-py' is damaged: .*Delete it"):
        Cifar10(data_dir=tmp_path).load()


def test_cifar10_offline_without_torchvision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*args: Any, **kwargs: Any) -> None:
        raise MissingExtraError("the package 'torchvision' is needed and is not installed.")

    monkeypatch.setattr("overhaul.tasks._cifar10.load_optional", missing)
    with pytest.raises(DataError, match=r'install torchvision.*pip install "overhaul\[vision\]"'):
        Cifar10(data_dir=tmp_path).load()


def test_a_damaged_cifar10_is_refused(tmp_path: Path) -> None:
    write_cifar(tmp_path, image="picture")
    with pytest.raises(DataError, match=r"cannot be read as images with labels.*needs the columns"):
        Cifar10(data_dir=tmp_path).load()
    (tmp_path / "train-00000-of-00001.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match=r"train-00000-of-00001.parquet' cannot be read"):
        Cifar10(data_dir=tmp_path).load()


def test_cifar10_real(shared_data: Path) -> None:
    task = Classification(data=Cifar10(data_dir=shared_data / "cifar10"), train_limit=1000)
    splits = task.prepare()
    assert (len(splits.train), len(splits.val), len(splits.test)) == (1000, 5_000, 10_000)
    assert [fact.value for fact in splits.facts if fact.name == "overlap"] == [0]
    counts = [f for f in splits.facts if f.name == "classes_present" and f.split == "train"]
    assert counts[0].detail["counts"] == [100] * 10


def test_data_dir_belongs_to_the_source() -> None:
    with pytest.raises(SpecError, match="digits has no field 'data_dir'"):
        DataSource.from_data({"digits": {"data_dir": "x"}})
