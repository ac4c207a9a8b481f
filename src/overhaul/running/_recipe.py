"""`Recipe`: steps in order, and itself a step."""

from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from overhaul.core import Context, OrderError, Progress, SpecError, Step, Task, Traits
from overhaul.evaluation import Goal
from overhaul.running._execute import execute
from overhaul.running._run import Run


class Recipe(Step):
    """Steps in order. A recipe is a step, so recipes nest.

    Args:
        *steps: What to do, in this order.

    Raises:
        SpecError: there is no step.

    Example:
        >>> from overhaul.training import Train
        >>> recipe = Recipe(Train(epochs=2))
        >>> recipe
        Recipe(Train(epochs=2))
        >>> Recipe.from_yaml(recipe.to_yaml()) == recipe
        True
    """

    needs: ClassVar[Traits] = frozenset()
    bare_field: ClassVar[str | None] = "steps"

    steps: tuple[Step, ...]

    def __init__(self, *steps: Step, **fields: Any) -> None:
        """Take the steps in order; `steps=` takes them as one sequence."""
        if steps and "steps" in fields:
            raise SpecError("give the steps one by one or as `steps=`, not both.")
        super().__init__(**({"steps": steps} | fields))
        if not self.steps:
            raise SpecError("a recipe needs at least one step.")

    def __repr__(self) -> str:
        """Return code that makes an equal recipe."""
        return f"Recipe({', '.join(map(repr, self.steps))})"

    __str__ = __repr__

    def flat(self) -> tuple[Step, ...]:
        """Return every step in order, those of nested recipes one by one."""
        parts = (step.flat() if isinstance(step, Recipe) else (step,) for step in self.steps)
        return tuple(step for part in parts for step in part)

    def check(self, traits: Traits) -> Traits:
        """Check each step against what is true after the one before it."""
        for number, step in enumerate(self.flat()):
            try:
                traits = step.check(traits)
            except OrderError as error:
                order = " -> ".join(type(each).__name__ for each in self.flat())
                raise OrderError(f"step {number} of {order}: {error}") from None
        return traits

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        """Apply each step to what the one before it returned."""
        for step in self.flat():
            model = step.apply(model, ctx)
        return model

    def control(self) -> "Recipe | None":
        """Return what is left of every step in the same-budget control."""
        left = [step for step in (step.control() for step in self.flat()) if step is not None]
        return Recipe(*left) if left else None

    def run(
        self,
        model: nn.Module,
        task: Task,
        *,
        out: str | Path,
        goal: Goal | None = None,
        seed: int = 0,
        control: bool = True,
        cost: bool = True,
        progress: Progress | None = None,
    ) -> Run:
        """Apply the recipe to a copy of the model, judge the result, and keep it all in a folder.

        The same call on the same folder goes on where it was interrupted, and uses again every
        step whose model, data, seed and steps before it are the same.

        Args:
            model: Stays as it is, bit for bit.
            task: Data, loss, metrics.
            out: The run folder; made if it does not exist.
            goal: What is to be proved. Default `Goal()`.
            seed: Everything random depends on it.
            control: Whether to run the control that gets the same training budget. It takes about
                as long again; without it the verdict cannot tell the recipe's merit from the
                training's.
            cost: Whether to measure latency and peak memory of the original and of the result,
                which takes some ten seconds; nominal cost is always measured.
            progress: Where to show progress. Default: standard error.

        Raises:
            OrderError: the steps do not fit together in this order.
            DataError: the data breaks a rule.
            ModelError: the model does not fit the task.
            RunFolderError: the folder is in use, full, or holds something else.
            SpecError: the model, the task or the goal is something else.
        """
        _check_kinds(model=(model, nn.Module), task=(task, Task), goal=(goal or Goal(), Goal))
        control_recipe = self.control()
        return execute(
            self.flat(),
            control_recipe.flat() if control_recipe is not None else (),
            self.check,
            model,
            task,
            out=Path(out),
            goal=goal or Goal(),
            seed=seed,
            with_control=control,
            with_cost=cost,
            progress=progress or Progress(),
        )


def _check_kinds(**given: tuple[object, type]) -> None:
    for name, (value, kind) in given.items():
        if not isinstance(value, kind):
            raise SpecError(
                f"`{name}` must be a {kind.__name__}, got {value!r}. Make the object first; "
                "names are for recipe files."
            )
