"""`built_to_fit`: a network that is given as data, built and checked before any work."""

from torch import nn

from overhaul.core import ModelError, Network, Splits, Task, check_model_fits


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
