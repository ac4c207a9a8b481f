"""Writing that is never half done: every file and folder appears whole or not at all."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from overhaul.runtime import CorruptedFileError, RunFolderError, file_hash

_TENSORS, _STATE = "tensors.safetensors", "state.json"
_MARK = "$tensor"
_NOT_WRITABLE = {
    *(errno.EACCES, errno.EROFS, errno.EPERM, errno.EFBIG, errno.ENOTDIR, errno.ENOENT),
    *(errno.EEXIST, errno.ENAMETOOLONG),
}


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say what to do when the disk refuses to take `path`."""
    try:
        yield
    except OSError as error:
        meant = Path(*(part for part in path.parts if not part.startswith(".tmp-")))
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RunFolderError(
                f"the disk is full: '{meant}' could not be written. What was finished before is "
                "kept; free some space and start the same line again."
            ) from error
        if error.errno in _NOT_WRITABLE:
            raise RunFolderError(
                f"'{meant}' cannot be written: {error.strerror}. Choose another folder to write to."
            ) from error
        raise


def sync_folder(folder: Path) -> None:
    """Make renames in this folder survive a loss of power."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    """Make the content of this file survive a loss of power."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _whole_file(path: Path) -> Iterator[Path]:
    """Give a temporary name for a file that takes the place of `path` when the block ends well."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=".tmp-", dir=path.parent)
        os.close(descriptor)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            sync_file(temporary)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a text file as a whole: under a temporary name, synced, renamed."""
    with _whole_file(path) as temporary:
        temporary.write_text(text, "utf-8")


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Replace a safetensors file as a whole; a tensor with several names is written under each."""
    with _whole_file(path) as temporary:
        _save_tensors({name: _detached(tensor) for name, tensor in tensors.items()}, temporary)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder that takes the place of `path` when the block ends well."""
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=path.parent))
        temporary.chmod(0o755)
        try:
            yield temporary
            for child in temporary.rglob("*"):
                if child.is_dir():
                    sync_folder(child)
                else:
                    sync_file(child)
            sync_folder(temporary)
            if path.exists():
                doomed = Path(tempfile.mkdtemp(prefix=".tmp-", dir=path.parent))
                os.replace(path, doomed)
                os.replace(temporary, path)
                shutil.rmtree(doomed)
            else:
                os.replace(temporary, path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        sync_folder(path.parent)


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left under temporary names."""
    for leftover in list(folder.rglob(".tmp-*")):
        if leftover.is_dir():
            shutil.rmtree(leftover, ignore_errors=True)
        else:
            leftover.unlink(missing_ok=True)


def write_state(folder: Path, tree: Mapping[str, Any]) -> None:
    """Write a tree of dicts, lists, plain values and tensors into a folder, without pickle.

    Args:
        folder: Where to; exists already (see `whole_folder`).
        tree: What to write. Keys are strings or whole numbers.
    """
    tensors: dict[str, Tensor] = {}
    skeleton = _take_tensors(tree, tensors)
    with explained(folder):
        _save_tensors(tensors, folder / _TENSORS)
    state = {
        "tensors_sha256": file_hash(folder / _TENSORS),
        "tree_sha256": _text_hash(json.dumps(skeleton)),
        "tree": skeleton,
    }
    write_text(folder / _STATE, json.dumps(state))


def read_state(folder: Path) -> dict[str, Any]:
    """Read what `write_state` wrote, and check that it is still what was written.

    Raises:
        CorruptedFileError: a file is missing, cut off or changed.
    """
    remedy = f"Delete '{folder}' to have it made again."
    try:
        state = json.loads((folder / _STATE).read_text("utf-8"))
        for file, found, written in (
            (_TENSORS, file_hash(folder / _TENSORS), state["tensors_sha256"]),
            (_STATE, _text_hash(json.dumps(state["tree"])), state["tree_sha256"]),
        ):
            if found != written:
                raise CorruptedFileError(
                    f"'{folder / file}' is corrupted: its SHA-256 is not the one that was written "
                    f"with it. {remedy}"
                )
        tensors = load_file(folder / _TENSORS)
        tree: dict[str, Any] = _put_tensors(state["tree"], tensors)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CorruptedFileError(f"'{folder}' is corrupted: {error}. {remedy}") from error
    return tree


def _text_hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    try:
        save_file(dict(tensors), path)
    except SafetensorError as error:
        # Its own error for a full disk is no OSError; the number is in the text only.
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        code = int(number[1])
        raise OSError(code, os.strerror(code), str(path)) from error


def _detached(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous().clone()


def _take_tensors(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        name = str(len(tensors))
        tensors[name] = _detached(value)
        return {_MARK: name}
    if isinstance(value, Mapping):
        return {
            "$map": [[key, _take_tensors(item, tensors)] for key, item in value.items()],
        }
    if isinstance(value, tuple | list):
        return [_take_tensors(item, tensors) for item in value]
    return value


def _put_tensors(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if _MARK in value:
            return tensors[value[_MARK]]
        return {key: _put_tensors(item, tensors) for key, item in value["$map"]}
    if isinstance(value, list):
        return [_put_tensors(item, tensors) for item in value]
    return value


class CheckpointFolder:
    """The checkpoints of one interrupted step; only the latest is kept.

    A step that takes long saves here after each part of its work and, when it starts, goes on
    from what it finds. The run deletes the folder once the step is finished.
    """

    def __init__(self, path: Path, *, writable: bool = True) -> None:
        """Use `path`; `writable=False` reads only (every process but the first of several)."""
        self._path = path
        self._writable = writable

    def save(self, number: int, tree: Mapping[str, Any]) -> None:
        """Save checkpoint `number` and drop the earlier ones."""
        if not self._writable:
            return
        with whole_folder(self._path / str(number)) as folder:
            write_state(folder, tree)
        for earlier in self._numbers():
            if earlier < number:
                shutil.rmtree(self._path / str(earlier))

    def latest(self) -> dict[str, Any] | None:
        """Return the latest checkpoint, or None if there is none."""
        numbers = self._numbers()
        return read_state(self._path / str(numbers[-1])) if numbers else None

    @property
    def path(self) -> Path:
        """The folder."""
        return self._path

    def part(self, name: str) -> "CheckpointFolder":
        """Return the folder of a part of the step, which is interrupted and goes on for itself."""
        return CheckpointFolder(self._path / name, writable=self._writable)

    def _numbers(self) -> list[int]:
        if not self._path.exists():
            return []
        return sorted(int(child.name) for child in self._path.iterdir() if child.name.isdigit())
