from copy import deepcopy
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from overhaul.core import (
    Context,
    ModelError,
    OrderError,
    Progress,
    RunFolder,
    RunFolderError,
    SpecError,
    Step,
    model_fingerprint,
    model_tensors,
)
from overhaul.distillation import Distill, SwapModel
from overhaul.evaluation import Goal
from overhaul.pruning import PruneWeights
from overhaul.quantization import Quantize
from overhaul.running import Recipe, Run
from overhaul.tasks import Classification
from overhaul.testing import TinyCNN, tiny_arrays, tiny_cnn, tiny_task
from overhaul.training import AdamW, Train
from overhaul.transfer import ReplaceHead

QUIET = Progress(quiet=True)


def run(recipe: Recipe, model: nn.Module, out: Path, **options: object) -> Run:
    return recipe.run(
        model,
        tiny_task(),
        out=out,
        cost=False,
        progress=QUIET,
        **options,  # type: ignore[arg-type]
    )


def test_a_recipe_is_data() -> None:
    recipe = Recipe(PruneWeights(sparsity=0.5), Recipe(Train(epochs=2), Train(epochs=1)))
    assert [type(step).__name__ for step in recipe.flat()] == ["PruneWeights", "Train", "Train"]
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    assert eval(repr(recipe)) == recipe
    assert recipe.model_copy(update={"steps": (Train(epochs=2),)}) == Recipe(Train(epochs=2))
    swept = [Recipe(PruneWeights(sparsity=s), Train(epochs=1)) for s in (0.5, 0.7)]
    assert swept[0] != swept[1]


def test_an_empty_recipe_is_refused() -> None:
    with pytest.raises(SpecError, match=r"at least one step"):
        Recipe()


def test_what_is_no_step_is_refused() -> None:
    with pytest.raises(SpecError, match=r"steps\.0"):
        Recipe(3)  # type: ignore[arg-type]


def test_the_model_that_is_passed_in_is_untouched(tmp_path: Path) -> None:
    model = tiny_cnn().eval()
    model.fc.bias.requires_grad_(False)
    calls: list[int] = []
    model.register_forward_hook(lambda *_: calls.append(1))
    before = model_fingerprint(model)
    run(Recipe(PruneWeights(sparsity=0.5), Train(epochs=1)), model, tmp_path / "run")
    assert model_fingerprint(model) == before
    assert len(model._forward_hooks) == 1
    assert not model.fc.bias.requires_grad
    assert not any(module.training for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_order_is_checked_before_anything_runs(tmp_path: Path) -> None:
    model = TinyCNN(classes=9)
    with pytest.raises(
        OrderError, match=r"step 0 of Train: Train needs .* ReplaceHead or SwapModel"
    ):
        run(Recipe(Train(epochs=1)), model, tmp_path / "run")
    assert not (tmp_path / "run" / "steps").exists()
    finished = run(Recipe(ReplaceHead(), Train(epochs=1)), model, tmp_path / "fits")
    assert finished.verdict.original is None
    assert finished.verdict.original_reason is not None


def test_a_frozen_model_cannot_be_trained(tmp_path: Path) -> None:
    with pytest.raises(OrderError, match=r"no parameter requires a gradient"):
        run(Recipe(Train(epochs=1)), tiny_cnn().requires_grad_(False), tmp_path / "run")


def test_the_control_gets_the_same_training_without_the_method(tmp_path: Path) -> None:
    recipe = Recipe(
        SwapModel(factory=tiny_cnn, arguments={"width": 3}),
        Train(epochs=2, objective=Distill()),
        PruneWeights(sparsity=0.5),
        Train(epochs=1),
    )
    assert recipe.control() == Recipe(
        SwapModel(factory=tiny_cnn, arguments={"width": 3}), Train(epochs=2), Train(epochs=1)
    )
    finished = run(recipe, tiny_cnn(), tmp_path / "run")
    assert finished.verdict.control is not None
    subjects = {f.subject for f in finished.facts if (f.split, f.name) == ("test", "accuracy")}
    assert subjects == {"original", "final", "control"}


def test_a_recipe_without_training_needs_no_control(tmp_path: Path) -> None:
    finished = run(Recipe(PruneWeights(sparsity=0.2)), tiny_cnn(), tmp_path / "run")
    assert "trains nothing" in (finished.verdict.control_reason or "")


def test_plain_training_is_its_own_control(tmp_path: Path) -> None:
    finished = run(Recipe(Train(epochs=1)), tiny_cnn(), tmp_path / "run")
    assert "its own control" in (finished.verdict.control_reason or "")


def test_a_control_that_is_not_wanted_is_not_run(tmp_path: Path) -> None:
    recipe = Recipe(PruneWeights(sparsity=0.5), Train(epochs=1))
    finished = run(recipe, tiny_cnn(), tmp_path / "run", control=False)
    assert "not asked for" in (finished.verdict.control_reason or "")
    assert not (tmp_path / "run" / "control").exists()


def states(folder: Path) -> dict[str, float]:
    return {
        path.name: (path / "state.json").stat().st_mtime_ns for path in (folder / "steps").iterdir()
    }


def test_a_changed_recipe_uses_exactly_the_steps_before_the_change(tmp_path: Path) -> None:
    out = tmp_path / "run"
    first = Recipe(PruneWeights(sparsity=0.5), Train(epochs=1), Train(epochs=1))
    run(first, tiny_cnn(), out)
    before = states(out)
    changed = Recipe(PruneWeights(sparsity=0.5), Train(epochs=1), Train(epochs=2))
    run(changed, tiny_cnn(), out)
    after = states(out)
    assert {name for name in before if before[name] == after[name]} == {"0", "1"}


def test_another_model_or_data_or_seed_starts_anew(tmp_path: Path) -> None:
    out = tmp_path / "run"
    recipe = Recipe(PruneWeights(sparsity=0.5))
    run(recipe, tiny_cnn(), out)
    times = [states(out)["0"]]
    other = tiny_cnn()
    with torch.no_grad():
        other.fc.bias[0] += 1e-3
    run(recipe, other, out)
    times.append(states(out)["0"])
    x, y = tiny_arrays(48, seed=1)
    x[0, 0, 0, 0] += 1e-3
    task = Classification(train=(x, y), val=tiny_arrays(24, seed=2), test=tiny_arrays(24, seed=3))
    recipe.run(other, task, out=out, progress=QUIET, cost=False)
    times.append(states(out)["0"])
    recipe.run(other, task, out=out, seed=1, progress=QUIET, cost=False)
    times.append(states(out)["0"])
    assert len(set(times)) == 4


def test_two_runs_in_one_folder_at_once_are_refused(tmp_path: Path) -> None:
    out = tmp_path / "run"
    with RunFolder(out).locked(), pytest.raises(RunFolderError, match=r"another run is at work"):
        run(Recipe(PruneWeights(sparsity=0.5)), tiny_cnn(), out)


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("all my work")
    with pytest.raises(RunFolderError, match=r"something else than a run"):
        run(Recipe(PruneWeights(sparsity=0.5)), tiny_cnn(), tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "all my work"


class SecretlyWider(Step):
    """A step of a user who forgot `ctx.edit`."""

    def apply(self, model: nn.Module, ctx: Context) -> nn.Module:
        model.extra = nn.Linear(2, 2)
        return model


def test_a_structure_that_is_not_recorded_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"SecretlyWider changed the structure .* `ctx.edit`"):
        run(Recipe(SecretlyWider()), tiny_cnn(), tmp_path / "run")


def test_a_lambda_is_refused_before_any_work_with_its_field(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"`swap_model.factory` holds .*lambda"):
        run(Recipe(SwapModel(factory=lambda: tiny_cnn())), tiny_cnn(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_network_as_teacher_runs_and_is_told_apart_by_its_weights(tmp_path: Path) -> None:
    teacher, out = TinyCNN(), tmp_path / "run"
    recipe = Recipe(Train(epochs=1, objective=Distill(teacher=teacher)))
    run(recipe, tiny_cnn(), out)
    before = states(out)["0"]
    run(recipe, tiny_cnn(), out)
    assert states(out)["0"] == before
    other = deepcopy(teacher)
    with torch.no_grad():
        other.fc.bias.add_(1)
    run(Recipe(Train(epochs=1, objective=Distill(teacher=other))), tiny_cnn(), out)
    assert states(out)["0"] != before
    assert "fingerprint" in (out / "recipe.yaml").read_text()


def test_a_teacher_file_with_other_content_starts_the_step_anew(tmp_path: Path) -> None:
    out, weights = tmp_path / "run", tmp_path / "teacher.safetensors"
    recipe = Recipe(Train(epochs=1, objective=Distill(teacher=str(weights))))
    times = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        save_file(TinyCNN().state_dict(), weights)
        run(recipe, tiny_cnn(), out)
        times.append(states(out)["0"])
    assert times[0] == times[1] != times[2]


def test_a_better_student_is_proved_and_a_broken_one_refuted(tmp_path: Path) -> None:
    good = tiny_cnn()
    x, y = tiny_arrays(240, seed=5)
    task = Classification(train=tiny_arrays(96, seed=1), val=tiny_arrays(48, seed=2), test=(x, y))
    trained = Recipe(Train(epochs=12, batch_size=8, optimizer=AdamW(lr=1e-2))).run(
        good, task, out=tmp_path / "train", goal=Goal(max_drop=0.02), cost=False, progress=QUIET
    )
    assert trained.verdict.status == "proved"
    broken = Recipe(PruneWeights(sparsity=0.99)).run(
        trained.model,
        task,
        out=tmp_path / "break",
        goal=Goal(max_drop=0.02),
        cost=False,
        progress=QUIET,
    )
    assert broken.verdict.status == "refuted"


def test_facts_say_what_zeros_are_worth(tmp_path: Path) -> None:
    finished = run(Recipe(PruneWeights(sparsity=0.9)), TinyCNN(width=32), tmp_path / "run")
    by_subject = {(f.name, f.subject): f.value for f in finished.facts}
    before, after = "original", "0 prune_weights"
    assert by_subject["size_bytes", after] == by_subject["size_bytes", before]
    assert by_subject["compressed_bytes", after] < 0.5 * by_subject["compressed_bytes", before]  # type: ignore[operator]


def test_the_returned_model_is_an_ordinary_module(tmp_path: Path) -> None:
    finished = run(Recipe(PruneWeights(sparsity=0.5)), tiny_cnn(), tmp_path / "run")
    assert type(finished.model) is TinyCNN
    loss: Tensor = finished.model(torch.rand(2, 1, 8, 8)).sum()
    loss.backward()
    assert finished.model.fc.weight.grad is not None
    assert isinstance(model_tensors(finished.model)["fc.weight"], Tensor)


def test_a_goal_that_nothing_could_miss_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"max_drop of the goal.*For 2 points write 0\.02"):
        run(Recipe(PruneWeights(sparsity=0.5)), tiny_cnn(), tmp_path / "run", goal=Goal(max_drop=2))


def test_weights_that_are_integers_cannot_be_pruned_and_say_so(tmp_path: Path) -> None:
    recipe = Recipe(Quantize(batches=1), PruneWeights(sparsity=0.5))
    with pytest.raises(ModelError, match=r"in few bits already\. Put it before Quantize"):
        run(recipe, tiny_cnn(), tmp_path / "run")
