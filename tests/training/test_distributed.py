"""Two processes make the steps that one would make."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from overhaul.core import Fact, RunFolder, read_state
from tests.training.distributed_program import main

_ROOT = Path(__file__).resolve().parents[2]


def launch(out: Path, processes: int) -> None:
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu"),
        *("--num_processes", str(processes), "--num_machines", "1", "--mixed_precision", "no"),
        *("--dynamo_backend", "no", "--main_process_port", "0"),
        *("--module", "tests.training.distributed_program", str(out)),
    ]
    environment = {
        **os.environ,
        "PYTHONPATH": f"{_ROOT / 'src'}:{_ROOT}",
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    done = subprocess.run(
        command, cwd=_ROOT, env=environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-4000:]


def trained(folder: RunFolder) -> list[Fact]:
    """Return what was found in training, of the peers and the weights of teachers as well."""
    names = ("train_loss", "val_loss", "teacher_weight", "trial_quality", "setting_chosen")
    return [fact for fact in folder.facts() if fact.name in names]


def check_same_weights(one: Path, two: Path) -> int:
    """Compare the model after each step, and return how many there are."""
    steps = sorted(path.name for path in (one / "steps").iterdir())
    assert steps == [str(number) for number in range(len(steps))]
    for step in steps:
        own, theirs = (read_state(folder / "steps" / step)["tensors"] for folder in (one, two))
        assert own.keys() == theirs.keys()
        for name, tensor in own.items():
            torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-5, msg=name)
    return len(steps)


@pytest.mark.timeout(300)
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    main(tmp_path / "one")
    launch(tmp_path / "two", processes=2)
    assert [(tmp_path / f"rank{rank}.txt").read_text() for rank in (0, 1)] == ["2", "2"]
    assert check_same_weights(tmp_path / "one", tmp_path / "two") == 7
    assert check_same_weights(tmp_path / "one-text", tmp_path / "two-text") == 2
    found = [trained(RunFolder(tmp_path / name)) for name in ("one", "two")]
    names = {(fact.subject, fact.name) for fact in found[0]}
    assert names >= {("4 train, peer 2", "val_loss"), ("5 train", "teacher_weight")}
    assert ("6 distill_into, student 2", "setting_chosen") in names
    assert [fact.subject for fact in found[0]] == [fact.subject for fact in found[1]]
    one, two = ([float(fact.value or 0) for fact in facts] for facts in found)
    assert one == pytest.approx(two, rel=1e-4)
    assert RunFolder(tmp_path / "two").manifest()["test_opened"] == 1
