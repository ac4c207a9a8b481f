"""`ReplaceByIdentity`: a layer hands on its input."""

from typing import Any, Literal

from pydantic import Field
from torch import nn

from overhaul.core import Edit, ModelError, nearest, replace_module_


class HandsOn(nn.Module):
    """Returns its first input, alone or as the first of several outputs.

    Plain settings of the layer that it stands for (`attention_type`, `num_heads`) can still be
    read, since the program around it may do so.
    """

    def __init__(
        self, old: nn.Module, form: Literal["tensor", "tuple", "list"], outputs: int
    ) -> None:
        """Stand for `old`."""
        super().__init__()
        for name, value in vars(old).items():
            if not name.startswith("_") and isinstance(value, str | int | float):
                setattr(self, name, value)
        self.form = form
        self.outputs = outputs

    def forward(self, *inputs: Any, **named_inputs: Any) -> Any:
        """Return the first input; further outputs are None."""
        first = inputs[0] if inputs else next(iter(named_inputs.values()))
        if self.form == "tensor":
            return first
        several = [first, *[None] * (self.outputs - 1)]
        return several if self.form == "list" else tuple(several)

    def extra_repr(self) -> str:
        """Say what is returned."""
        return "" if self.form == "tensor" else f"{self.form} of {self.outputs}"


class ReplaceByIdentity(Edit):
    """A layer is taken out: in its place, what went in comes out.

    Args:
        path: Where the layer is.
        form: What it returned: a `tensor`, or a `tuple` or `list` whose first element is one.
        outputs: How many elements that had; those after the first become None.

    Raises:
        ModelError: there is no such layer.

    Example:
        >>> edit = ReplaceByIdentity(path="1")
        >>> edit.apply(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))
        Sequential(
          (0): Linear(in_features=2, out_features=2, bias=True)
          (1): HandsOn()
        )
    """

    path: str
    form: Literal["tensor", "tuple", "list"] = "tensor"
    outputs: int = Field(default=1, ge=1, description="How many elements the tuple or list had.")

    def apply(self, model: nn.Module) -> nn.Module:
        """Replace the layer."""
        known = dict(model.named_modules())
        if not self.path or self.path not in known:
            raise ModelError(f"there is no layer '{self.path}'. {nearest(self.path, known)}")
        old = known[self.path]
        new = HandsOn(old, self.form, self.outputs).train(old.training)
        replace_module_(model, self.path, new)
        return model

    def rename(self, name: str) -> str | None:
        """Return None for what was in the layer."""
        return None if name.startswith(f"{self.path}.") else name
