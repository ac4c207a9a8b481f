"""The commands, and what every command has in common: errors, exit codes, Ctrl-C."""

import sys

import typer
from rich.console import Console

from overhaul.cli._commands import COMMANDS
from overhaul.core import OverhaulError

_INTERRUPTED = 130

app = typer.Typer(
    name="overhaul",
    help="Make a trained PyTorch model smaller, faster or more general, and prove it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    add_completion=False,
)
for name, command in COMMANDS.items():
    app.command(name)(command)


def main() -> None:
    """Run the command line and exit.

    Exit codes: 0 done; 2 wrong recipe or usage; 3 wrong data or model; 4 run folder; 5 corrupted
    file or artifact; 6 loss not finite; 7 missing package; 8 not proved (`--require-proved`);
    130 interrupted; 1 anything else.
    """
    console = Console(stderr=True)
    try:
        app()
    except OverhaulError as error:
        console.print("[bold red]Error:[/] ", end="")
        console.print(str(error), markup=False, highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        line = " ".join(["overhaul", *sys.argv[1:]])
        console.print(
            "\nInterrupted. What was finished is kept. To go on, start the same line again:",
            f"  {line}",
            sep="\n",
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
        sys.exit(_INTERRUPTED)
