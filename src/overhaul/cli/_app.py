"""The command line as a whole: `overhaul`."""

import sys
from typing import Annotated, Any

import typer

import overhaul
from overhaul.cli._answer import EXIT_CODES, answering, error_document, print_json
from overhaul.cli._commands import COMMANDS

_EPILOG = f"Exit codes: {'; '.join(f'{code} {what}' for code, what in EXIT_CODES.items())}."

app = typer.Typer(
    name="overhaul",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for name, command in COMMANDS.items():
    app.command(name, epilog=_EPILOG)(answering(command))


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"overhaul {overhaul.__version__}")
        raise typer.Exit


@app.callback(epilog=_EPILOG)
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    """Make a trained PyTorch model smaller, faster or more general, and prove it."""


def main() -> None:
    """Run the command line and exit."""
    arguments = sys.argv[1:]
    if "--json" not in arguments:
        app()
    # Typer has its own base of all errors in how it was called, and exports one of them alone.
    usage_error: Any = typer.BadParameter.__base__
    try:
        sys.exit(app(arguments, standalone_mode=False))
    except usage_error as error:
        print_json(error_document("UsageError", error.format_message(), error.exit_code))
        sys.exit(error.exit_code)
