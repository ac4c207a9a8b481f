"""The command line: a thin shell over the package."""

from overhaul.cli._main import main

__all__ = ["main"]
