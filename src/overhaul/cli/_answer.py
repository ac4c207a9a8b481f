"""What every command has in common: `--json`, errors, exit codes, Ctrl-C."""

import inspect
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, ClassVar, NoReturn

import typer
from rich.console import Console, RenderableType
from rich.markup import escape

from overhaul.core import OverhaulError

EXIT_CODES = {
    0: "done",
    1: "a bug, with its traceback",
    2: "wrong command line or recipe",
    3: "data or model cannot be used",
    4: "run folder cannot be used (busy, full, not a run)",
    5: "corrupted file or artifact",
    6: "training loss not finite",
    7: "package not installed",
    8: "not proved, with --require-proved",
    130: "interrupted",
}
"""What the exit code of a command means."""

JsonOption = Annotated[
    bool, typer.Option("--json", help="Print one JSON document, and messages on standard error.")
]


class InterruptionError(Exception):
    """Ctrl-C, with what is to be said about it."""

    exit_code: ClassVar[int] = 130


@dataclass(frozen=True)
class Answer:
    """What a command has found.

    Attributes:
        document: For programs: what `--json` prints.
        lines: For people.
        exit_code: What the command ends with.
    """

    document: Any
    lines: Sequence[RenderableType] = ()
    exit_code: int = 0


def answering(work: Callable[..., Answer]) -> Callable[..., None]:
    """Make a command of a function: with `--json`, and errors as messages and exit codes.

    In JSON mode, whatever the work itself prints (a user's model may) goes to standard error.
    """

    @wraps(work)
    def command(*, as_json: bool = False, **options: Any) -> None:
        stdout = sys.stdout
        try:
            with redirect_stdout(sys.stderr) if as_json else nullcontext():
                answer = work(**options)
        except (OverhaulError, InterruptionError) as error:
            fail(error, as_json)
        except KeyboardInterrupt:
            fail(InterruptionError("nothing was left half done."), as_json)
        except Exception as error:
            if as_json:
                print_json(error_document(type(error).__name__, str(error), 1))
            raise
        if as_json:
            print_json(answer.document)
        else:
            console = Console(file=stdout, highlight=False)
            for line in answer.lines:
                console.print(line, markup=False, soft_wrap=isinstance(line, str))
        if answer.exit_code:
            raise typer.Exit(answer.exit_code)

    json_parameter = inspect.Parameter(
        "as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonOption
    )
    signature = inspect.signature(work)
    parameters = [*signature.parameters.values(), json_parameter]
    command.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {**work.__annotations__, "as_json": JsonOption}
    return command


def fail(error: OverhaulError | InterruptionError, as_json: bool) -> NoReturn:
    """Print an error that is not a bug, and end the command with its exit code."""
    if as_json:
        print_json(error_document(type(error).__name__, str(error), error.exit_code))
    else:
        title = "Error" if isinstance(error, OverhaulError) else "Interrupted"
        console = Console(stderr=True, highlight=False)
        for line in f"[bold red]{title}:[/] {escape(str(error))}".splitlines():
            # What is to be copied, and what goes into a file, is not broken into lines.
            as_it_is = line.startswith("  ") or not console.is_terminal
            console.print(line, soft_wrap=as_it_is)
    raise typer.Exit(error.exit_code)


def error_document(kind: str, message: str, exit_code: int) -> dict[str, Any]:
    """Return what `--json` prints when a command fails."""
    return {"error": {"type": kind, "message": message}, "exit_code": exit_code}


def print_json(document: Any) -> None:
    """Print one JSON document on standard output."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


@contextmanager
def resumable(folder: Path) -> Iterator[None]:
    """Say how a run is continued that is interrupted in this block."""
    try:
        yield
    except KeyboardInterrupt:
        raise InterruptionError(
            f"what was finished is kept in '{folder}'. To go on, start the same line again:\n"
            f"  {same_line()}"
        ) from None


def same_line() -> str:
    """Return the line that started this program, as it is typed into a shell."""
    program = sys.argv[0]
    start = [program]
    found = shutil.which("overhaul")
    if Path(program).name == "__main__.py":
        start = [sys.executable, "-m", "overhaul"]
    elif found is not None and os.path.realpath(found) == os.path.realpath(program):
        start = ["overhaul"]
    return shlex.join([*start, *sys.argv[1:]])
