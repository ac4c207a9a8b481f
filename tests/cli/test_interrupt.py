"""Ctrl-C in the middle of an epoch of a real process; the line that it prints finishes the run."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from overhaul.cli._answer import same_line
from overhaul.cli._app import app

MODULE = """
import os
import sys

from torch import nn


class Net(nn.Sequential):
    calls = 0

    def forward(self, x):
        Net.calls += 1
        if os.environ.get("TELL_AT_CALL") == str(Net.calls):
            print("now", flush=True)
            sys.stdin.readline()  # nothing comes: it waits to be interrupted
        return super().forward(x)


def net() -> nn.Module:
    return Net(nn.Flatten(), nn.Linear(64, 10))
"""
RECIPE = """
model: cli_nets:net
task: {classification: {data: digits}}
steps:
  - train: {epochs: 2, batch_size: 4}
"""
STEPS_PER_EPOCH = 315


def test_interrupted_in_an_epoch_the_printed_line_finishes_the_run(tmp_path: Path) -> None:
    (tmp_path / "cli_nets.py").write_text(MODULE, "utf-8")
    (tmp_path / "my recipe.yaml").write_text(RECIPE, "utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = ["run", "my recipe.yaml", "-o", "a run", "--no-cost", "--no-control"]
    with subprocess.Popen(
        [sys.executable, "-m", "overhaul", *line],
        cwd=tmp_path,
        env={**environment, "TELL_AT_CALL": str(STEPS_PER_EPOCH + 60)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "now\n"
        process.send_signal(signal.SIGINT)
        _, messages = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in messages
    assert "'a run'" in messages
    printed = messages.splitlines()[-1].strip()
    assert printed == shlex.join([sys.executable, "-m", "overhaul", *line])
    shown = CliRunner().invoke(app, ["show", str(tmp_path / "a run"), "--json"])
    assert json.loads(shown.stdout)["status"] == "unfinished"
    again = subprocess.run(
        printed, shell=True, cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert again.returncode == 0, again.stderr
    assert "0 train: goes on after epoch 1" in again.stderr


def test_the_line_is_what_was_typed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "overhaul"
    program.write_text("#!/bin/sh\n", "utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(program), "run", "a b.yaml"])
    monkeypatch.setenv("PATH", "")
    assert same_line() == f"{program} run 'a b.yaml'"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("overhaul") == str(program)
    assert same_line() == "overhaul run 'a b.yaml'"
