"""A network that is given as data: read from a factory, built and checked before any work."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from overhaul.core import ModelError, Network, SpecError, Splits, Task, check_model_fits


def network_of(value: Any) -> Any:
    """Return a factory as a `Network`, and so what a recipe file says of one; else the value."""
    if isinstance(value, nn.Module):
        raise SpecError(
            f"a network is given here by how it is made, got one ({type(value).__name__}). Give "
            "the function or class that builds it, or Network(factory=..., weights=...)."
        )
    if isinstance(value, Mapping) and list(value) == [Network.spec_name()]:
        # Here and not by the union of the field, whose other members would be in the error.
        return Network.from_data(value)
    return Network(factory=value) if callable(value) else value


def built_to_fit(network: Network, whose: str, task: Task, data: Splits) -> nn.Module:
    """Build the network and see that its outputs fit the task.

    Args:
        network: What to build.
        whose: What it is called in an error: `the student of DistillInto`.
        task: What its outputs are for.
        data: Two samples of `train` are run through it.

    Raises:
        ModelError: it does not fit.
    """
    model = network.build()
    problem = check_model_fits(task, model, next(data.train.in_order(2)))
    if problem is not None:
        raise ModelError(f"{whose} does not fit the task: {problem}")
    return model
