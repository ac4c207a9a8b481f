"""`Frozen`: layers that training does not change."""

from collections.abc import Callable
from typing import Self

from torch import nn

from overhaul.core import Context
from overhaul.training import BoundConstraint, Constraint


class Frozen(Constraint):
    """These modules do not change in training: neither weights nor statistics, and no dropout.

    Their parameters require no gradient, and they are in evaluation mode while the rest trains; so
    BatchNorm keeps its running statistics and dropout is off.

    Args:
        modules: Paths of the modules that are kept in evaluation mode.
        parameters: Names of the parameters that require no gradient.

    Example:
        >>> Frozen(modules=("bn",), parameters=("bn.weight", "bn.bias"))
        Frozen(modules=('bn',), parameters=('bn.weight', 'bn.bias'))
    """

    modules: tuple[str, ...]
    parameters: tuple[str, ...]

    def bind(self, model: nn.Module, ctx: Context) -> BoundConstraint:
        """Turn the gradients off and hold the modules."""
        for name in self.parameters:
            model.get_parameter(name).requires_grad_(False)
        return _HeldInEvaluation([model.get_submodule(path) for path in self.modules])

    def renamed(self, rename: Callable[[str], str | None]) -> Self | None:
        """Follow modules and parameters to their new names."""
        modules = tuple(new for old in self.modules if (new := rename(old)) is not None)
        parameters = tuple(new for old in self.parameters if (new := rename(old)) is not None)
        if not modules and not parameters:
            return None
        return self.model_copy(update={"modules": modules, "parameters": parameters})


class _HeldInEvaluation(BoundConstraint):
    def __init__(self, modules: list[nn.Module]) -> None:
        self.modules = modules

    def set_mode_(self) -> None:
        for module in self.modules:
            module.training = False
