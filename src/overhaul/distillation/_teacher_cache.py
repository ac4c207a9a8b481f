"""`TeacherCache`: what a teacher said of a sample is kept on disk, and not computed again."""

import sqlite3
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from overhaul.core import (
    Batch,
    Context,
    CorruptedFileError,
    RunFolderError,
    Spec,
    model_fingerprint,
)
from overhaul.distillation._seen import Seen, see
from overhaul.evaluation import model_device

_FILE = "teacher_outputs.sqlite"
_SEAL = 8
"""Bytes of the hash behind each output."""


class TeacherCache(Spec):
    """Keep the teacher's outputs on disk, for later epochs and for other trainings.

    The key of an output is a hash of the very inputs that the teacher got, after every
    augmentation and transform, and of the teacher's weights, class, precision and device, and
    torch's version. So an output is found again only for the same numbers: never for another crop
    of the same image. Where augmentations draw anew in each epoch, nothing is found within a
    training; a second training with the same seed (another student, another temperature) sees the
    same draws and finds everything. A fact `teacher_cache` says after each epoch how many were
    found, and why none were.

    Args:
        folder: Where the file is; it is made if it is not there. Several trainings may share it.
        max_bytes: When the file is that large, nothing is added any more. Default 1 GB.

    Raises:
        SpecError: the teacher gives several tensors, or a match needs more than its outputs.
        RunFolderError: the file cannot be written.
        CorruptedFileError: the file, or an output in it, is not what was written.

    Example:
        >>> TeacherCache(folder="runs/teacher")
        TeacherCache(folder='runs/teacher')
    """

    folder: str = Field(min_length=1, description="Where the file is.")
    max_bytes: int = Field(default=2**30, ge=2**16, description="Largest size of the file, bytes.")

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.folder) / _FILE

    def opened(self) -> sqlite3.Connection:
        """Open the file, or make it.

        Raises:
            RunFolderError: it cannot be made or written.
            CorruptedFileError: it is something else.
        """
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            file = sqlite3.connect(self.path, timeout=60, check_same_thread=False)
            # Several trainings may write at once, and none waits for the disk.
            file.execute("PRAGMA journal_mode=WAL")
            file.execute("PRAGMA synchronous=NORMAL")
            with file:
                file.execute(
                    "CREATE TABLE IF NOT EXISTS outputs "
                    "(key BLOB PRIMARY KEY, type TEXT, shape TEXT, value BLOB)"
                )
        except (OSError, sqlite3.OperationalError) as error:
            raise RunFolderError(
                f"the teacher's outputs cannot be kept in '{self.path}': {error}. Choose another "
                "`folder` for the cache, or leave it out."
            ) from error
        except sqlite3.DatabaseError as error:
            raise self.corrupted(str(error)) from error
        return file

    def corrupted(self, reason: str) -> CorruptedFileError:
        """Return the error of a file whose outputs cannot be relied on."""
        return CorruptedFileError(
            f"'{self.path}' is corrupted: {reason}. Delete it to have the teacher's outputs "
            "computed again."
        )


class CachedTeacher:
    """A teacher whose outputs are looked up first.

    Args:
        plan: Where.
        teacher: In evaluation mode; one tensor is what it returns.
        ctx: For the facts.
    """

    def __init__(self, plan: TeacherCache, teacher: nn.Module, ctx: Context) -> None:
        """Open the file, or make it."""
        self.plan, self.teacher, self.ctx = plan, teacher, ctx
        self.path, self.device = plan.path, model_device(teacher)
        self.found = self.asked = 0
        kind = type(teacher)
        self.of = f"{kind.__module__}.{kind.__qualname__} {model_fingerprint(teacher)}"
        self.file = plan.opened()

    def see(self, batch: Batch) -> Seen:
        """Return the outputs for a batch; one missing sample runs all of it."""
        keys = self._keys(batch)
        marks = ",".join("?" * len(keys))
        query = f"SELECT key, type, shape, value FROM outputs WHERE key IN ({marks})"
        try:
            rows = {key: row for key, *row in self.file.execute(query, keys)}
        except sqlite3.DatabaseError as error:
            raise self.plan.corrupted(str(error)) from error
        self.asked += len(keys)
        self.found += sum(key in rows for key in keys)
        if all(key in rows for key in keys):
            return Seen(batch, self._stacked([rows[key] for key in keys]), {})
        seen = see(self.teacher, batch)
        if isinstance(seen.outputs, Tensor) and self._has_room():
            outputs = seen.outputs.detach().cpu()
            about = str(outputs.dtype)[6:], ",".join(map(str, outputs.shape[1:]))
            values = [
                (key, *about, _sealed(_bytes(row))) for key, row in zip(keys, outputs, strict=True)
            ]
            with self.file:
                self.file.executemany("INSERT OR IGNORE INTO outputs VALUES (?, ?, ?, ?)", values)
        return seen

    def log(self, epoch: int) -> None:
        """Log how many outputs were found in this epoch."""
        reason = None
        if not self.found and epoch > 1:
            reason = (
                "no input came a second time: augmentations draw anew in each epoch. A second "
                "training with the same seed would find them"
            )
        self.ctx.log(
            "teacher_cache",
            self.found,
            n=self.asked,
            reason=reason,
            detail={"epoch": epoch, "bytes": self.path.stat().st_size},
            reproducible=False,
        )
        self.found = self.asked = 0

    def _has_room(self) -> bool:
        pages, size = (
            int(self.file.execute(f"PRAGMA {name}").fetchone()[0])
            for name in ("page_count", "page_size")
        )
        return pages * size < self.plan.max_bytes

    def _stacked(self, rows: list[list[Any]]) -> Tensor:
        kind, shape, _ = rows[0]
        values = [value[:-_SEAL] for _, _, value in rows]
        if any(_sealed(value) != row[2] for value, row in zip(values, rows, strict=True)):
            raise self.plan.corrupted("an output is not what was written")
        sizes = [int(size) for size in shape.split(",") if size]
        joined = bytearray(b"".join(values))
        outputs = torch.frombuffer(joined, dtype=getattr(torch, kind)).view(len(rows), *sizes)
        return outputs.to(self.device)

    def _keys(self, batch: Batch) -> list[bytes]:
        leaves = tree_leaves(batch.inputs)
        tensors = [each.cpu().contiguous() for each in leaves if isinstance(each, Tensor)]
        others = [each for each in leaves if not isinstance(each, Tensor)]
        device = self.device.type
        kind = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else "plain"
        shapes = [(tuple(each.shape[1:]), str(each.dtype)) for each in tensors]
        names = list(batch.inputs) if isinstance(batch.inputs, dict) else []
        about = f"{self.of} {torch.__version__} {device} {kind} {shapes} {names} {others}".encode()
        keys = []
        for number in range(len(batch)):
            key = blake2b(about, digest_size=16)
            for each in tensors:
                key.update(_bytes(each[number]))
            keys.append(key.digest())
        return keys


def _bytes(value: Tensor) -> bytes:
    return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def _sealed(value: bytes) -> bytes:
    """Return the bytes with their hash behind them: the file itself has none."""
    return value + blake2b(value, digest_size=_SEAL).digest()
