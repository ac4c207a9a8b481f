"""`SwapModel`: another network takes the place of the model."""

from pathlib import Path
from typing import Any, ClassVar

from pydantic import Field
from torch import nn

from overhaul.core import (
    Context,
    Edit,
    Factory,
    InputFile,
    ModelError,
    Network,
    Splits,
    Step,
    Task,
    Trait,
    Traits,
    check_model_fits,
    load_weights_,
)


class NewModel(Edit):
    """Another network in the place of the whole model.

    Args:
        factory: What builds it.
        arguments: Keyword arguments of the factory.

    Example:
        >>> NewModel(factory="torch.nn:Linear", arguments={"in_features": 2, "out_features": 1})
        NewModel(factory='torch.nn:Linear', arguments={'in_features': 2, 'out_features': 1})
    """

    factory: Factory
    arguments: dict[str, Any] = {}

    def apply(self, model: nn.Module) -> nn.Module:
        """Build the new network; nothing is left of the old one."""
        return Network(factory=self.factory, arguments=self.arguments).build()

    def rename(self, name: str) -> str | None:
        """Nothing of the old model is left."""
        return None


class SwapModel(Step):
    """Put another network, such as a smaller student, in the place of the model.

    Args:
        factory: A function or class that returns the network, or its import path.
        arguments: Keyword arguments for the factory.
        weights: A file of weights to start from; None starts from what the factory initializes.

    Raises:
        ModelError: the network's outputs do not fit the task, or the weights do not fit it.

    Example:
        >>> SwapModel(factory="overhaul.testing:tiny_cnn", arguments={"width": 3})
        SwapModel(factory='overhaul.testing:tiny_cnn', arguments={'width': 3})

    Paper: Bucila, Caruana and Niculescu-Mizil, KDD 2006.
    """

    gives: ClassVar[Traits] = frozenset({Trait.FITS_TASK, Trait.TRAINABLE})

    factory: Factory
    arguments: dict[str, Any] = Field(default={}, description="Keyword arguments of the factory.")
    weights: InputFile | None = Field(default=None, description="A .safetensors, .pt or .pth file.")

    def preflight(self, original: nn.Module, task: Task, data: Splits) -> None:
        """Build the network once and see that it fits the task."""
        network = Network(factory=self.factory, arguments=self.arguments, weights=self.weights)
        problem = check_model_fits(task, network.build(), next(data.train.in_order(2)))
        if problem is not None:
            raise ModelError(f"the network of SwapModel does not fit the task: {problem}")

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Return the new network."""
        device = next(model.parameters()).device
        new = ctx.edit(model, NewModel(factory=self.factory, arguments=self.arguments))
        if self.weights is not None:
            load_weights_(new, Path(self.weights))
        return new.to(device).train(model.training)

    def control(self) -> Step:
        """Return this step: the control of a student is the same student trained alone."""
        return self
