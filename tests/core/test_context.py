"""What a run provides to a step."""

from pathlib import Path
from typing import cast

import torch
from torch import nn

from overhaul.core import CheckpointFolder, Context, Splits, Task
from tests.core.samples import AddRandomLayer, KeepNames, Net, RenameLayer


def context(folder: Path, seed: int = 0) -> Context:
    """Return a context for what needs neither a task nor data."""
    return Context(
        task=cast(Task, None),
        data=cast(Splits, None),
        original=nn.Identity(),
        checkpoints=CheckpointFolder(folder),
        artifact_folder=folder,
        seed=seed,
        label="0 edit",
    )


def test_an_edit_is_recorded_and_renames_what_is_carried(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    ctx.carry(KeepNames(names=("first.weight", "last.weight")))
    ctx.carry(KeepNames(names=("last.bias",)))
    model = ctx.edit(Net(), RenameLayer(old="first", new="second"))
    assert ctx.carried == [
        KeepNames(names=("second.weight", "last.weight")),
        KeepNames(names=("last.bias",)),
    ]
    model = ctx.edit(model, RenameLayer(old="last"))
    assert ctx.carried == [KeepNames(names=("second.weight",))]
    assert ctx.edits == [RenameLayer(old="first", new="second"), RenameLayer(old="last")]
    assert [name for name, _ in model.named_children()] == ["norm", "second"]


def test_an_edit_draws_the_same_weights_in_the_same_run(tmp_path: Path) -> None:
    def drawn(seed: int, *, before: int = 0) -> torch.Tensor:
        ctx = context(tmp_path, seed)
        model: nn.Module = Net()
        for number in range(before):
            model = ctx.edit(model, AddRandomLayer(name=f"before{number}"))
        torch.rand(1)  # what happens to be drawn elsewhere has no say
        model = ctx.edit(model, AddRandomLayer(name="extra"))
        return model.get_parameter("extra.weight").detach()

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    assert not torch.equal(drawn(0), drawn(0, before=1))


def test_a_fact_is_about_the_step_unless_it_says_otherwise(tmp_path: Path) -> None:
    ctx = context(tmp_path)
    ctx.log("sparsity", 0.5)
    ctx.log("accuracy", 0.9, subject="original", split="val", n=10)
    assert [(fact.subject, fact.name, fact.value) for fact in ctx.facts] == [
        ("0 edit", "sparsity", 0.5),
        ("original", "accuracy", 0.9),
    ]


def test_random_numbers_depend_on_seed_and_purpose_alone(tmp_path: Path) -> None:
    ctx, other = context(tmp_path), context(tmp_path, seed=1)
    torch.rand(3)
    draws = [
        torch.rand(2, generator=generator)
        for generator in (
            ctx.generator("shuffle", 1),
            ctx.generator("shuffle", 1),
            ctx.generator("shuffle", 2),
            other.generator("shuffle", 1),
        )
    ]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[3])
    with ctx.seeded("dropout"):
        first = torch.rand(2)
    with ctx.seeded("dropout"):
        assert torch.equal(torch.rand(2), first)
