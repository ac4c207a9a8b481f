"""The one way to load a package that not every user needs."""

import importlib
from typing import Any

from overhaul.core._errors import MissingExtraError


def load_optional(module: str, *, extra: str, why: str) -> Any:
    """Import a module of an optional package.

    Args:
        module: What to import, for example `onnxruntime`.
        extra: The extra of Overhaul that installs it.
        why: What it is needed for, as the end of a sentence.

    Raises:
        MissingExtraError: it is not installed; the message prints the line that installs it.

    Example:
        >>> load_optional("no_such_package", extra="onnx", why="to export to ONNX")
        Traceback (most recent call last):
        ...
        overhaul.core._errors.MissingExtraError: the package 'no_such_package' is needed to export to ONNX and is not installed. Run: pip install "overhaul[onnx]"
    """  # noqa: E501
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise MissingExtraError(
            f"the package '{missing}' is needed {why} and is not installed. "
            f'Run: pip install "overhaul[{extra}]"'
        ) from error
