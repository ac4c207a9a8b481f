"""`ReplaceHead`: a new output layer for another task."""

from typing import ClassVar

from pydantic import Field
from torch import nn

from overhaul.core import (
    Context,
    Edit,
    ModelError,
    Step,
    Trait,
    Traits,
    find_head,
    nearest,
    replace_module_,
)


class NewOutputLayer(Edit):
    """A fresh layer of the same kind with another number of outputs.

    Args:
        path: Where the layer is.
        outputs: How many outputs the new one has.

    Example:
        >>> NewOutputLayer(path="fc", outputs=10)
        NewOutputLayer(path='fc', outputs=10)
    """

    path: str
    outputs: int

    def apply(self, model: nn.Module) -> nn.Module:
        """Put the new layer in place of the old one, on its device and in its type."""
        old = model.get_submodule(self.path)
        new: nn.Module
        if isinstance(old, nn.Linear):
            new = nn.Linear(old.in_features, self.outputs, bias=old.bias is not None)
        elif isinstance(old, nn.Conv2d):
            new = nn.Conv2d(
                old.in_channels,
                self.outputs,
                old.kernel_size,  # type: ignore[arg-type]
                old.stride,  # type: ignore[arg-type]
                old.padding,  # type: ignore[arg-type]
                bias=old.bias is not None,
            )
        else:
            raise ModelError(
                f"the head must be a Linear or a Conv2d, and '{self.path}' is a "
                f"{type(old).__name__}."
            )
        new.to(old.weight).train(old.training)
        replace_module_(model, self.path, new)
        return model


class ReplaceHead(Step):
    """Put a freshly initialized output layer in place of the last one.

    Args:
        outputs: How many outputs; None takes what the task needs.
        head: Path of the layer; None finds the layer whose output is what the model returns.

    Raises:
        ModelError: the head cannot be found, or is neither a Linear nor a Conv2d.

    Example:
        >>> ReplaceHead()
        ReplaceHead()
        >>> ReplaceHead(outputs=10, head="classifier.1")
        ReplaceHead(outputs=10, head='classifier.1')

    Paper: Donahue et al., ICML 2014.
    """

    gives: ClassVar[Traits] = frozenset({Trait.FITS_TASK, Trait.TRAINABLE})

    outputs: int | None = Field(default=None, ge=1, description="None takes what the task needs.")
    head: str | None = None

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Replace the layer."""
        batch = next(ctx.data.train.in_order(2))
        path = self.head or find_head(model, batch)
        if path not in dict(model.named_modules()):
            paths = [name for name, _ in model.named_modules() if name]
            raise ModelError(f"`head` '{path}' is not in the model. {nearest(path, paths)}")
        outputs = self.outputs or ctx.task.output_size(ctx.data)
        ctx.log("head", path, detail={"outputs": outputs})
        return ctx.edit(model, NewOutputLayer(path=path, outputs=outputs))

    def control(self) -> Step:
        """Return this step: the control needs a head that fits the task as well."""
        return self
