"""`QuantizationRepair`: what makes up for the rounding."""

from abc import ABC
from collections.abc import Sequence

from torch import nn

from overhaul.core import Batch, Context, Spec
from overhaul.quantization._plan import Plan


class QuantizationRepair(Spec, ABC):
    """What makes up for the rounding, without labels and without training.

    A new one is a subclass in a file of its own; it does its work before the integers are
    written, after it, or both. The batches are training samples, those that the ranges of
    activations come from.
    """

    def prepare_(
        self, model: nn.Module, plan: Plan, batches: Sequence[Batch], ctx: Context
    ) -> None:
        """Change real weights so that they lose less, and the model computes the same."""

    def finish_(
        self,
        model: nn.Module,
        quantized: nn.Module,
        plan: Plan,
        batches: Sequence[Batch],
        ctx: Context,
    ) -> None:
        """Change the integers, scales or biases of the quantized model.

        Args:
            model: With the real numbers, as `prepare_` left it; not changed.
            quantized: The same with integers.
            plan: Which of its tensors are integers.
            batches: Training samples.
            ctx: For facts and random numbers.
        """
