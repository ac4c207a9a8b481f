"""What every test stands on: one thread, fixed seeds, nothing left behind."""

import os
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from torch import nn

from overhaul.core import CheckpointFolder, Context, Progress
from overhaul.testing import tiny_task

_ROOT = Path(__file__).resolve().parents[1]

_SET_BY_LIBRARIES = {
    *("PYTEST_CURRENT_TEST", "CUDA_MODULE_LOADING", "TORCHINDUCTOR_CACHE_DIR"),
    *("KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "_TORCHINDUCTOR_PYOBJECT_TENSOR_DATA_PTR"),
    "OPENVINO_LIB_PATH",
}
"""When pytest goes on to the next phase, or when torch or another library is first imported."""

_PATIENCE_S = 5.0
"""How long a thread may take to end by itself: transformers does not wait for those it loads by."""

# Tiny models lose more to the hand-over between threads than they gain, and a sum over one
# thread always adds in the same order.
torch.set_num_threads(1)

settings.register_profile(
    "ci", derandomize=True, deadline=None, max_examples=25, print_blob=True, database=None
)
settings.load_profile("ci")


@pytest.fixture
def shared_data() -> Path:
    """The folder of real data beside the project, or a visible skip."""
    folder = Path(os.environ.get("OVERHAUL_SHARED", _ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in '{folder}'; set OVERHAUL_SHARED to a folder that has it")
    return folder


@pytest.fixture(autouse=True)
def _fixed_seeds() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the code under test may draw from the global generator
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _nothing_left_behind() -> Iterator[None]:
    """Fail a test that changes the process for the tests after it."""
    before = process_state()
    yield
    for thread in threading.enumerate():
        if not thread.daemon and thread.name not in before["non-daemon threads"]:
            thread.join(_PATIENCE_S)
    after = process_state()
    changed = what_changed(before, after)
    restore(before)
    assert not changed, f"the test left behind: {'; '.join(changed)}"


def process_state() -> dict[str, Any]:
    """Return what a test may change only for itself."""
    return {
        "environment": dict(os.environ),
        "working directory": Path.cwd(),
        "non-daemon threads": {
            thread.name
            for thread in threading.enumerate()
            if thread.is_alive() and not thread.daemon
        },
        "torch default dtype": torch.get_default_dtype(),
        "torch default device": torch.get_default_device(),
        "torch threads": torch.get_num_threads(),
        "torch gradient mode": torch.is_grad_enabled(),
        "torch deterministic mode": torch.are_deterministic_algorithms_enabled(),
    }


def what_changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Name each difference between two states; a thread that has ended is none."""
    changed = []
    for name, old in before.items():
        new = after[name]
        if name == "environment":
            keys = {key for key in old.keys() | new.keys() if old.get(key) != new.get(key)}
            keys -= _SET_BY_LIBRARIES
            changed += [f"environment variable {key}" for key in sorted(keys)]
        elif name == "non-daemon threads":
            changed += [f"thread {thread}" for thread in sorted(new - old)]
        elif old != new:
            changed.append(f"{name} {old} -> {new}")
    return changed


def restore(state: dict[str, Any]) -> None:
    """Undo what can be undone, so that one careless test does not fail the ones after it."""
    kept = {key: os.environ[key] for key in _SET_BY_LIBRARIES if key in os.environ}
    os.environ.clear()
    os.environ.update(state["environment"] | kept)
    os.chdir(state["working directory"])
    torch.set_default_dtype(state["torch default dtype"])
    if torch.get_default_device() != state["torch default device"]:
        # Not done needlessly: a default device, once set, takes part in every operation.
        torch.set_default_device(state["torch default device"])
    torch.set_num_threads(state["torch threads"])
    torch.set_grad_enabled(state["torch gradient mode"])
    torch.use_deterministic_algorithms(state["torch deterministic mode"])


@pytest.fixture
def make_context(tmp_path: Path) -> Callable[..., Context]:
    """Return a function that makes a context for a model; keywords replace its fields."""

    def make(model: nn.Module, **fields: Any) -> Context:
        task = fields.pop("task", None) or tiny_task()
        return Context(
            **{
                "task": task,
                "data": task.prepare(),
                "original": model,
                "checkpoints": CheckpointFolder(tmp_path / "checkpoints"),
                "artifact_folder": tmp_path / "artifact",
                "label": "0 step",
                "progress": Progress(quiet=True),
                **fields,
            }
        )

    return make
