"""Every wrong use gets the error that it deserves: the rule, the value, what to do."""

import os
from pathlib import Path

import pytest
from filelock import FileLock

import overhaul as oh
from examples.wrong_uses import (
    QUIET,
    USES,
    InterruptedNetwork,
    Message,
    change_one_byte,
    messages,
    network,
    page,
    small_disk,
)
from overhaul.core import RunFolder, model_tensors

ROOT = Path(__file__).resolve().parents[2]

EXPECTED: dict[str, tuple[type[oh.OverhaulError], tuple[str, ...]]] = {
    "wrong_shape": (oh.ModelError, ("inputs of [2, 8, 8] float32", "Give the data the shape")),
    "labels_out_of_range": (
        oh.DataError,
        ("must be in 0..9", "got 10 at sample 1234", "pass classes=11"),
    ),
    "nan_in_the_data": (oh.DataError, ("NaN in input 0 of sample 1234", "Fill in or drop")),
    "val_equals_test": (
        oh.DataError,
        ("must not share samples", "397 of 397", "leave `test` out"),
    ),
    "reading_the_test_split": (oh.SealedTestError, ("sealed", "indexing it", "Use `val`")),
    "no_data": (oh.DataError, ("has no data", "Pass train=(x, y)", "digits")),
    "empty_data": (oh.DataError, ("`val` is empty", "Leave it out")),
    "unknown_step": (
        oh.SpecError,
        ("unknown step 'prune_wieghts'", "Did you mean 'prune_weights'?", "Known: "),
    ),
    "unknown_field": (oh.SpecError, ("no field 'sparsty'", "Did you mean 'sparsity'?")),
    "wrong_value": (oh.SpecError, ("must be less than 1", "got 80", "write 0.9")),
    "wrong_type": (oh.SpecError, ("`epochs` of train must be a whole number", "got 'many'")),
    "repeated_key": (oh.SpecError, ("'epochs' is written 2 times", "line 1", "Keep one")),
    "no_yaml": (oh.SpecError, ("not YAML", "line 2, column 10", "expected ',' or '}'")),
    "wrong_order": (
        oh.OrderError,
        (
            "step 0 of Train -> ReplaceHead",
            "7 outputs",
            "10 classes",
            "ReplaceHead or SwapModel before it",
        ),
    ),
    "step_given_twice": (oh.OrderError, ("step 1 of Deploy -> Deploy", "Give it once")),
    "layers_that_do_not_exist": (oh.ModelError, ("'features.*' matches nothing", "Known: 0, 1")),
    "lambda_in_a_field": (
        oh.SpecError,
        ("`swap_model.factory`", "<lambda>", "Move it to the top level"),
    ),
    "weights_of_another_network": (
        oh.ModelError,
        ("'other.pt' do not belong to this Sequential", "and the model's", "Give the factory"),
    ),
    "weights_of_a_whole_module": (
        oh.ModelError,
        ("container.Sequential", "runs no code from files", "Save `model.state_dict()`"),
    ),
    "missing_extra": (
        oh.MissingExtraError,
        ("'onnxruntime'", "not installed", 'pip install "overhaul[onnx]"'),
    ),
    "loss_that_explodes": (
        oh.NonFiniteLossError,
        ("the loss became", "batch 1 of epoch 1", "Try a lower learning rate"),
    ),
    "full_disk": (oh.RunFolderError, ("disk/run/steps/1.unfinished",)),
    "two_runs_on_one_folder": (
        oh.RunFolderError,
        ("another run is at work in 'runs/first'", "another output folder"),
    ),
    "folder_of_something_else": (oh.RunFolderError, ("'thesis' holds", "empty or new folder")),
    "corrupted_checkpoint": (
        oh.CorruptedFileError,
        ("0.unfinished/2/tensors.safetensors' is corrupted", "SHA-256", "Delete '"),
    ),
    "corrupted_artifact": (
        oh.CorruptedFileError,
        ("model.pt2' is corrupted", "SHA-256", "run the recipe again"),
    ),
}
NAMES = [use.__name__ for uses in USES.values() for use in uses]


@pytest.fixture(scope="module")
def found() -> dict[str, Message]:
    """Return the message of each wrong use; all of them are done once."""
    return dict(zip(NAMES, messages([]), strict=True))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_use_is_refused_with_rule_value_and_remedy(
    name: str, found: dict[str, Message]
) -> None:
    kind, parts = EXPECTED[name]
    message = found[name]
    assert type(message.error) is kind
    for part in parts:
        assert part in message.text
    assert "\x1b" not in message.text


def test_every_expectation_is_of_a_use() -> None:
    assert EXPECTED.keys() == set(NAMES)


def test_the_page_is_up_to_date(found: dict[str, Message]) -> None:
    if "the disk is full" not in found["full_disk"].text:
        pytest.skip("the page is made where a small disk can be mounted, which takes root")
    written = (ROOT / "docs" / "errors.md").read_text("utf-8")
    made = page(found.values()) + "\n"
    assert written == made, "python examples/wrong_uses.py --markdown > docs/errors.md"


def test_a_full_disk_leaves_what_was_there_and_the_run_goes_on(here: Path) -> None:
    recipe = oh.Recipe(oh.PruneWeights(sparsity=0.5), oh.Train(epochs=2))
    task = oh.Classification(data="digits")
    with small_disk(kilobytes=120) as resize:
        with pytest.raises(oh.RunFolderError, match=r"disk is full|File too large"):
            recipe.run(network(), task, out="disk/run", cost=False, progress=QUIET)
        before = (here / "disk/run/steps/0/tensors.safetensors").read_bytes()
        assert RunFolder("disk/run").facts()[-1].subject == "0 prune_weights"
        assert not list((here / "disk").rglob(".tmp-*"))
        resize(10_000)
        resumed = recipe.run(network(), task, out="disk/run", cost=False, progress=QUIET)
        assert (here / "disk/run/steps/0/tensors.safetensors").read_bytes() == before
    straight = recipe.run(network(), task, out="straight", cost=False, progress=QUIET)
    wanted = model_tensors(straight.model)
    assert all(tensor.equal(wanted[name]) for name, tensor in model_tensors(resumed.model).items())


def test_a_corrupted_checkpoint_is_made_again_once_it_is_deleted(here: Path) -> None:
    recipe = oh.Recipe(oh.Train(epochs=3))
    task = oh.Classification(data="digits")
    model = InterruptedNetwork(*network().children())
    InterruptedNetwork.steps = 0
    with pytest.raises(KeyboardInterrupt, match=r"^$"):
        recipe.run(model, task, out="run", cost=False, progress=QUIET)
    checkpoint = here / "run/steps/0.unfinished/2"
    change_one_byte(checkpoint / "tensors.safetensors")
    with pytest.raises(oh.CorruptedFileError, match=r"Delete 'run/steps/0.unfinished/2'"):
        recipe.run(model, task, out="run", cost=False, progress=QUIET)
    for file in checkpoint.iterdir():
        file.unlink()
    checkpoint.rmdir()
    assert recipe.run(model, task, out="run", cost=False, progress=QUIET).facts


def test_a_corrupted_artifact_is_made_again_by_the_same_run(here: Path) -> None:
    recipe = oh.Recipe(oh.Deploy(engines=("torch",)))
    task = oh.Classification(data="digits")
    run = recipe.run(network(), task, out="run", cost=False, progress=QUIET)
    assert run.artifact is not None
    change_one_byte(run.artifact / "model.pt2")
    with pytest.raises(oh.CorruptedFileError, match=r"model\.pt2"):
        oh.load(run.artifact)
    recipe.run(network(), task, out="run", cost=False, progress=QUIET)
    assert oh.verify(run.artifact).files >= 2


def test_a_run_that_has_ended_leaves_the_folder_free(here: Path) -> None:
    recipe, task = oh.Recipe(oh.PruneWeights(sparsity=0.5)), oh.Classification(data="digits")
    for _ in range(2):
        recipe.run(network(), task, out="run", cost=False, progress=QUIET)
    with FileLock(here / "run" / ".lock"):
        assert RunFolder("run").at_work
    assert not RunFolder("run").at_work
    assert not RunFolder("nowhere").at_work
    assert os.listdir(here) == ["run"]
