"""`RecipeFile`: a whole run as data: model, task, steps and goal."""

from pathlib import Path
from typing import Any

from pydantic import Field
from torch import nn

from overhaul.core import (
    Factory,
    InputFile,
    Network,
    Progress,
    Spec,
    SpecError,
    Step,
    Task,
    derived_seed,
    seeded,
)
from overhaul.evaluation import Goal
from overhaul.running._recipe import Recipe
from overhaul.running._run import Run


class RecipeFile(Spec):
    """A whole run as data, as it stands in a YAML or JSON file.

    Paths in it are taken from the folder that the program is started in.

    Args:
        model: Import path of the factory that builds the model.
        model_arguments: Keyword arguments for the factory.
        weights: The trained weights: a `.safetensors` file, or a `.pt`/`.pth` state dict.
        task: What the model is for, and its data.
        steps: What to do, in order.
        goal: What is to be proved.
        seed: Everything random depends on it.

    Raises:
        SpecError: a key or a name is unknown; the nearest known one is named.

    Example:
        >>> from overhaul.pruning import PruneWeights
        >>> from overhaul.tasks import Classification
        >>> RecipeFile.from_yaml('''
        ... model: torch.nn:Flatten
        ... task: {classification: {data: digits}}
        ... steps:
        ...   - prune_weights: {sparsity: 0.5}
        ... ''')
        RecipeFile(model='torch.nn:Flatten', task=..., steps=(PruneWeights(sparsity=0.5),))
    """

    model: Factory
    model_arguments: dict[str, Any] = Field(default={}, description="Arguments of the factory.")
    weights: InputFile | None = Field(default=None, description="A .safetensors, .pt or .pth file.")
    task: Task
    steps: tuple[Step, ...] = Field(description="What to do, in order.")
    goal: Goal = Goal()
    seed: int = 0

    @classmethod
    def read(cls, path: str | Path) -> "RecipeFile":
        """Read a recipe file.

        Raises:
            SpecError: there is no such file, or it is not a recipe.
        """
        path = Path(path)
        if not path.is_file():
            raise SpecError(f"there is no recipe file '{path}'.")
        try:
            return cls.from_yaml(path.read_text("utf-8"))
        except SpecError as error:
            raise SpecError(f"{path}: {error}") from None

    @property
    def recipe(self) -> Recipe:
        """The steps as a recipe."""
        return Recipe(*self.steps)

    def build_model(self) -> nn.Module:
        """Return the model with its weights; what the factory draws depends on the seed alone."""
        network = Network(factory=self.model, arguments=self.model_arguments, weights=self.weights)
        with seeded(derived_seed(self.seed, "model")):
            return network.build()

    def run(
        self,
        *,
        out: str | Path,
        control: bool = True,
        cost: bool = True,
        progress: Progress | None = None,
    ) -> Run:
        """Run it; see `Recipe.run`."""
        return self.recipe.run(
            self.build_model(),
            self.task,
            out=out,
            goal=self.goal,
            seed=self.seed,
            control=control,
            cost=cost,
            progress=progress,
        )
