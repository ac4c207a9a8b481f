from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from overhaul.core import ModelError, Progress, RunFolderError, model_tensors
from overhaul.distillation import Distill, SwapModel
from overhaul.evaluation import predict
from overhaul.pruning import PruneChannels, PruneWeights
from overhaul.running import Recipe, load_model
from overhaul.testing import TinyCNN, tiny_cnn, tiny_task
from overhaul.training import Train
from overhaul.transfer import ReplaceHead

QUIET = Progress(quiet=True)


def test_a_changed_model_is_rebuilt_from_its_factory(tmp_path: Path) -> None:
    recipe = Recipe(
        SwapModel(factory=tiny_cnn, arguments={"width": 3}),
        ReplaceHead(),
        PruneWeights(sparsity=0.5),
    )
    run = recipe.run(tiny_cnn(), tiny_task(), out=tmp_path, cost=False, progress=QUIET)
    torch.manual_seed(7)
    rebuilt = load_model(tmp_path, TinyCNN())
    expected = model_tensors(run.model)
    assert expected.keys() == model_tensors(rebuilt).keys()
    assert all(torch.equal(expected[n], t) for n, t in model_tensors(rebuilt).items())


def test_the_weights_load_into_the_users_class(tmp_path: Path) -> None:
    recipe = Recipe(PruneWeights(sparsity=0.5))
    run = recipe.run(tiny_cnn(), tiny_task(), out=tmp_path, cost=False, progress=QUIET)
    torch.manual_seed(7)
    fresh = TinyCNN()
    fresh.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    images = torch.rand(3, 1, 8, 8)
    assert torch.equal(fresh.eval()(images), run.model.eval()(images))


def test_another_structure_is_refused(tmp_path: Path) -> None:
    recipe = Recipe(PruneWeights(sparsity=0.5))
    recipe.run(tiny_cnn(), tiny_task(), out=tmp_path, cost=False, progress=QUIET)
    with pytest.raises(ModelError, match=r"not start from a TinyCNN .*conv.weight is .* Pass the"):
        load_model(tmp_path, tiny_cnn(width=9))
    with pytest.raises(ModelError, match=r"needs a model as `original`, got .* Call the factory"):
        load_model(tmp_path, tiny_cnn)  # type: ignore[arg-type]


def test_what_a_run_has_made_of_the_model_is_refused(tmp_path: Path) -> None:
    recipe = Recipe(PruneChannels(macs=0.5))
    run = recipe.run(tiny_cnn(), tiny_task(), out=tmp_path, cost=False, progress=QUIET)
    assert run.folder.manifest()["goal"] == {"max_drop": 0.01}
    with pytest.raises(ModelError, match=r"as it was before the first step.* not what the run has"):
        load_model(tmp_path, run.model)


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"holds no finished run"):
        load_model(tmp_path, tiny_cnn())


def test_the_network_of_the_control_is_made_again(tmp_path: Path) -> None:
    recipe = Recipe(
        SwapModel(factory=tiny_cnn, arguments={"width": 3}),
        Train(epochs=2, objective=Distill(weight=1.0), keep="last"),
    )
    run = recipe.run(tiny_cnn(), tiny_task(), out=tmp_path, cost=False, progress=QUIET)
    alone = load_model(tmp_path / "control", tiny_cnn())
    expected, found = model_tensors(run.model), model_tensors(alone)
    assert {name: t.shape for name, t in found.items()} == {n: t.shape for n, t in expected.items()}
    assert not torch.equal(expected["conv.weight"], found["conv.weight"])
    predictions = predict(alone, tiny_task().prepare().test.open())
    accuracy = tiny_task().metrics(predictions.outputs, predictions.targets)["accuracy"]
    assert run.verdict.control is not None
    assert accuracy == pytest.approx(run.verdict.control.reference_value)
