import logging
import sys
import warnings

import pytest

from overhaul.deploy._quiet import quiet


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
