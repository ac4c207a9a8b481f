"""The command line: a thin shell over the package."""

from overhaul.cli._answer import EXIT_CODES
from overhaul.cli._app import main

__all__ = ["EXIT_CODES", "main"]
