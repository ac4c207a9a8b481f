"""One deployed network for each engine, to be copied by tests that spoil it."""

import shutil
from pathlib import Path

import pytest
from torch import nn

from overhaul.core import CheckpointFolder, Context, Progress
from overhaul.deploy import Deploy
from tests.deploy.networks import network, task_of

ENGINES = ("torch", "onnxruntime")


@pytest.fixture(scope="session", params=ENGINES)
def made_once(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp(request.param)
    model, task = network("images"), task_of("images")
    ctx = Context(
        task=task,
        data=task.prepare(),
        original=model,
        checkpoints=CheckpointFolder(folder / "checkpoints"),
        artifact_folder=folder / "artifact",
        progress=Progress(quiet=True),
    )
    Deploy(engines=(request.param,), timing_s=0.01, cost=False).apply(model, ctx)
    return folder / "artifact"


@pytest.fixture
def artifact_folder(made_once: Path, tmp_path: Path) -> Path:
    """A deployed `Images` of its own, on either engine."""
    return Path(shutil.copytree(made_once, tmp_path / "artifact"))


@pytest.fixture
def deployed_images() -> nn.Module:
    """The network that `artifact_folder` was made of."""
    return network("images").eval()
