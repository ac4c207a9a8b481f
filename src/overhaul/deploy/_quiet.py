"""Silence for exporters that print and warn about their own affairs."""

import io
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout


@contextmanager
def quiet() -> Iterator[None]:
    """Keep prints, warnings and log lines below `ERROR` off the screen for a block."""
    disabled = logging.root.manager.disable
    logging.disable(max(disabled, logging.WARNING))
    try:
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


@contextmanager
def quiet_stderr() -> Iterator[None]:
    """Keep what compiled code writes to standard error off the screen, and what `quiet` does.

    It writes to the file descriptor, past `sys.stderr`. All of the process is silent for the block.
    """
    sys.stderr.flush()
    try:
        before = os.dup(_STDERR)
    except OSError:  # it is closed: there is no screen to keep clean
        with quiet():
            yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), _STDERR)
        with quiet():
            yield
    finally:
        os.dup2(before, _STDERR)
        os.close(before)


_STDERR = 2
