"""Optimizers as data."""

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from pydantic import Field
from torch.nn import Parameter

from overhaul.core import Spec


class Optimizer(Spec, ABC):
    """How gradients change the weights."""

    lr: float

    @abstractmethod
    def build(self, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
        """Return torch's optimizer over the parameters.

        Weight decay applies to parameters of two or more dimensions: not to biases and norms.
        """


def _groups(parameters: Iterable[Parameter], weight_decay: float) -> list[dict[str, object]]:
    every = list(parameters)
    matrices = [parameter for parameter in every if parameter.ndim >= 2]
    vectors = [parameter for parameter in every if parameter.ndim < 2]
    groups: list[dict[str, object]] = [
        {"params": matrices, "weight_decay": weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


class AdamW(Optimizer):
    """Adam with decoupled weight decay.

    Args:
        lr: Learning rate. Default 1e-3.
        weight_decay: Decay of matrices and kernels per step, times `lr`. Default 0.01.
        betas: Decay of the running mean and of the running square. Default (0.9, 0.999).

    Example:
        >>> AdamW(lr=3e-4)
        AdamW(lr=0.0003)

    Paper: Loshchilov and Hutter, ICLR 2019.  Differs: biases and norms are not decayed.
    """

    lr: float = Field(default=1e-3, gt=0, description="Learning rate.")
    weight_decay: float = Field(
        default=0.01, ge=0, description="Decoupled decay of matrices and kernels."
    )
    betas: tuple[float, float] = (0.9, 0.999)

    def build(self, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
        """Return `torch.optim.AdamW`."""
        return torch.optim.AdamW(
            _groups(parameters, self.weight_decay), lr=self.lr, betas=self.betas
        )


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    Args:
        lr: Learning rate. Default 0.1.
        momentum: Default 0.9.
        weight_decay: L2 decay of matrices and kernels. Default 1e-4.
        nesterov: Nesterov's form of momentum. Default True.

    Example:
        >>> SGD(lr=0.01)
        SGD(lr=0.01)

    Paper: Sutskever et al., ICML 2013.  Differs: biases and norms are not decayed.
    """

    lr: float = Field(default=0.1, gt=0, description="Learning rate.")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="Decay of the running gradient.")
    weight_decay: float = Field(default=1e-4, ge=0, description="L2 decay of matrices and kernels.")
    nesterov: bool = True

    def build(self, parameters: Iterable[Parameter]) -> torch.optim.Optimizer:
        """Return `torch.optim.SGD`."""
        return torch.optim.SGD(
            _groups(parameters, self.weight_decay),
            lr=self.lr,
            momentum=self.momentum,
            nesterov=self.nesterov and self.momentum > 0,
        )
