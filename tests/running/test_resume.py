"""Runs that are really killed, at random moments and in the middle of a write."""

import multiprocessing
import os
import random
import signal
import time
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch

from overhaul.core import Fact, Progress, RunFolder, model_tensors
from overhaul.distillation import Distill, SwapModel
from overhaul.pruning import PruneWeights
from overhaul.running import Recipe, Run
from overhaul.testing import tiny_cnn, tiny_task
from overhaul.training import AdamW, Flip, Train
from overhaul.transfer import Freeze

RECIPE = Recipe(
    PruneWeights(sparsity=0.5),
    Train(epochs=6, batch_size=2, augmentations=(Flip(),), optimizer=AdamW(lr=1e-2)),
    SwapModel(factory=tiny_cnn, arguments={"width": 4}),
    Freeze(layers=("conv",)),
    Train(epochs=6, batch_size=2, objective=Distill(), optimizer=AdamW(lr=1e-2)),
)


def run_it(folder: Path) -> Run:
    torch.set_num_threads(1)
    return RECIPE.run(
        tiny_cnn(), tiny_task(), out=folder, cost=False, progress=Progress(quiet=True)
    )


def run_and_die_at_write(folder: Path, number: int, *, before: bool) -> None:
    """Run, and be killed before or after the rename that makes a file or folder appear."""
    real, count = os.replace, 0

    def replace(*args: Any, **kwargs: Any) -> None:
        nonlocal count
        count += 1
        if count == number and before:
            os.kill(os.getpid(), signal.SIGKILL)
        real(*args, **kwargs)
        if count == number:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace
    run_it(folder)


@pytest.fixture(scope="module")
def processes() -> ForkServerContext:
    """Return a way to start fresh processes that have imported torch already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [__name__, "overhaul", "accelerate", "torchmetrics", "scipy.stats"]
    )
    return context


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Return the run that nothing interrupted."""
    return run_it(tmp_path_factory.mktemp("straight") / "run")


def comparable(facts: list[Fact]) -> list[str]:
    return [fact.to_json() for fact in facts if fact.reproducible]


def assert_same_result(folder: Path, straight: Run) -> None:
    resumed = run_it(folder)
    expected = model_tensors(straight.model)
    found = model_tensors(resumed.model)
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert comparable(resumed.facts) == comparable(straight.facts)
    assert resumed.verdict.original == straight.verdict.original
    assert resumed.verdict.control == straight.verdict.control


def test_killed_ten_times_at_random_moments(
    tmp_path: Path, straight: Run, processes: ForkServerContext
) -> None:
    folder = tmp_path / "run"
    whole_s = 0.0
    for timed in ("first", "second"):  # the first also starts the server of processes
        start = time.monotonic()
        whole = processes.Process(target=run_it, args=(tmp_path / timed,))
        whole.start()
        whole.join()
        assert whole.exitcode == 0
        whole_s = time.monotonic() - start
    draw = random.Random(0)
    killed = 0
    for _ in range(10):
        process = processes.Process(target=run_it, args=(folder,))
        process.start()
        process.join(timeout=draw.uniform(0.05, 0.25) * whole_s)
        killed += process.is_alive()
        process.kill()
        process.join()
    assert killed >= 5
    assert_same_result(folder, straight)


@pytest.mark.parametrize("before", [True, False])
def test_killed_in_the_middle_of_writes(
    tmp_path: Path, straight: Run, processes: ForkServerContext, before: bool
) -> None:
    folder = tmp_path / "run"
    codes = []
    for number in (1, 2, 4, 7, 11, 5, 13):
        process = processes.Process(
            target=run_and_die_at_write, args=(folder, number), kwargs={"before": before}
        )
        process.start()
        process.join()
        codes.append(process.exitcode)
    assert codes[:5] == [-signal.SIGKILL] * 5
    assert_same_result(folder, straight)
    assert not list(folder.rglob(".tmp-*"))


def test_openings_of_the_test_split_are_counted(straight: Run) -> None:
    assert RunFolder(straight.folder.path).manifest()["test_opened"] == 1
    again = run_it(straight.folder.path)
    assert RunFolder(again.folder.path).manifest()["test_opened"] == 1
    assert comparable(again.facts) == comparable(straight.facts)
