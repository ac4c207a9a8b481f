"""`SharedTrunk` and `SeparateTrunks`: one head for each task, on one trunk or on a copy each."""

import threading
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from overhaul.core import ModelError


class SharedTrunk(nn.Module):
    """One trunk with a head for each task.

    Args:
        trunk: A model; what it returns is not used.
        path: Which module of it has the output that the heads get.
        channels: Which dimension of that output holds the channels; the others are averaged.
        heads: What turns `[B, C]` into the outputs of each task.

    Shapes: output of the module `[B, C]`, or `[B, ...]` with the channels in `channels`.

    Example:
        >>> import torch
        >>> trunk = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> model = SharedTrunk(trunk, "0", 1, {"a": nn.Linear(4, 2), "b": nn.Linear(4, 5)})
        >>> {name: tuple(output.shape) for name, output in model(torch.zeros(7, 3)).items()}
        {'a': (7, 2), 'b': (7, 5)}
    """

    def __init__(
        self, trunk: nn.Module, path: str, channels: int, heads: Mapping[str, nn.Module]
    ) -> None:
        """Take trunk and heads as they are."""
        super().__init__()
        self.path, self.channels = path, channels
        self.trunk = trunk
        self.heads = nn.ModuleDict(heads)

    def forward(self, *inputs: Any, **named_inputs: Any) -> dict[str, Tensor]:
        """Run the trunk once and every head on it."""
        output = trunk_output(self.trunk, self.path, inputs, named_inputs)
        features_BC = averaged(output, self.channels)
        return {name: head(features_BC) for name, head in self.heads.items()}

    def extra_repr(self) -> str:
        """Say what is shared."""
        return f"path={self.path!r}, channels={self.channels}"


class SeparateTrunks(nn.Module):
    """A copy of the trunk with a head for each task: nothing is shared.

    Args:
        trunk: A model; what it returns is not used. Each task gets a copy.
        path: Which module of it has the output that the heads get.
        channels: Which dimension of that output holds the channels; the others are averaged.
        heads: What turns `[B, C]` into the outputs of each task.

    Example:
        >>> trunk = nn.Sequential(nn.Linear(3, 4), nn.ReLU())
        >>> model = SeparateTrunks(trunk, "0", 1, {"a": nn.Linear(4, 2), "b": nn.Linear(4, 5)})
        >>> [name for name, _ in model.named_parameters() if name.endswith("weight")]
        ['trunks.a.0.weight', 'trunks.b.0.weight', 'heads.a.weight', 'heads.b.weight']
    """

    def __init__(
        self, trunk: nn.Module, path: str, channels: int, heads: Mapping[str, nn.Module]
    ) -> None:
        """Take the heads as they are and copy the trunk for each."""
        super().__init__()
        self.path, self.channels = path, channels
        self.trunks = nn.ModuleDict({name: deepcopy(trunk) for name in heads})
        self.heads = nn.ModuleDict(heads)

    def forward(self, *inputs: Any, **named_inputs: Any) -> dict[str, Tensor]:
        """Run each trunk with its head."""
        return {
            name: head(
                averaged(
                    trunk_output(self.trunks[name], self.path, inputs, named_inputs), self.channels
                )
            )
            for name, head in self.heads.items()
        }

    def extra_repr(self) -> str:
        """Say what each task has of its own."""
        return f"path={self.path!r}, channels={self.channels}"


class Skipped(nn.Module):
    """In the place of a layer that is not needed: returns its first input, and has no weights."""

    def forward(self, *inputs: Any, **named_inputs: Any) -> Any:
        """Return the first input."""
        return next(iter((*inputs, *named_inputs.values())))


def trunk_output(
    model: nn.Module, path: str, inputs: tuple[Any, ...], named_inputs: Mapping[str, Any]
) -> Tensor:
    """Run the model and return what the module at `path` returned; of a tuple, the first tensor.

    It is a copy, since what follows in the user's forward pass may write into the tensor itself.

    Raises:
        ModelError: the module did not run, or returned no tensor.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Identity(), nn.ReLU(inplace=True))
        >>> trunk_output(model, "0", (torch.tensor([-1.0, 2.0]),), {})
        tensor([-1.,  2.])
    """
    found: list[Tensor] = []
    caller = threading.get_ident()

    def keep(module: nn.Module, args: object, output: object) -> None:
        # Another thread may be running the same model.
        if threading.get_ident() == caller:
            found.append(first_tensor(output, path).clone())

    handle = model.get_submodule(path).register_forward_hook(keep)
    try:
        model(*inputs, **named_inputs)
    finally:
        handle.remove()
    if not found:
        raise ModelError(
            f"the forward pass did not come to '{path}' on these inputs, so there is nothing for "
            "the heads. Share a module that runs whatever the inputs are."
        )
    return found[0]


def first_tensor(output: object, path: str) -> Tensor:
    """Return a tensor, or the first element of a tuple if that is one.

    Raises:
        ModelError: it is neither.
    """
    first = output[0] if isinstance(output, tuple | list) and output else output
    if not isinstance(first, Tensor):
        raise ModelError(
            f"'{path}' must return a tensor, or a tuple that begins with one, got "
            f"{type(output).__name__}. Name a module inside or after it that does."
        )
    return first


def averaged(output: Tensor, channels: int) -> Tensor:
    """Average over every dimension but the samples and the channels: `[B, ...]` to `[B, C]`.

    Example:
        >>> import torch
        >>> averaged(torch.ones(2, 5, 4, 3), channels=3).shape
        torch.Size([2, 3])
    """
    return output if output.ndim == 2 else output.movedim(channels, 1).flatten(2).mean(2)
