"""`PruneByTrial`: what does nothing goes, what matters stays, and the budget holds."""

from pathlib import Path

import pytest
import torch
from torch import nn

from overhaul.core import CheckpointFolder, Context, ModelError, Progress, Step
from overhaul.pruning import PruneByTrial, PruneChannels
from overhaul.pruning._rise_test import RiseTest
from overhaul.testing import tiny_task


def net() -> nn.Sequential:
    """Return a network of which the hidden units 0 to 3 do nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model.get_parameter("3.weight")[:, :4] = 0
        model.get_parameter("3.weight")[:, 4:] *= 20
    return model


def context(tmp_path: Path, model: nn.Module) -> Context:
    task = tiny_task()
    return Context(
        task=task,
        data=task.prepare(),
        original=model,
        checkpoints=CheckpointFolder(tmp_path / "checkpoints"),
        artifact_folder=tmp_path / "artifact",
        progress=Progress(quiet=True),
    )


def test_what_does_nothing_goes_and_the_loss_stays(tmp_path: Path) -> None:
    model = net()
    ctx = context(tmp_path, model)
    batch = next(ctx.data.train.in_order(48))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(100):
        optimizer.zero_grad()
        ctx.task.loss(model(*batch.inputs), batch.targets).backward()
        optimizer.step()
        with torch.no_grad():
            model.get_parameter("3.weight")[:, :4] = 0
    alive = model.get_parameter("1.bias")[4:].detach().clone()
    val = next(ctx.data.val.in_order(24))
    before = float(ctx.task.loss(model(*val.inputs).detach(), val.targets))
    smaller = PruneByTrial(tolerance=1e-4, total_tolerance=1e-3).apply(model, ctx)
    after = float(ctx.task.loss(smaller(*val.inputs).detach(), val.targets))
    left = smaller.get_parameter("1.bias").detach()
    assert after <= before * 1.001
    assert len(set(left.tolist()) - set(alive.tolist())) <= 1  # of the four that do nothing


def test_the_same_seed_gives_the_same_model(tmp_path: Path) -> None:
    step = PruneByTrial(tolerance=0.05, total_tolerance=0.2, trials=5)
    results = [step.apply(net(), context(tmp_path, net())) for _ in range(2)]
    assert torch.equal(*(model.get_parameter("1.weight") for model in results))


def test_no_more_trials_than_allowed(tmp_path: Path) -> None:
    ctx = context(tmp_path, net())
    smaller = PruneByTrial(tolerance=0.5, total_tolerance=1.0, trials=2).apply(net(), ctx)
    assert smaller.get_parameter("1.weight").shape[0] >= 6


def test_a_pattern_that_matches_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'nowhere' matches nothing"):
        PruneByTrial(exclude=("nowhere",)).apply(net(), context(tmp_path, net()))
    with pytest.raises(ModelError, match=r"apart from `exclude` \(\*\). `overhaul profile --prun"):
        PruneByTrial(exclude=("*",)).apply(net(), context(tmp_path, net()))


@pytest.mark.parametrize(
    ("step", "removed"),
    [
        (PruneByTrial(tolerance=1e3, total_tolerance=1e3, macs=0.6), 4),
        (PruneByTrial(tolerance=1e-9, trials=1, samples=1), 0),
        (PruneChannels(macs=0.6), 4),
    ],
    ids=["trials", "no trial", "channels"],
)
def test_the_facts_are_alike_whichever_step_removes(
    tmp_path: Path, step: Step, removed: int
) -> None:
    ctx, model = context(tmp_path, net()), net()
    torch.nn.init.constant_(model.get_parameter("3.weight"), 5.0)
    step.apply(model, ctx)
    (fact,) = [fact for fact in ctx.facts if fact.name == "removed_units"]
    assert fact.value == removed
    found = {fact.name: fact.value for fact in ctx.facts}
    if not removed:
        assert fact.reason == (
            "no removal was shown to be tolerable: of 1 trial, in 0 the loss rose too much, 1 were "
            "open after all their samples, 0 could not be made. More samples of val, or a larger "
            "`tolerance`, decide more of them"
        )
        assert "kept_macs" not in found
        return
    assert fact.detail == {"group": "1", "of": 8, "kind": "channels"}
    assert found["kept_macs"] == 0.5
    assert found["kept_parameters"] == pytest.approx((4 * 65 + 3 * 5) / (8 * 65 + 3 * 9))
    assert float(found["removal_error"] or 0) < 1e-9


@pytest.mark.parametrize(("mean", "verdict"), [(0.5, "above"), (-0.5, "below")])
def test_the_test_of_the_rise_stops_early_where_it_is_clear(mean: float, verdict: str) -> None:
    test = RiseTest(limit=0.0, clip=1.0, size=1000, confidence=0.95)
    values = mean + 0.3 * torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for start in range(0, 1000, 50):
        if test.update(values[start : start + 50]) is not None:
            break
    assert test.verdict == verdict
    assert test.seen <= 100


def test_the_test_of_the_rise_errs_as_seldom_as_it_says() -> None:
    generator = torch.Generator().manual_seed(1)
    wrong = 0
    for _ in range(200):
        values = torch.randn(200, generator=generator).clamp(-3, 3)
        values += 0.02 - values.mean()  # a little above the limit
        test = RiseTest(limit=0.0, clip=4.0, size=200, confidence=0.95)
        for start in range(0, 150, 10):  # never all of them, which would decide by the plain mean
            if test.update(values[start : start + 10]) is not None:
                break
        wrong += test.verdict == "below"
    assert wrong <= 18  # 5 % of 200 are 10; P(more than 18) < 1 % at most
