"""One deployed network for each engine that needs no torch, to be copied by tests that spoil it."""

import shutil
from pathlib import Path

import pytest

from overhaul.core import CheckpointFolder, Context, Progress
from overhaul.deploy import Deploy
from tests.deploy.engine_cases import installed
from tests.deploy.networks import network, task_of


@pytest.fixture(scope="session", params=["onnxruntime", "openvino"])
def made_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    engine, folder = installed(request.param), tmp_path_factory.mktemp(request.param)
    model, task = network("images"), task_of("images")
    ctx = Context(
        task=task,
        data=task.prepare(),
        original=model,
        checkpoints=CheckpointFolder(folder / "checkpoints"),
        artifact_folder=folder / "artifact",
        progress=Progress(quiet=True),
    )
    Deploy(engines=(engine,), timing_s=0.01).apply(model, ctx)
    return folder / "artifact"


@pytest.fixture
def artifact_folder(made_once: Path, tmp_path: Path) -> Path:
    """A deployed `Images` of its own, on either engine."""
    return Path(shutil.copytree(made_once, tmp_path / "artifact"))
