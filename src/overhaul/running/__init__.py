"""A recipe at work: its run, its control, its final evaluation."""

from overhaul.running._execute import initial_traits
from overhaul.running._load_model import load_model
from overhaul.running._recipe import Recipe
from overhaul.running._recipe_file import RecipeFile
from overhaul.running._run import Run
from overhaul.running._steps import Setting, rebuilt, run_steps

__all__ = [
    "Recipe",
    "RecipeFile",
    "Run",
    "Setting",
    "initial_traits",
    "load_model",
    "rebuilt",
    "run_steps",
]
