"""`Context`: what a run provides to a step while it runs."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from overhaul.core._edit import Carried, Edit
from overhaul.core._facts import Fact
from overhaul.core._progress import Progress
from overhaul.core._random import derived_seed, seeded
from overhaul.core._store import CheckpointFolder
from overhaul.core._task import Splits, Task


class Deployed(Protocol):
    """A deployed model: called like the model it was made from, torch tensors in and out."""

    def __call__(self, *inputs: Any, **named_inputs: Any) -> Any:
        """Return the outputs."""


@dataclass
class Context:
    """What a run provides to a step while it runs.

    Attributes:
        task: Loss, metrics and the number to choose by.
        data: Training and validation data; the test split is sealed.
        original: The model as the user gave it. Never to be changed.
        checkpoints: Where an interrupted step keeps what it needs to go on.
        artifact_folder: Where a deployed model goes.
        seed: The seed of this run and step.
        label: Which step this is, for facts and progress: `1 train`.
        edits: The structural edits since the original, in order.
        carried: What earlier steps left for training to keep.
        facts: What this step found.
        progress: Where progress is shown.
        deployed: The deployed model, once there is one.
    """

    task: Task
    data: Splits
    original: nn.Module
    checkpoints: CheckpointFolder
    artifact_folder: Path
    seed: int = 0
    label: str = ""
    edits: list[Edit] = field(default_factory=list)
    carried: list[Carried] = field(default_factory=list)
    facts: list[Fact] = field(default_factory=list)
    progress: Progress = field(default_factory=Progress)
    deployed: Deployed | None = None

    def log(self, name: str, value: float | int | str | bool | None, **more: Any) -> Fact:
        """Record a `Fact` about this step; `more` are further fields of it."""
        fact = Fact(name=name, value=value, **{"subject": self.label, **more})
        self.facts.append(fact)
        return fact

    def edit(self, model: nn.Module, edit: Edit) -> nn.Module:
        """Change the structure of the model and record how, so that it can be rebuilt."""
        with seeded(derived_seed(self.seed, "edit", len(self.edits))):
            model = edit.apply(model)
        self.edits.append(edit)
        renamed = (item.renamed(edit.rename) for item in self.carried)
        self.carried = [item for item in renamed if item is not None]
        return model

    def carry(self, item: Carried) -> None:
        """Leave something for later training to keep."""
        self.carried.append(item)

    def generator(self, *purpose: str | int) -> torch.Generator:
        """Return a CPU random generator that depends on the run's seed and the purpose alone."""
        generator = torch.Generator()
        generator.manual_seed(derived_seed(self.seed, *purpose))
        return generator

    @contextmanager
    def seeded(self, *purpose: str | int) -> Iterator[None]:
        """Seed every global random generator for a block, and restore them after it."""
        with seeded(derived_seed(self.seed, *purpose)):
            yield
