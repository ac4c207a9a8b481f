"""The check that tests leave nothing behind can fail."""

import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch


@pytest.fixture
def conftest(request: pytest.FixtureRequest) -> ModuleType:
    """The conftest of this folder, as pytest loaded it."""
    path = str(Path(__file__).with_name("conftest.py"))
    for plugin in request.config.pluginmanager.get_plugins():
        if isinstance(plugin, ModuleType) and getattr(plugin, "__file__", None) == path:
            return plugin
    raise LookupError(path)


def _set_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEFT_BEHIND", "1")


def _change_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")


def _change_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_default_dtype(torch.float64)


def _change_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(2)


def _disable_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_grad_enabled(False)


@pytest.mark.parametrize(
    ("leave_behind", "named"),
    [
        (_set_variable, "environment variable LEFT_BEHIND"),
        (_change_folder, "working directory"),
        (_change_dtype, "torch default dtype"),
        (_change_threads, "torch threads 1 -> 2"),
        (_disable_gradients, "torch gradient mode True -> False"),
    ],
)
def test_a_change_of_the_process_is_found_and_undone(
    conftest: ModuleType,
    leave_behind: Callable[[pytest.MonkeyPatch], None],
    named: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = conftest.process_state()
    leave_behind(monkeypatch)
    [change] = conftest.what_changed(before, conftest.process_state())
    assert named in change
    conftest.restore(before)
    assert conftest.what_changed(before, conftest.process_state()) == []


def test_a_thread_that_goes_on_is_found(conftest: ModuleType) -> None:
    before = conftest.process_state()
    stop = threading.Event()
    thread = threading.Thread(target=stop.wait, name="left behind")
    thread.start()
    during = conftest.process_state()
    stop.set()
    thread.join()
    assert conftest.what_changed(before, during) == ["thread left behind"]
    assert conftest.what_changed(before, conftest.process_state()) == []


def test_shared_data_skips_visibly_when_there_is_none(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("OVERHAUL_SHARED", str(tmp_path / "absent"))
    with pytest.raises(pytest.skip.Exception, match="set OVERHAUL_SHARED"):
        request.getfixturevalue("shared_data")
