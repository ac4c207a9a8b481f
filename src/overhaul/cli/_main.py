"""`main`: the command line, or what to do where the packages that it needs are not installed."""

import sys
from importlib import import_module
from typing import Any

_EXIT_CODE = 7
"""A package is not installed."""


def main() -> None:
    """Run the command line and exit."""
    try:
        app: Any = import_module("overhaul.cli._app")
    except ModuleNotFoundError as error:
        name = str(error.name)
        if name.partition(".")[0] == "overhaul":
            raise
        print(
            f"Error: the command line needs the package '{name}', which is not installed. Install "
            "Overhaul with all it needs: pip install overhaul. Where only an engine is installed, "
            "`python -m overhaul.runtime verify ARTIFACT` checks what was deployed to it.",
            file=sys.stderr,
        )
        sys.exit(_EXIT_CODE)
    app.main()
