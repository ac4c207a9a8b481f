"""Files and folders appear whole or not at all, and are what was written."""

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from overhaul.core import (
    CheckpointFolder,
    CorruptedFileError,
    RunFolderError,
    file_hash,
    read_state,
    whole_folder,
    write_state,
    write_text,
)
from overhaul.core._store import remove_leftovers

DTYPES = (
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    torch.float8_e4m3fn,
)


def same_tree(left: Any, right: Any) -> bool:
    """Tell whether two trees hold the same, tensors bit for bit."""
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return (
            left.dtype == right.dtype
            and left.shape == right.shape
            and torch.equal(_bytes(left), _bytes(right))
        )
    if isinstance(left, dict) and isinstance(right, dict):
        return list(left) == list(right) and all(same_tree(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same_tree, left, right))
    return type(left) is type(right) and bool(left == right)


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.contiguous().reshape(-1).view(torch.uint8)


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    shape = draw(st.lists(st.integers(0, 3), max_size=3))
    dtype = draw(st.sampled_from(DTYPES))
    values = torch.arange(torch.Size(shape).numel()).reshape(shape)
    tensor = values.to(dtype)
    return tensor.T if draw(st.booleans()) and tensor.ndim == 2 else tensor


plain = st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.text() | st.floats(-1e9, 1e9)
trees = st.recursive(
    plain | tensors(),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(tree=st.dictionaries(st.text(), trees, max_size=3))
def test_a_tree_survives_the_disk(
    tmp_path_factory: pytest.TempPathFactory, tree: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("state")
    write_state(folder, tree)
    assert same_tree(read_state(folder), tree)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_survives_the_disk(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = torch.arange(4).to(dtype)
    tree = {"all": tensor, "scalar": tensor[1], "none": tensor[:0], "$tensor": {3: tensor}}
    write_state(tmp_path, tree)
    assert same_tree(read_state(tmp_path), tree)


def test_the_comparison_of_trees_can_fail() -> None:
    one = {"a": [torch.zeros(2), 1]}
    assert same_tree(one, {"a": [torch.zeros(2), 1]})
    for other in (
        {"a": [torch.zeros(2).double(), 1]},
        {"a": [torch.ones(2), 1]},
        {"a": [torch.zeros(1), 1]},
        {"a": [torch.zeros(2), 1.0]},
        {"a": [torch.zeros(2)]},
        {"b": [torch.zeros(2), 1]},
    ):
        assert not same_tree(one, other)


def test_shared_memory_is_written_as_it_looks(tmp_path: Path) -> None:
    row = torch.arange(3.0)
    tree = {"wide": row.expand(2, 3), "part": row[1:], "whole": row, "grad": row.requires_grad_()}
    write_state(tmp_path, tree)
    read = read_state(tmp_path)
    assert torch.equal(read["wide"], torch.tensor([[0.0, 1, 2], [0, 1, 2]]))
    assert torch.equal(read["part"], torch.tensor([1.0, 2]))


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_every_changed_byte_is_found(tmp_path: Path, name: str) -> None:
    write_state(tmp_path, {"weights": torch.arange(6.0), "label": "train", "epoch": 12})
    file = tmp_path / name
    good = file.read_bytes()
    for position in range(len(good)):
        bad = bytearray(good)
        bad[position] ^= 1
        file.write_bytes(bad)
        if name == "state.json" and _same_json(bytes(bad), good):
            continue
        with pytest.raises(CorruptedFileError, match=r"corrupted: .* Delete '.*' to have it made"):
            read_state(tmp_path)


def _same_json(left: bytes, right: bytes) -> bool:
    try:
        return bool(json.loads(left) == json.loads(right))
    except ValueError:
        return False


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_missing_or_short_file_is_found(tmp_path: Path, name: str) -> None:
    write_state(tmp_path, {"weights": torch.arange(6.0)})
    file = tmp_path / name
    file.write_bytes(file.read_bytes()[:-3])
    with pytest.raises(CorruptedFileError, match="is corrupted"):
        read_state(tmp_path)
    file.unlink()
    with pytest.raises(CorruptedFileError, match="is corrupted"):
        read_state(tmp_path)


def test_a_text_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    file = tmp_path / "new" / "a.txt"
    write_text(file, "one")
    write_text(file, "zwölf")
    assert file.read_text("utf-8") == "zwölf"
    assert [child.name for child in file.parent.iterdir()] == ["a.txt"]
    assert file.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_old_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "a.txt"
    write_text(file, "one")
    monkeypatch.setattr(os, "fsync", _fail_with(errno.ENOSPC))
    with pytest.raises(RunFolderError, match=r"the disk is full: .*a\.txt.* free some space"):
        write_text(file, "two")
    assert file.read_text("utf-8") == "one"
    assert [child.name for child in tmp_path.iterdir()] == ["a.txt"]


def _fail_with(number: int) -> Any:
    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    return fail


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_folder_that_cannot_be_written_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setattr(os, "replace", _fail_with(number))
    with pytest.raises(RunFolderError, match=r"cannot be written: .* Choose another folder"):
        write_text(tmp_path / "a.txt", "one")


def test_another_error_stays_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "replace", _fail_with(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        write_text(tmp_path / "a.txt", "one")


def test_a_folder_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "steps" / "0"
    for content in ("old", "new"):
        with whole_folder(folder) as temporary:
            (temporary / content).write_text(content)
            (temporary / "inner").mkdir()
            assert not (folder / content).exists()
    assert {child.name for child in folder.iterdir()} == {"new", "inner"}
    assert [child.name for child in folder.parent.iterdir()] == ["0"]


def test_a_block_that_fails_leaves_the_old_folder(tmp_path: Path) -> None:
    folder = tmp_path / "0"
    with whole_folder(folder) as temporary:
        (temporary / "old").touch()
    with pytest.raises(KeyError, match="no such key"):
        _fill_and_fail(folder)
    assert [child.name for child in folder.iterdir()] == ["old"]
    assert [child.name for child in tmp_path.iterdir()] == ["0"]


def _fill_and_fail(folder: Path) -> None:
    with whole_folder(folder) as temporary:
        (temporary / "new").touch()
        raise KeyError("no such key")


_WRITE_FOREVER = """
    import sys
    import torch
    from pathlib import Path
    from overhaul.core import whole_folder, write_state, write_text
    folder = Path(sys.argv[1])
    number = 0
    while True:
        number += 1
        write_text(folder / "number.txt", f"{number} " * 2000)
        with whole_folder(folder / "state") as temporary:
            write_state(temporary, {"number": torch.full((20_000,), number), "same": number})
        print(number, flush=True)
"""


@pytest.mark.parametrize("after_lines", [1, 6])
def test_a_killed_process_leaves_whole_files(tmp_path: Path, after_lines: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", dedent(_WRITE_FOREVER), str(tmp_path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        for _ in range(after_lines):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    numbers = set((tmp_path / "number.txt").read_text().split())
    assert len(numbers) == 1
    if (tmp_path / "state").exists():  # between two renames there is none, which is not half of one
        state = read_state(tmp_path / "state")
        assert bool((state["number"] == state["same"]).all())
    remove_leftovers(tmp_path)
    assert {child.name for child in tmp_path.iterdir()} <= {"number.txt", "state"}


def write_without_room(folder: Path, prepare: str) -> str:
    """Return what a fresh process says that writes more than there is room for."""
    program = f"""
        import resource, sys, torch
        from pathlib import Path
        from overhaul.core import RunFolderError, whole_folder, write_state, write_text
        folder = Path(sys.argv[1])
        {prepare}
        try:
            write_text(folder / "a.txt", "a" * 300_000)
        except RunFolderError as error:
            print(error)
        try:
            with whole_folder(folder / "state") as temporary:
                write_state(temporary, {{"weights": torch.zeros(75_000)}})
        except RunFolderError as error:
            print(error)
    """
    run = subprocess.run(
        [sys.executable, "-c", dedent(program), str(folder)],
        capture_output=True,
        text=True,
        check=True,
    )
    return run.stdout


def test_a_full_disk_is_explained_and_nothing_is_left(tiny_disk: Path) -> None:
    said = write_without_room(tiny_disk, "")
    assert said.count("the disk is full") == 2
    assert list(tiny_disk.iterdir()) == []


def test_a_file_beyond_the_limit_is_explained_and_nothing_is_left(tmp_path: Path) -> None:
    limit = "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))"
    said = write_without_room(tmp_path, limit)
    assert said.count("cannot be written: File too large") == 2
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def tiny_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A disk of 256 KiB, or a visible skip where this user may not mount one."""
    folder = tmp_path_factory.mktemp("disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        mounted = subprocess.run(mount, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a tiny disk can be mounted by root only, and not in every container")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_leftovers_are_removed_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a" / ".tmp-one" / ".tmp-inner").mkdir(parents=True)
    (tmp_path / "a" / ".tmp-two").touch()
    (tmp_path / "a" / "kept.tmp").touch()
    (tmp_path / ".lock").touch()
    remove_leftovers(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {
        "a",
        "a/kept.tmp",
        ".lock",
    }


def test_the_hash_of_a_file_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert file_hash(tmp_path / "a").startswith("ba7816bf8f01cfea414140de5dae2223")


def test_only_the_latest_checkpoint_is_kept(tmp_path: Path) -> None:
    checkpoints = CheckpointFolder(tmp_path / "0.unfinished")
    assert checkpoints.latest() is None
    for epoch in (8, 9, 10):
        checkpoints.save(epoch, {"epoch": epoch})
        assert checkpoints.latest() == {"epoch": epoch}
    assert [child.name for child in checkpoints.path.iterdir()] == ["10"]


def test_a_part_has_checkpoints_of_its_own(tmp_path: Path) -> None:
    whole = CheckpointFolder(tmp_path)
    whole.part("training").save(3, {"epoch": 3})
    assert whole.latest() is None
    assert whole.part("training").latest() == {"epoch": 3}


def test_a_reader_writes_no_checkpoint(tmp_path: Path) -> None:
    reader = CheckpointFolder(tmp_path, writable=False)
    reader.save(1, {"epoch": 1})
    reader.part("training").save(1, {"epoch": 1})
    assert list(tmp_path.iterdir()) == []
