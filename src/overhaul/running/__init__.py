"""A recipe at work: its run, its control, its final evaluation."""

from overhaul.running._recipe import Recipe
from overhaul.running._recipe_file import RecipeFile
from overhaul.running._run import Run

__all__ = ["Recipe", "RecipeFile", "Run"]
