"""`NewHeads`: what `AddHeads` does to the structure of a model, as data."""

from typing import Literal

import torch
from torch import nn

from overhaul.core import Edit, replace_module_
from overhaul.multitask._shared_trunk import SeparateTrunks, SharedTrunk, Skipped


class NewHeads(Edit):
    """A fresh linear head for each task on the output of one module of the model.

    Args:
        trunk: Path of that module.
        outputs: How many outputs the head of each task has.
        features: How many channels the output of the module has.
        channels: Which dimension of it they are.
        removed: Paths of the layers that are not needed any more.
        shared: Whether the tasks share the trunk, or each has a copy.
        dtype: The type of the heads.

    Example:
        >>> NewHeads(trunk="conv", outputs={"digit": 10}, features=8, removed=("fc",))
        NewHeads(trunk='conv', outputs={'digit': 10}, features=8, removed=('fc',))
    """

    trunk: str
    outputs: dict[str, int]
    features: int
    channels: int = 1
    removed: tuple[str, ...] = ()
    shared: bool = True
    dtype: Literal["float16", "bfloat16", "float32", "float64"] = "float32"

    def apply(self, model: nn.Module) -> nn.Module:
        """Return the model as a trunk with heads, on its device."""
        device = next((parameter.device for parameter in model.parameters()), None)
        heads = {name: nn.Linear(self.features, size) for name, size in self.outputs.items()}
        for path in self.removed:
            old = model.get_submodule(path)
            replace_module_(model, path, Skipped().train(old.training))
        kind = SharedTrunk if self.shared else SeparateTrunks
        edited = kind(model, self.trunk, self.channels, heads)
        edited.heads.to(device=device, dtype=getattr(torch, self.dtype)).train(model.training)
        edited.training = model.training
        if not self.shared:
            edited.get_submodule("trunks").training = model.training
        return edited

    def rename(self, name: str) -> str | None:
        """Return the new name of a parameter or module of the trunk; None if it is gone."""
        if any(f"{name}.".startswith(f"{path}.") for path in self.removed):
            return None
        return f"trunk.{name}" if name else "trunk"
