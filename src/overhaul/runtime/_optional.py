"""The one way to load a package that not every user needs."""

import importlib
from typing import Any

from overhaul.runtime._errors import MissingExtraError


def load_optional(module: str, *, why: str, extra: str | None = None) -> Any:
    """Import a module of an optional package.

    Args:
        module: What to import, for example `onnxruntime`.
        why: What it is needed for, as the end of a sentence.
        extra: The extra of Overhaul that installs it. Default: the package itself is enough.

    Raises:
        MissingExtraError: it is not installed; the message prints the line that installs it.

    Example:
        >>> load_optional("no_such_package", extra="onnx", why="to export to ONNX")
        Traceback (most recent call last):
        ...
        overhaul.runtime._errors.MissingExtraError: the package 'no_such_package' is needed to export to ONNX and is not installed. Run: pip install "overhaul[onnx]"
    """  # noqa: E501
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        wanted = missing.partition(".")[0] if extra is None else f'"overhaul[{extra}]"'
        raise MissingExtraError(
            f"the package '{missing}' is needed {why} and is not installed. "
            f"Run: pip install {wanted}"
        ) from error
