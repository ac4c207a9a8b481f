"""`RecalibrateNorm`: the statistics are those of training data, and nothing else moves."""

from pathlib import Path

import pytest
import torch
from torch import nn

from overhaul.core import CheckpointFolder, Context, ModelError
from overhaul.pruning import RecalibrateNorm
from overhaul.testing import TinyResidual, tiny_cnn, tiny_residual, tiny_task
from overhaul.transfer import Freeze


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


def test_a_frozen_norm_keeps_its_statistics(tmp_path: Path) -> None:
    ctx, model = context(tmp_path), tiny_residual()
    assert isinstance(Freeze(layers=("blocks.0",)).apply(model, ctx), TinyResidual)
    norms = [block.get_submodule("bn") for block in model.blocks]
    before = [norm.get_buffer("running_mean").clone() for norm in norms]
    flags = [(module.training, module) for module in model.modules()]
    RecalibrateNorm(batches=1).apply(model, ctx)
    moved = [
        not torch.equal(norm.get_buffer("running_mean"), old)
        for norm, old in zip(norms, before, strict=True)
    ]
    assert moved == [False, True, True]
    assert [fact.value for fact in ctx.facts if fact.name == "recalibrated_norms"] == [2]
    assert flags == [(module.training, module) for module in model.modules()]


def test_a_norm_that_the_model_holds_keeps_its_statistics(tmp_path: Path) -> None:
    class Held(TinyResidual):
        def train(self, mode: bool = True) -> "Held":
            super().train(mode)
            self.blocks[1].eval()
            return self

    model = Held()
    RecalibrateNorm(batches=1).apply(model, context(tmp_path))
    means = [block.get_submodule("bn").get_buffer("running_mean") for block in model.blocks]
    assert [bool(mean.any()) for mean in means] == [True, False, True]


def test_a_model_of_frozen_norms_is_refused(tmp_path: Path) -> None:
    ctx, model = context(tmp_path), tiny_cnn()
    Freeze(exclude=("fc",)).apply(model, ctx)
    with pytest.raises(ModelError, match="1 BatchNorms, all of them frozen"):
        RecalibrateNorm().apply(model, ctx)
