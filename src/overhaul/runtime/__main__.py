"""`python -m overhaul.runtime verify ARTIFACT`, where nothing but NumPy and an engine is there."""

import sys
from argparse import ArgumentParser
from collections.abc import Sequence

from overhaul.runtime._errors import OverhaulError
from overhaul.runtime._verify import verify


def main(arguments: Sequence[str] | None = None) -> int:
    """Verify an artifact, print what was found, and return the exit code."""
    parser = ArgumentParser(
        prog="python -m overhaul.runtime", description="Deployed models without torch."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    command = commands.add_parser(
        "verify", help="check that a deployed model is intact and computes what it did"
    )
    command.add_argument("artifact", metavar="ARTIFACT", help="the folder that Deploy wrote")
    command.add_argument("--threads", type=int, help="threads of a call; default: all")
    options = parser.parse_args(arguments)
    try:
        print(verify(options.artifact, threads=options.threads))
    except OverhaulError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
