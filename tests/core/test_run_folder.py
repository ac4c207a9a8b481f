"""The run folder: one run at a time, nothing foreign, nothing that another run made."""

import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch

from overhaul.core import CorruptedFileError, Fact, RunFolder, RunFolderError, StepState
from tests.core.samples import KeepNames, RenameLayer


def state(key: str = "key") -> StepState:
    """Return the state after some step."""
    return StepState(
        key=key,
        label="0 rename",
        tensors={"first.weight": torch.arange(4.0), "flag": torch.tensor(True)},
        trainable=("first.weight",),
        edits=(RenameLayer(old="first", new="second"), RenameLayer(old="last")),
        carried=(KeepNames(names=("second.weight",)),),
        facts=(
            Fact(name="accuracy", value=0.5, split="val", n=10, interval=(0.4, 0.6)),
            Fact(name="size_bytes", value=3, unit="B", detail={"engine": "torch"}),
            Fact(name="macs", value=None, reason="an unknown operator"),
        ),
    )


def same_state(left: StepState, right: StepState) -> bool:
    """Tell whether two states are equal, tensors by value."""
    return (
        vars(left) | {"tensors": None} == vars(right) | {"tensors": None}
        and left.tensors.keys() == right.tensors.keys()
        and all(torch.equal(left.tensors[name], right.tensors[name]) for name in left.tensors)
    )


def test_a_step_is_found_again_as_it_was(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.save_step(3, state())
    found = folder.load_step(3, "key")
    assert found is not None
    assert same_state(found, state())
    assert not same_state(found, state("other"))


def test_a_step_that_another_run_made_is_not_used(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_step(0, state())
    assert folder.load_step(0, "another key") is None
    assert folder.load_step(1, "key") is None


def test_a_corrupted_step_is_found(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.save_step(0, state())
    file = tmp_path / "steps" / "0" / "tensors.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(CorruptedFileError, match=r"Delete '.*0' to have it made again"):
        folder.load_step(0, "key")


def test_a_saved_step_forgets_what_comes_after_it_and_its_checkpoints(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for index in (0, 1, 2, 10):
        folder.save_step(index, state())
        folder.checkpoints(index).save(1, {})
    folder.save_step(1, state("new key"))
    assert {child.name for child in (tmp_path / "steps").iterdir()} == {
        "0",
        "0.unfinished",
        "1",
    }


def test_checkpoints_of_another_recipe_are_forgotten(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.drop_checkpoints_unless(0, "key")
    folder.checkpoints(0).save(2, {"epoch": 2})
    folder.drop_checkpoints_unless(0, "key")
    assert folder.checkpoints(0).latest() == {"epoch": 2}
    folder.drop_checkpoints_unless(0, "another key")
    assert folder.checkpoints(0).latest() is None


def test_a_second_process_is_refused_and_a_killed_one_leaves_the_folder_free(
    tmp_path: Path,
) -> None:
    program = """
        import sys, time
        from overhaul.core import RunFolder
        with RunFolder(sys.argv[1]).locked():
            print("in", flush=True)
            sys.stdin.readline()
    """
    with subprocess.Popen(
        [sys.executable, "-c", dedent(program), str(tmp_path / "run")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        with pytest.raises(RunFolderError, match=r"another run is at work in '.*run'"):
            _enter(tmp_path / "run")
        process.kill()
    _enter(tmp_path / "run")


def _enter(path: Path) -> None:
    with RunFolder(path).locked():
        pass


def test_a_run_that_was_killed_at_its_first_write_starts_again(tmp_path: Path) -> None:
    (tmp_path / ".lock").touch()
    (tmp_path / ".tmp-abc").touch()
    _enter(tmp_path)
    assert [child.name for child in tmp_path.iterdir()] == [".lock"]


def test_leftovers_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.update_manifest(seed=0)
    folder.save_step(0, state())
    (tmp_path / "steps" / ".tmp-abc").mkdir()
    (tmp_path / "steps" / ".tmp-abc" / "tensors.safetensors").touch()
    _enter(tmp_path)
    assert list(tmp_path.rglob(".tmp-*")) == []
    assert folder.load_step(0, "key") is not None


def test_a_folder_with_something_else_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(RunFolderError, match="holds something else than a run"):
        _enter(tmp_path)
    assert [child.name for child in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(RunFolderError, match=r"'.*run' is a file, and a run needs a folder"):
        _enter(tmp_path / "run")
    with pytest.raises(RunFolderError, match="cannot be written: Not a directory"):
        _enter(tmp_path / "run" / "inner")


def test_reading_changes_nothing(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run", writable=False)
    with folder.locked():
        folder.update_manifest(seed=0)
        folder.write_facts([Fact(name="macs", value=1)])
        folder.save_step(0, state())
        folder.drop_checkpoints_unless(0, "key")
    assert folder.manifest() == {}
    assert folder.facts() == []
    assert not (tmp_path / "run").exists()
    assert not folder.child("control").writable


def test_the_manifest_keeps_its_entries(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.update_manifest(seed=0, machine="a")
    folder.update_manifest(machine="b")
    assert folder.manifest() == {"seed": 0, "machine": "b"}


def test_each_opening_of_the_test_split_is_counted(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.count_test_opening("one key")
    folder.count_test_opening("another key")
    assert folder.count_test_opening("one key") == 2  # it is the same look again
    manifest = RunFolder(tmp_path).manifest()
    assert manifest["test_opened"] == 2
    assert manifest["test_openings"] == ["one key", "another key"]


def test_a_corrupted_manifest_is_found(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(CorruptedFileError, match=r"manifest.json' is corrupted"):
        RunFolder(tmp_path).manifest()


def test_facts_are_one_a_line_and_found_again(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    facts = [*state().facts, Fact(name="note", value="a line\u2028separator\nand more")]
    folder.write_facts(facts)
    assert folder.facts() == facts
    assert len((tmp_path / "facts.jsonl").read_text("utf-8").split("\n")) == len(facts) + 1


def test_a_line_that_is_no_fact_is_found(tmp_path: Path) -> None:
    (tmp_path / "facts.jsonl").write_text('{"name": "macs", "value": 1}\n{"name"\n')
    with pytest.raises(CorruptedFileError, match=r"facts.jsonl' is corrupted"):
        RunFolder(tmp_path).facts()


def test_a_stage_is_found_again_by_its_key(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.load_stage("original", "key") is None
    folder.save_stage("original", "key", list(state().facts))
    assert folder.load_stage("original", "key") == list(state().facts)
    assert folder.load_stage("original", "another key") is None
    (tmp_path / "stages" / "original.json").write_text("{}")
    with pytest.raises(CorruptedFileError, match="Delete it to have it made again"):
        folder.load_stage("original", "key")
