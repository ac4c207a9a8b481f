"""`RecalibrateNorm`: the statistics are those of training data, and nothing else moves."""

from pathlib import Path

import pytest
import torch
from torch import nn

from overhaul.core import CheckpointFolder, Context, ModelError
from overhaul.pruning import RecalibrateNorm
from overhaul.testing import tiny_cnn, tiny_task


def context(tmp_path: Path) -> Context:
    task = tiny_task()
    return Context(
        task=task,
        data=task.prepare(),
        original=tiny_cnn(),
        checkpoints=CheckpointFolder(tmp_path / "checkpoints"),
        artifact_folder=tmp_path / "artifact",
    )


def test_the_statistics_are_those_of_the_training_data(tmp_path: Path) -> None:
    ctx, model = context(tmp_path), tiny_cnn()
    model.bn.running_mean.fill_(7.0)  # type: ignore[union-attr]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    RecalibrateNorm(batches=1, batch_size=48).apply(model, ctx)
    batch = next(ctx.data.train.in_order(48))
    wanted = model.conv(batch.inputs[0]).mean((0, 2, 3))  # type: ignore[index]
    torch.testing.assert_close(model.bn.running_mean, wanted.detach())
    for name, value in model.state_dict().items():
        if not name.startswith("bn.running") and "tracked" not in name:
            assert torch.equal(value, before[name])
    assert model.bn.momentum == 0.1


def test_a_model_without_statistics_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no BatchNorm with running statistics"):
        RecalibrateNorm().apply(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), context(tmp_path))
