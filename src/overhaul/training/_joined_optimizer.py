"""`joined`: the optimizers of several networks as one."""

from collections.abc import Sequence
from typing import Any

import torch


def joined(optimizers: Sequence[torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """Return an optimizer whose step is the step of each; the only one as it is.

    So a loss scale is taken off and changed once for all of them.

    Example:
        >>> layers = [torch.nn.Linear(1, 1), torch.nn.Linear(1, 1)]
        >>> both = joined([torch.optim.SGD(layer.parameters(), lr=0.1) for layer in layers])
        >>> len(both.param_groups)
        2
    """
    return optimizers[0] if len(optimizers) == 1 else _Joined(optimizers)


class _Joined(torch.optim.Optimizer):
    def __init__(self, parts: Sequence[torch.optim.Optimizer]) -> None:
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._parts = parts

    def step(self, closure: Any = None) -> Any:
        for part in self._parts:
            part.step(closure)

    def state_dict(self) -> dict[str, Any]:
        return {"parts": [part.state_dict() for part in self._parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for part, state in zip(self._parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self._parts for group in part.param_groups]
