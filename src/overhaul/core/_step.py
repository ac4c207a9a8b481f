"""`Step`: one verb, as data."""

from abc import ABC, abstractmethod
from typing import ClassVar

from torch import nn

from overhaul.core._context import Context
from overhaul.core._errors import OrderError
from overhaul.core._names import concrete_subclasses
from overhaul.core._spec import Spec
from overhaul.core._task import Splits, Task
from overhaul.core._traits import NEED, Trait, Traits


class Step(Spec, ABC):
    """One thing to do to a model.

    A step is a frozen description: it prints as the code that makes it, compares by value, varies
    by `model_copy(update=...)` and round-trips through YAML. What it works on while it runs (data,
    the original model, seed, folder) is in the `Context`.
    """

    needs: ClassVar[Traits] = frozenset({Trait.EDITABLE})
    gives: ClassVar[Traits] = frozenset()
    takes: ClassVar[Traits] = frozenset()

    def check(self, traits: Traits) -> Traits:
        """Return what is true of the model after this step, given what is true before it. Pure.

        Raises:
            OrderError: something that the step needs is not true before it.
        """
        for trait in sorted(self.needs - traits):
            classes = list(concrete_subclasses(_STEP))
            givers = sorted(cls.__name__ for cls in classes if trait in cls.gives)
            own = type(self)
            takers = sorted(c.__name__ for c in classes if trait in c.takes and c is not own)
            remedy = ""
            if givers:
                last = f", or it before {' and '.join(takers)}" if takers else ""
                remedy = f" Put {' or '.join(givers)} before it{last}."
            elif trait in self.takes:
                remedy = " Give it once."
            elif takers:
                remedy = f" Put it before {' and '.join(takers)}."
            raise OrderError(f"{type(self).__name__} needs {NEED[trait]}.{remedy}")
        return (traits - self.takes) | self.gives

    def preflight(self, original: nn.Module, task: Task, data: Splits) -> None:
        """Check, before any step of the run starts, what needs files, packages or data.

        Args:
            original: The model as the user gave it; earlier steps may change it before this one.
            task: Loss and metrics.
            data: Checked and split.
        """

    @abstractmethod
    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Do it.

        Args:
            model: Belongs to the step, which may change it in place.
            ctx: What the run provides. Structural changes go through `ctx.edit`, findings
                through `ctx.log`.

        Returns:
            The changed model, in the training mode and on the device it came in.
        """

    def control(self) -> "Step | None":
        """Return what is left of this step in the control that gets the same training budget.

        The control shows what the training alone would have given: a method drops out (None), a
        training step stays with its plain task loss.
        """
        return None


_STEP: type[Step] = Step  # type: ignore[type-abstract]
