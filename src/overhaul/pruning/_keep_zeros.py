"""`KeepZeros`: what is zero stays zero."""

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn

from overhaul.core import Context, ModelError, nearest
from overhaul.training import BoundConstraint, Constraint


class KeepZeros(Constraint):
    r"""Weights that are zero when a training starts are zero after each of its steps.

    .. math:: w \leftarrow w \odot [w_0 \neq 0]

    The mask is the weight itself, so nothing besides the weight is stored.

    Args:
        parameters: Names of the parameters that are held.

    Example:
        >>> KeepZeros(parameters=("fc.weight",))
        KeepZeros(parameters=('fc.weight',))

    Paper: Han et al., NeurIPS 2015, section 3.3.
    """

    parameters: tuple[str, ...]

    def bind(self, model: nn.Module, ctx: Context) -> BoundConstraint:
        """Take the masks from the weights as they are now."""
        own = dict(model.named_parameters())
        for name in self.parameters:
            if name not in own:
                raise ModelError(f"KeepZeros: the model has no '{name}'. {nearest(name, own)}")
        return _Masks([own[name] for name in self.parameters])

    def renamed(self, rename: Callable[[str], str | None]) -> Self | None:
        """Follow the parameters to their new names."""
        names = tuple(name for old in self.parameters if (name := rename(old)) is not None)
        return self.model_copy(update={"parameters": names}) if names else None


class _Masks(BoundConstraint):
    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.held: list[tuple[nn.Parameter, Tensor]] = [(p, p.detach() == 0) for p in parameters]

    @torch.no_grad()
    def project_(self) -> None:
        for parameter, zeros in self.held:
            parameter.masked_fill_(zeros, 0)
