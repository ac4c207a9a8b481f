"""Whole runs: two tasks on real digits against single-task models, distilled and deployed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from overhaul.core import Context, Progress, model_fingerprint
from overhaul.deploy import Deploy, load
from overhaul.distillation import Distill, SoftTargets, SwapModel
from overhaul.evaluation import Goal, count_macs
from overhaul.multitask import AddHeads, MultiTask
from overhaul.running import Recipe, Run
from overhaul.tasks import Classification, Digits, Regression
from overhaul.testing import tiny_cnn, tiny_multi_task
from overhaul.training import AdamW, Sum, Train
from overhaul.transfer import Freeze

QUIET = Progress(quiet=True)
FAST = {"batch_size": 32, "optimizer": AdamW(lr=5e-3)}


def digits() -> tuple[Tensor, Tensor]:
    images, labels = Digits().load()["train"]
    return images[:600], labels[:600]


def digits_and_parity(hidden: float = 0.0) -> MultiTask:
    """Return the two tasks; a part of the labels of each may be hidden."""
    images, labels = digits()
    draws = torch.rand(2, len(labels), generator=torch.Generator().manual_seed(0))
    targets = {
        "digit": torch.where(draws[0] < hidden, -1, labels),
        "parity": torch.where(draws[1] < hidden, -1, labels % 2),
    }
    return MultiTask(
        tasks={"digit": Classification(classes=10), "parity": Classification(classes=2)},
        train=(images, targets),
    )


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """A model that tells the ten digits apart, and knows nothing of parity."""
    images, labels = digits()
    task = Classification(train=(images, labels))
    run = Recipe(Train(epochs=4, **FAST)).run(
        tiny_cnn(classes=10),
        task,
        out=tmp_path_factory.mktemp("single") / "run",
        control=False,
        cost=False,
        progress=QUIET,
    )
    return run.model


def run_recipe(recipe: Recipe, model: nn.Module, task: MultiTask, out: Path, **more: Any) -> Run:
    settings = {"goal": Goal(max_drop=0.1), "cost": False, "progress": QUIET, **more}
    return recipe.run(model, task, out=out, **settings)


def on_test(run: Run, subject: str) -> dict[str, float]:
    return {
        fact.name: float(fact.value or 0)
        for fact in run.facts
        if fact.split == "test" and fact.subject == subject and "accuracy" in fact.name
    }


def test_two_tasks_on_a_pretrained_model_against_single_task_models(
    pretrained: nn.Module, tmp_path: Path
) -> None:
    before = model_fingerprint(pretrained)
    recipe = Recipe(AddHeads(trunk="dropout"), Train(epochs=4, **FAST))
    run = run_recipe(recipe, pretrained, digits_and_parity(), tmp_path / "run")
    assert model_fingerprint(pretrained) == before
    assert run.verdict.original is None
    assert "AddHeads first" in (run.verdict.original_reason or "")
    control = run.verdict.control
    assert control is not None
    assert control.metric == "mean_accuracy"
    assert control.reference == "control"
    final, single = on_test(run, "final"), on_test(run, "control")
    assert final["mean_accuracy"] == pytest.approx(
        (final["digit_accuracy"] + final["parity_accuracy"]) / 2
    )
    assert control.value == pytest.approx(final["mean_accuracy"])
    assert control.reference_value == pytest.approx(single["mean_accuracy"])
    assert min(*final.values(), *single.values()) > 0.7
    # The reference is a trained model for each task, not the method's own first epoch.
    of_control = {f.name: f for f in run.facts if f.subject.startswith("control/")}
    assert of_control["trunk"].detail["shared"] is False
    assert of_control["best_epoch"].value != 0
    of_final = {f.name: f for f in run.facts if f.subject == "1 train"}
    grown = of_control["parameters"].value - of_final["parameters"].value  # type: ignore[operator]
    assert grown == 60 + 12  # one more trunk: a convolution and a BatchNorm
    again = run_recipe(recipe, pretrained, digits_and_parity(), tmp_path / "run")
    assert model_fingerprint(again.model) == model_fingerprint(run.model)
    assert run.report().is_file()


def test_partly_labelled_data_is_learned(pretrained: nn.Module, tmp_path: Path) -> None:
    task = digits_and_parity(hidden=0.6)
    recipe = Recipe(AddHeads(), Train(epochs=4, **FAST))
    run = run_recipe(recipe, pretrained, task, tmp_path / "run", control=False)
    assert min(on_test(run, "final").values()) > 0.7
    losses = [float(fact.value or 0) for fact in run.facts if fact.name == "train_loss"]
    assert losses[-1] < losses[0]


def test_data_of_each_task_is_learned_together(pretrained: nn.Module, tmp_path: Path) -> None:
    images, labels = digits()
    task = MultiTask(
        tasks={
            "digit": Classification(train=(images[:300], labels[:300])),
            "ink": Regression(train=(images[300:], images[300:].mean((1, 2, 3)))),
        },
        train_limit=300,
    )
    recipe = Recipe(
        AddHeads(),
        Freeze(layers=("trunk",)),
        Train(epochs=4, combiner=Sum(weights={"ink": 9.0}), **FAST),
    )
    run = run_recipe(recipe, pretrained, task, tmp_path / "run", control=False)
    assert run.verdict.control_reason is not None
    names = {fact.name for fact in run.facts if fact.split == "test"}
    assert {"mean_score", "digit_accuracy", "ink_r2", "ink_mae"} <= names
    for name, parameter in run.model.named_parameters():
        if name.startswith("trunk.conv"):
            original = pretrained.get_parameter(name.removeprefix("trunk."))
            assert torch.equal(parameter, original)


def test_a_student_is_distilled_from_a_multi_task_teacher(
    pretrained: nn.Module, tmp_path: Path
) -> None:
    task = digits_and_parity()
    teacher = run_recipe(
        Recipe(AddHeads(), Train(epochs=3, **FAST)),
        pretrained,
        task,
        tmp_path / "teacher",
        control=False,
    ).model
    recipe = Recipe(
        SwapModel(factory=Student, arguments={"width": 3}),
        Train(epochs=6, objective=Distill(match=[SoftTargets(temperature=2)], weight=0.9), **FAST),
    )
    run = run_recipe(recipe, teacher, task, tmp_path / "student")
    assert run.verdict.original is not None
    assert run.verdict.control is not None
    assert min(on_test(run, "final").values()) > 0.6


class Student(nn.Module):
    """A small network for both tasks."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.trunk = tiny_cnn(width=width, classes=12)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        outputs: Tensor = self.trunk(x)
        return {"digit": outputs[:, :10], "parity": outputs[:, 10:]}


def test_distilling_from_an_equal_teacher_costs_nothing(
    make_context: Callable[..., Context],
) -> None:
    teacher = tiny_cnn()
    ctx = make_context(teacher, task=tiny_multi_task())
    model = AddHeads().apply(teacher, ctx).eval()
    batch = next(ctx.data.train.in_order(8))
    losses = Distill(teacher=model).bind(model, ctx)(model, batch)
    assert list(losses) == ["number", "odd", "number_soft", "odd_soft"]
    assert float(losses["number_soft"].detach()) == pytest.approx(0.0, abs=1e-6)
    assert float(losses["odd_soft"].detach()) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("fields", [{"trunk": "bn"}, {"shared": False}])
def test_it_is_deployed_with_named_outputs(
    make_context: Callable[..., Context], fields: dict[str, Any]
) -> None:
    model = tiny_cnn()
    ctx = make_context(model, task=tiny_multi_task())
    changed = AddHeads(**fields).apply(tiny_cnn(), ctx)
    Deploy(engines=("torch", "onnxruntime"), timing_s=0.05, cost=False).apply(changed, ctx)
    refused = [fact.reason for fact in ctx.facts if fact.name == "skipped"]
    assert refused == []
    artifact = load(ctx.artifact_folder)
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        wanted = changed.eval()(x)
    found = artifact(x)
    assert isinstance(found, dict)
    assert found.keys() == wanted.keys()
    for name, output in wanted.items():
        assert torch.allclose(found[name], output, atol=1e-5)
    names = [info.name for info in artifact.signature.outputs]
    assert names == ["number", "odd"]


def test_layers_that_are_gone_are_not_in_the_exported_model(
    make_context: Callable[..., Context],
) -> None:
    ctx = make_context(tiny_cnn(), task=tiny_multi_task())
    changed = AddHeads(trunk="conv").apply(tiny_cnn(), ctx).eval()
    program = torch.export.export(changed, (torch.rand(2, 1, 8, 8),))
    assert {name.split(".")[1] for name in program.state_dict} == {"conv", "number", "odd"}
    assert count_macs(changed, next(ctx.data.val.in_order(2))).per_sample == 64 * 6 * 9 + 6 * 5
