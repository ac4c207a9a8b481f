"""`check_compiler`: whether there is a C++ compiler, which torch needs to compile a model."""

import os
import shutil

import torch

from overhaul.core import MissingExtraError

_NAMES = ("g++", "clang++", "c++")


def check_compiler() -> None:
    """Find the C++ compiler that torch would call.

    Raises:
        MissingExtraError: there is none.
    """
    named = os.environ.get("CXX")
    if not any(shutil.which(name) for name in ([named] if named else _NAMES)):
        raise MissingExtraError(
            f"compiling a model needs a C++ compiler, and none of {', '.join(_NAMES)} is on the "
            "PATH"
            + (f" (CXX is '{named}', which is not there)" if named else "")
            + ". Install one (`apt install g++`), or set CXX to yours."
        )


def cpu_capability() -> str:
    """Return which vector instructions torch compiles for here: `AVX512`, `AVX2`, `DEFAULT`."""
    return str(torch.backends.cpu.get_cpu_capability())
