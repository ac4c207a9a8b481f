"""The run folder: what a run leaves on disk, readable without Overhaul."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from torch import Tensor, nn

from overhaul.core._edit import Carried, Edit
from overhaul.core._facts import Fact
from overhaul.core._store import (
    CheckpointFolder,
    explained,
    read_state,
    remove_leftovers,
    whole_folder,
    write_state,
    write_tensors,
    write_text,
)
from overhaul.runtime import CorruptedFileError, RunFolderError


@dataclass(frozen=True)
class StepState:
    """All that is kept of a finished step.

    Attributes:
        key: Hash of everything that came before it and of the step itself.
        label: `1 train`.
        tensors: Every parameter and buffer of the model after it.
        trainable: Names of the parameters that require a gradient.
        edits: Structural edits since the original.
        carried: What it left for later training to keep.
        facts: What it found.
    """

    key: str
    label: str
    tensors: Mapping[str, Tensor]
    trainable: tuple[str, ...]
    edits: tuple[Edit, ...]
    carried: tuple[Carried, ...]
    facts: tuple[Fact, ...]


class RunFolder:
    """A run on disk: `recipe.yaml`, `manifest.json`, `facts.jsonl`, `steps/N/`, `artifact/`."""

    def __init__(self, path: Path | str, *, writable: bool = True) -> None:
        """Use `path`, which need not exist; `writable=False` reads only."""
        self.path = Path(path)
        self.writable = writable

    @property
    def artifact(self) -> Path:
        """Where the deployed model is."""
        return self.path / "artifact"

    def child(self, name: str) -> "RunFolder":
        """Return the folder of a run that belongs to this one, such as its control."""
        return RunFolder(self.path / name, writable=self.writable)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep every other run out of the folder for a block.

        Raises:
            RunFolderError: another run is in it, or it holds something else than a run.
        """
        if not self.writable:
            yield
            return
        self._check_is_ours()
        with explained(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock")
        try:
            with lock.acquire(timeout=0):
                remove_leftovers(self.path)
                yield
        except Timeout:
            raise RunFolderError(
                f"another run is at work in '{self.path}'. Wait for it to end, or choose another "
                "output folder."
            ) from None

    @property
    def at_work(self) -> bool:
        """Whether a run is at work in the folder now."""
        lock = self.path / ".lock"
        try:
            # A lock file that is not there must not be made: looking leaves no trace.
            if lock.is_file():
                with FileLock(lock).acquire(timeout=0):
                    return False
        except Timeout:
            return True
        except OSError:
            return False
        return False

    def _check_is_ours(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise RunFolderError(
                f"'{self.path}' is a file, and a run needs a folder. Choose another name."
            )
        if self.path.is_dir():
            names = {child.name for child in self.path.iterdir()}
            # A run that was killed before its first file was whole left these and nothing else.
            foreign = {name for name in names if name != ".lock" and not name.startswith(".tmp-")}
            if foreign and "manifest.json" not in names:
                raise RunFolderError(
                    f"'{self.path}' holds something else than a run (no manifest.json in it). "
                    "Choose an empty or new folder."
                )

    def manifest(self) -> dict[str, Any]:
        """Return what the manifest says; empty before the first run."""
        path = self.path / "manifest.json"
        if not path.exists():
            return {}
        try:
            manifest: dict[str, Any] = json.loads(path.read_text("utf-8"))
        except ValueError as error:
            raise CorruptedFileError(f"'{path}' is corrupted: {error}.") from error
        return manifest

    def update_manifest(self, **entries: Any) -> None:
        """Set entries of the manifest."""
        if self.writable:
            merged = {**self.manifest(), **entries}
            write_text(self.path / "manifest.json", json.dumps(merged, indent=2) + "\n")

    def count_test_opening(self, key: str) -> int:
        """Record that the test split is opened, and return for how many things it has been.

        Call it before the split is read, so that no opening goes uncounted. One that was cut off
        and is done again for the same thing shows nothing new and counts once.

        Args:
            key: The key of what is judged.
        """
        openings = list(dict.fromkeys([*self.manifest().get("test_openings", []), key]))
        self.update_manifest(test_openings=openings, test_opened=len(openings))
        return len(openings)

    def write_facts(self, facts: list[Fact]) -> None:
        """Write all facts of the run, one a line."""
        if self.writable:
            text = "".join(fact.to_json() + "\n" for fact in facts)
            write_text(self.path / "facts.jsonl", text)

    def facts(self) -> list[Fact]:
        """Return the facts of the run.

        Raises:
            CorruptedFileError: a line is not a fact.
        """
        path = self.path / "facts.jsonl"
        if not path.exists():
            return []
        try:
            # Not `splitlines`: JSON leaves some of the characters that it splits at as they are.
            lines = path.read_text("utf-8").split("\n")
            return [Fact.model_validate_json(line) for line in lines if line]
        except ValueError as error:
            raise CorruptedFileError(f"'{path}' is corrupted: {error}.") from error

    def save_stage(self, name: str, key: str, facts: list[Fact]) -> None:
        """Save what a stage of the run besides its steps found."""
        if self.writable:
            data = [fact.model_dump(mode="json", exclude_defaults=True) for fact in facts]
            text = json.dumps({"key": key, "facts": data}, indent=1)
            write_text(self.path / "stages" / f"{name}.json", text + "\n")

    def load_stage(self, name: str, key: str) -> list[Fact] | None:
        """Return what a stage found, if it was made with this key.

        Raises:
            CorruptedFileError: it is there, and it is not what was written.
        """
        path = self.path / "stages" / f"{name}.json"
        if not path.exists():
            return None
        try:
            saved = json.loads(path.read_text("utf-8"))
            facts = [Fact.model_validate(data) for data in saved["facts"]]
        except (ValueError, KeyError, TypeError) as error:
            raise CorruptedFileError(
                f"'{path}' is corrupted: {error}. Delete it to have it made again."
            ) from error
        return facts if saved["key"] == key else None

    def checkpoints(self, index: int) -> CheckpointFolder:
        """Return where the unfinished step `index` keeps its checkpoints."""
        return CheckpointFolder(self.path / "steps" / f"{index}.unfinished", writable=self.writable)

    def save_step(self, index: int, state: StepState) -> None:
        """Save a finished step and forget its checkpoints."""
        if not self.writable:
            return
        tree = {
            "key": state.key,
            "label": state.label,
            "tensors": dict(state.tensors),
            "trainable": list(state.trainable),
            "edits": [edit.to_data() for edit in state.edits],
            "carried": [item.to_data() for item in state.carried],
            "facts": [fact.model_dump(mode="json", exclude_defaults=True) for fact in state.facts],
        }
        with whole_folder(self.path / "steps" / str(index)) as folder:
            write_state(folder, tree)
        shutil.rmtree(self.checkpoints(index).path, ignore_errors=True)
        for other in (self.path / "steps").iterdir():
            number = other.name.partition(".")[0]
            if number.isdigit() and int(number) > index:
                shutil.rmtree(other)

    def save_weights(self, model: nn.Module) -> None:
        """Save the state dict of the finished model, for `load_state_dict` anywhere."""
        if self.writable:
            tensors = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
            write_tensors(self.path / "weights.safetensors", tensors)

    def last_step(self) -> StepState:
        """Return the last step of a finished run, whatever its key.

        Raises:
            RunFolderError: there is no finished run here.
            CorruptedFileError: it is there, and it is not what was written.
        """
        steps = self.manifest().get("steps")
        if steps is None:
            raise RunFolderError(
                f"'{self.path}' holds no finished run. Start the line that began it again."
            )
        return _read_step(self.path / "steps" / str(steps - 1))

    def load_step(self, index: int, key: str) -> StepState | None:
        """Return the finished step `index` if it was made with this key.

        Raises:
            CorruptedFileError: it is there, and it is not what was written.
        """
        folder = self.path / "steps" / str(index)
        if not folder.exists():
            return None
        state = _read_step(folder)
        return state if state.key == key else None

    def drop_checkpoints_unless(self, index: int, key: str) -> None:
        """Forget checkpoints of step `index` that another recipe, model or data set made."""
        if not self.writable:
            return
        folder = self.checkpoints(index).path
        marker = folder / "key.txt"
        if folder.exists() and (not marker.exists() or marker.read_text("utf-8") != key):
            shutil.rmtree(folder)
        write_text(marker, key)


def _read_step(folder: Path) -> StepState:
    tree = read_state(folder)
    return StepState(
        key=tree["key"],
        label=tree["label"],
        tensors=tree["tensors"],
        trainable=tuple(tree["trainable"]),
        edits=tuple(Edit.from_data(data) for data in tree["edits"]),
        carried=tuple(Carried.from_data(data) for data in tree["carried"]),
        facts=tuple(Fact.model_validate(data) for data in tree["facts"]),
    )
