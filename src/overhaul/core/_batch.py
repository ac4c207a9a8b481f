"""`Batch`: what a model gets and what its outputs are compared with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from overhaul.core._errors import ModelError

Outputs: TypeAlias = Tensor | dict[str, Tensor]
"""What a model returns, unwrapped: one tensor, or one for each named task."""
Targets: TypeAlias = Tensor | dict[str, Tensor]
"""Labels, `[B, ...]`: one tensor, or one for each named task."""


@dataclass(frozen=True)
class Batch:
    """Some samples, whichever way the user's data holds them.

    Attributes:
        inputs: Positional (`model(*inputs)`) or named (`model(**inputs)`) arguments of the model.
        targets: Labels, `[B, ...]`, or one such tensor for each named task.
        indices: `[B]`, the position of each sample in its split.
    """

    inputs: tuple[Any, ...] | dict[str, Any]
    targets: Targets
    indices: Tensor

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.indices)

    @property
    def arguments(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The inputs by position and by name: `args, kwargs`."""
        return ((), self.inputs) if isinstance(self.inputs, dict) else (self.inputs, {})

    def forward(self, model: Callable[..., Any]) -> Outputs:
        """Call the model, or a deployed one, on the inputs and unwrap what it returns."""
        inputs, named_inputs = self.arguments
        return unwrap_outputs(model(*inputs, **named_inputs))

    def map_tensors(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with `function` applied to every tensor of inputs and targets."""
        return replace(
            self, inputs=_map(function, self.inputs), targets=_map(function, self.targets)
        )

    def map_inputs(self, function: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with `function` applied to every tensor of the inputs."""
        return replace(self, inputs=_map(function, self.inputs))

    def to(self, device: torch.device | str) -> "Batch":
        """Return the batch on another device."""
        return self.map_tensors(lambda tensor: tensor.to(device, non_blocking=True))


def unwrap_outputs(outputs: Any) -> Outputs:
    """Return the logits of what a model returned.

    Accepts a tensor, an object or mapping with `logits`, a mapping of tensors by task name, or a
    tuple or list whose first element is one of these.

    Raises:
        ModelError: the model returned none of them.
    """
    if isinstance(outputs, Tensor):
        return outputs
    logits = outputs.get("logits") if isinstance(outputs, Mapping) else None
    if logits is None:
        logits = getattr(outputs, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    if isinstance(outputs, Mapping) and outputs:
        named = {str(name): value for name, value in outputs.items() if isinstance(value, Tensor)}
        if len(named) == len(outputs):
            return named
    if isinstance(outputs, tuple | list) and outputs:
        return unwrap_outputs(outputs[0])
    raise ModelError(
        "the model must return a tensor, an object with `.logits`, or a dict of tensors by task "
        f"name, got {type(outputs).__name__}. Wrap the model in a module that returns its logits."
    )


def _map(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Mapping):
        return {key: _map(function, item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_map(function, item) for item in value)
    return value
