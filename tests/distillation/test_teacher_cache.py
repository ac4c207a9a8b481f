from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import (
    Batch,
    Context,
    CorruptedFileError,
    Network,
    RunFolderError,
    SpecError,
    model_tensors,
)
from overhaul.distillation import Distill, Hints, TeacherCache
from overhaul.distillation._teacher_cache import CachedTeacher
from overhaul.testing import tiny_cnn, tiny_multi_task
from overhaul.training import SGD, Augmentation, Flip, Train

MakeContext = Callable[..., Context]


class Counted(nn.Module):
    """A teacher that counts the samples that it saw."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(64, 3), 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        out: Tensor = self.layer(x.flatten(1))
        return out


def batch_of(x: Tensor) -> Batch:
    return Batch((x,), torch.zeros(len(x)).long(), torch.arange(len(x)))


def cached(teacher: nn.Module, ctx: Context, folder: Path, **more: Any) -> CachedTeacher:
    return CachedTeacher(TeacherCache(folder=str(folder), **more), teacher.eval(), ctx)


def outputs_of(teacher: CachedTeacher, x: Tensor) -> Tensor:
    outputs = teacher.see(batch_of(x)).outputs
    assert isinstance(outputs, Tensor)
    return outputs.detach()


def trained(
    make_context: MakeContext, name: str, cache: TeacherCache | None, *changes: Augmentation
) -> tuple[dict[str, Tensor], Context]:
    torch.manual_seed(0)
    student, teacher = tiny_cnn(width=2), tiny_cnn(width=4)
    ctx = make_context(teacher)
    ctx.checkpoints = ctx.checkpoints.part(name)
    plan = Train(
        epochs=3,
        batch_size=8,
        optimizer=SGD(lr=0.05),
        objective=Distill(teacher=teacher, cache=cache, weight=0.9),
        augmentations=changes,
        keep="last",
    )
    return model_tensors(plan.apply(student, ctx)), ctx


def found(ctx: Context) -> list[tuple[int, int]]:
    facts = [fact for fact in ctx.facts if fact.name == "teacher_cache"]
    return [(int(fact.value or 0), int(fact.n or 0)) for fact in facts]


def test_training_gives_the_same_weights_with_it(make_context: MakeContext, tmp_path: Path) -> None:
    cache = TeacherCache(folder=str(tmp_path / "kept"))
    plain, _ = trained(make_context, "plain", None)
    first, ctx = trained(make_context, "first", cache)
    second, again = trained(make_context, "second", cache)
    for name, tensor in plain.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(second[name], tensor, rtol=1e-5, atol=1e-6)
    samples = len(ctx.data.train)
    assert found(ctx) == [(0, samples), (samples, samples), (samples, samples)]
    assert found(again) == [(samples, samples)] * 3


def test_an_augmented_image_never_gets_the_outputs_of_another(
    make_context: MakeContext, tmp_path: Path
) -> None:
    cache = TeacherCache(folder=str(tmp_path / "kept"))
    plain, _ = trained(make_context, "plain", None, Flip(probability=0.5))
    first, ctx = trained(make_context, "first", cache, Flip(probability=0.5))
    second, again = trained(make_context, "second", cache, Flip(probability=0.5))
    for name, tensor in plain.items():
        torch.testing.assert_close(first[name], tensor, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(second[name], tensor, rtol=1e-5, atol=1e-6)
    # Each image has two forms, so the second epoch finds some; the same seed draws the same.
    assert 0 < found(ctx)[1][0] < found(ctx)[1][1]
    assert all(hits == asked for hits, asked in found(again))


def test_that_nothing_is_found_is_said(make_context: MakeContext, tmp_path: Path) -> None:
    ctx = make_context(tiny_cnn())
    teacher = cached(Counted(), ctx, tmp_path)
    for epoch in (1, 2):
        teacher.see(batch_of(torch.randn(4, 1, 8, 8)))
        teacher.log(epoch)
    first, second = [fact for fact in ctx.facts if fact.name == "teacher_cache"]
    assert first.reason is None
    assert "augmentations draw anew in each epoch" in str(second.reason)


def test_a_sample_is_computed_once_and_one_new_one_runs_its_batch(
    make_context: MakeContext, tmp_path: Path
) -> None:
    counted, x = Counted(), torch.randn(6, 1, 8, 8)
    teacher = cached(counted, make_context(tiny_cnn()), tmp_path)
    wanted = outputs_of(teacher, x)
    assert torch.equal(outputs_of(teacher, x.flip(0)), wanted.flip(0))
    assert counted.seen == 6
    outputs_of(teacher, torch.cat([x[:1], x[:1] + 1]))
    assert counted.seen == 8
    torch.testing.assert_close(outputs_of(teacher, x[:1] + 1), counted(x[:1] + 1).detach())


def test_another_teacher_or_precision_finds_nothing(
    make_context: MakeContext, tmp_path: Path
) -> None:
    x, ctx = torch.randn(4, 1, 8, 8), make_context(tiny_cnn())
    first, second = Counted(), Counted()
    outputs_of(cached(first, ctx, tmp_path), x)
    assert torch.equal(outputs_of(cached(second, ctx, tmp_path), x), second(x).detach())
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        half = outputs_of(cached(first, ctx, tmp_path), x)
        assert torch.equal(outputs_of(cached(first, ctx, tmp_path), x), half)
    assert half.dtype == torch.bfloat16


def test_the_file_does_not_grow_beyond_its_limit(make_context: MakeContext, tmp_path: Path) -> None:
    teacher = cached(Counted(), make_context(tiny_cnn()), tmp_path, max_bytes=2**16)
    for _ in range(40):
        teacher.see(batch_of(torch.randn(64, 1, 8, 8)))
    assert teacher.path.stat().st_size < 2**17
    assert teacher.asked == 40 * 64


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"match": (Hints(),)}, r"`cache` keeps outputs of the teacher, and hints needs more"),
        (
            {"teacher": (Network(factory=tiny_cnn), Network(factory=tiny_cnn))},
            "`cache` keeps the outputs of one teacher",
        ),
    ],
    ids=["layers", "several"],
)
def test_more_than_outputs_of_one_teacher_is_refused(
    fields: dict[str, Any], message: str, make_context: MakeContext, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=message):
        Distill(cache=TeacherCache(folder=str(tmp_path)), **fields).bind(
            tiny_cnn(), make_context(tiny_cnn())
        )


def test_a_cache_goes_through_a_recipe_file() -> None:
    plan = Distill(cache=TeacherCache(folder="runs/teacher", max_bytes=10**6))
    assert Distill.from_yaml(plan.to_yaml()) == plan


def test_what_is_no_cache_is_refused_before_work(make_context: MakeContext, tmp_path: Path) -> None:
    ctx = make_context(tiny_cnn())
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunFolderError, match=r"cannot be kept in .*Choose another `folder`"):
        Distill(cache=TeacherCache(folder=str(tmp_path / "file"))).preflight(
            tiny_cnn(), ctx.task, ctx.data
        )
    cache = TeacherCache(folder=str(tmp_path))
    cache.path.write_bytes(b"this is no data base" * 100)
    with pytest.raises(CorruptedFileError, match=r"is corrupted: .*Delete it"):
        Distill(cache=cache).preflight(tiny_cnn(), ctx.task, ctx.data)


@pytest.mark.parametrize("value", [b"", b"1234"])
def test_an_output_that_was_changed_on_disk_is_refused(
    value: bytes, make_context: MakeContext, tmp_path: Path
) -> None:
    teacher, x = cached(Counted(), make_context(tiny_cnn()), tmp_path), torch.rand(4, 1, 8, 8)
    wanted = outputs_of(teacher, x)
    assert torch.equal(outputs_of(teacher, x), wanted)
    with teacher.file:
        teacher.file.execute(
            "UPDATE outputs SET value = CAST(? || substr(value, 5) AS BLOB)", (value,)
        )
    with pytest.raises(CorruptedFileError, match="not what was written"):
        outputs_of(teacher, x)


def test_a_teacher_without_weights_can_be_kept(make_context: MakeContext, tmp_path: Path) -> None:
    teacher, x = cached(nn.Flatten(), make_context(tiny_cnn()), tmp_path), torch.rand(4, 1, 8, 8)
    assert torch.equal(outputs_of(teacher, x), outputs_of(teacher, x))
    assert (teacher.asked, teacher.found) == (8, 4)


def test_several_outputs_are_refused_before_work(tmp_path: Path) -> None:
    task, model = tiny_multi_task(), Named()
    with pytest.raises(SpecError, match=r"one tensor .* and this task has several \("):
        Distill(teacher=model, cache=TeacherCache(folder=str(tmp_path))).preflight(
            model, task, task.prepare()
        )


class Named(nn.Module):
    """Has an output for each part of the task."""

    def __init__(self) -> None:
        super().__init__()
        self.number, self.odd = nn.Linear(64, 3), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"number": self.number(x.flatten(1)), "odd": self.odd(x.flatten(1))}
