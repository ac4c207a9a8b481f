"""A training that is killed behind one of its checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

from overhaul.core import CheckpointFolder


class KilledError(Exception):
    """What stands for the end of the process."""


@dataclass
class Killing:
    """Ends a training when it has saved so often.

    Attributes:
        after: Behind which save.
        saved: How many there were while it was armed.
    """

    after: int
    saved: int = 0

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Count saves, and raise `KilledError` behind the one."""
        save = CheckpointFolder.save

        def dies(folder: CheckpointFolder, number: int, tree: Any) -> None:
            save(folder, number, tree)
            self.saved += 1
            if self.saved == self.after:
                raise KilledError

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(CheckpointFolder, "save", dies)
            yield
