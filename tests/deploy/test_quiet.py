import logging
import os
import sys
import warnings

import pytest

from overhaul.deploy._quiet import quiet, quiet_stderr


def test_nothing_but_errors_comes_through_and_only_for_the_block(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("of an exporter")
    with quiet():
        print("noise")
        print("noise", file=sys.stderr)
        warnings.warn("noise", stacklevel=1)
        log.warning("noise")
        log.error("a real problem")
    assert capsys.readouterr() == ("", "")
    assert caplog.messages == ["a real problem"]
    log.warning("after it")
    with pytest.warns(UserWarning, match="after it"):
        warnings.warn("after it", stacklevel=1)
    assert caplog.messages[-1] == "after it"


def test_what_compiled_code_writes_is_not_seen_and_only_for_the_block(
    capfd: pytest.CaptureFixture[str],
) -> None:
    with quiet_stderr():
        os.write(2, b"noise of a library")
    assert capfd.readouterr().err == ""
    os.write(2, b"after it")
    assert capfd.readouterr().err == "after it"


def test_standard_error_that_is_closed_stays_so() -> None:
    before = os.dup(2)
    os.close(2)
    try:
        with quiet_stderr():
            pass
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(2)
    finally:
        os.dup2(before, 2)
        os.close(before)
