"""Every command on a real run: what it prints for people and for programs, and its exit code."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from jsonschema import Draft202012Validator
from typer.testing import CliRunner, Result

from overhaul.cli import main
from overhaul.cli._answer import EXIT_CODES
from overhaul.cli._app import app
from overhaul.cli._commands import COMMANDS
from overhaul.core import OverhaulError

MODULE = """
import torch
from torch import nn

print("noise of the user's module")


def net() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 10))


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(5, 8), nn.Embedding(7, 8)
        self.fc = nn.Linear(9, 1)

    def forward(self, user, item, age):
        return self.fc(torch.cat([self.users(user) * self.items(item), age], -1))
"""
RECIPE = """
model: cli_nets:net
task: {classification: {data: digits}}
steps:
  - prune_weights: {sparsity: 0.5}
  - train: {epochs: 2}
  - deploy: {engines: [torch]}
goal: {max_drop: 0.02}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with a recipe, the module of its model, and a finished run."""
    path, before = tmp_path_factory.mktemp("cli"), list(sys.path)
    (path / "cli_nets.py").write_text(MODULE, "utf-8")
    (path / "recipe.yaml").write_text(RECIPE, "utf-8")
    found = CliRunner().invoke(
        app, ["run", str(path / "recipe.yaml"), "-o", str(path / "run"), "--no-cost", "--json"]
    )
    assert found.exit_code == 0, found.stderr
    (path / "answer.json").write_text(found.stdout, "utf-8")
    yield path
    sys.path[:] = before


@pytest.fixture(autouse=True)
def _own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("COLUMNS", "80")


@pytest.fixture
def unfinished(folder: Path, tmp_path: Path) -> Path:
    """Return a copy of the run as it was after its first step."""
    path = tmp_path / "un finished"
    shutil.copytree(folder / "run", path)
    lines = (path / "facts.jsonl").read_text("utf-8").splitlines()
    kept = [
        line for line in lines if json.loads(line)["subject"] in ("original", "0 prune_weights")
    ]
    (path / "facts.jsonl").write_text("\n".join(kept), "utf-8")
    return path


def call(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def document(*arguments: object) -> Any:
    """Return the one JSON document that a command prints."""
    found = call(*arguments, "--json")
    assert found.exit_code == 0, found.stderr
    return json.loads(found.stdout)


def refusal(*arguments: object, exit_code: int) -> str:
    """Return the message of a refused command, which says the same to people and programs."""
    found, as_json = call(*arguments), call(*arguments, "--json")
    assert (found.exit_code, found.stdout) == (exit_code, "")
    assert "Traceback" not in found.stderr
    answer = json.loads(as_json.stdout)
    assert answer["exit_code"] == as_json.exit_code == exit_code
    message: str = answer["error"]["message"]
    assert message in found.stderr.removeprefix("Error: ")
    return message


def test_run_answers_with_verdict_and_places(folder: Path) -> None:
    answer = json.loads((folder / "answer.json").read_text("utf-8"))
    assert answer["status"] == answer["verdict"]["original"]["status"]
    assert Path(answer["artifact"]).is_dir()
    assert Path(answer["report"]).is_file()
    assert {fact["subject"] for fact in answer["facts"]} >= {"original", "2 deploy", "artifact"}


def test_a_run_without_weights_is_used_again(folder: Path) -> None:
    found = call("run", folder / "recipe.yaml", "-o", folder / "run", "--no-cost")
    assert found.exit_code == 0
    for label in ("0 prune_weights", "1 train", "2 deploy", "control/0 train"):
        assert f"{label}: done before, used again" in found.stderr
    assert "artifact: " in found.stdout
    assert "report: " in found.stdout


def test_another_seed_is_another_run(folder: Path, tmp_path: Path) -> None:
    (folder / "short.yaml").write_text(
        RECIPE.replace("  - train: {epochs: 2}\n  - deploy: {engines: [torch]}\n", ""), "utf-8"
    )
    line = ("run", folder / "short.yaml", "--no-cost", "--quiet")
    for seed in (1, 2):
        found = call(*line, "-o", tmp_path / f"{seed}", "--seed", seed)
        assert (found.exit_code, found.stderr) == (0, "")
    hashes = {document("show", tmp_path / f"{s}")["manifest"]["model"]["hash"] for s in (1, 2)}
    assert len(hashes) == 2


def test_require_proved_exits_with_8_unless_it_is_proved(folder: Path, tmp_path: Path) -> None:
    text = RECIPE.replace("  - train: {epochs: 2}\n  - deploy: {engines: [torch]}\n", "")
    text = text.replace("sparsity: 0.5", "sparsity: 0.99").replace("0.02", "0.0")
    (folder / "strict.yaml").write_text(text, "utf-8")
    line = ("run", folder / "strict.yaml", "-o", tmp_path / "run", "--no-cost")
    assert call(*line).exit_code == 0
    assert call(*line, "--require-proved").exit_code == 8


def test_show_tells_how_to_go_on_with_an_unfinished_run(folder: Path, unfinished: Path) -> None:
    text = "".join(call("show", unfinished).stdout.split())
    assert "unfinished" in text
    assert "thelastis'0prune_weights'" in text
    assert f"overhaulrun...-o'{unfinished}'".replace(" ", "") in text
    assert document("show", unfinished)["status"] == "unfinished"
    assert document("show", folder / "run")["status"] != "unfinished"


def test_show_tells_whether_a_run_is_at_work(folder: Path) -> None:
    assert not document("show", folder / "run")["at_work"]
    with FileLock(folder / "run" / ".lock"):
        assert document("show", folder / "run")["at_work"]
        assert "at work in this folder now" in call("show", folder / "run").stdout


def test_compare_puts_one_row_for_each_run(folder: Path, unfinished: Path) -> None:
    found = call("compare", folder / "run", unfinished)
    lines = found.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert "accuracy" in lines[0]
    assert "unfinished" in found.stdout
    answer = document("compare", folder / "run", unfinished)["runs"]
    assert [run["folder"] for run in answer] == [str(folder / "run"), str(unfinished)]
    assert answer[0]["size_bytes"]["subject"] == "artifact"
    assert answer[1]["test"] is None


def test_compare_warns_of_different_data(folder: Path, unfinished: Path) -> None:
    assert "different data" not in call("compare", folder / "run", unfinished).stdout
    manifest = json.loads((unfinished / "manifest.json").read_text("utf-8"))
    manifest["data"]["hash"] = "another"
    (unfinished / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    assert "different data" in call("compare", folder / "run", unfinished).stdout


def test_evaluate_measures_model_or_artifact_on_val(folder: Path) -> None:
    recipe, artifact = folder / "recipe.yaml", folder / "run" / "artifact"
    facts = document("evaluate", recipe)["facts"]
    assert {(fact["split"], fact["subject"]) for fact in facts} == {("val", "original")}
    [of_artifact, *_] = document("evaluate", recipe, "--artifact", artifact)["facts"]
    assert of_artifact["subject"] == "artifact"
    assert of_artifact["value"] > facts[0]["value"]
    assert "180 samples of val" in call("evaluate", recipe).stdout


def test_profile_takes_a_factory_or_a_recipe(folder: Path) -> None:
    found = call("profile", "torch.nn:Flatten", "--shape", "1,3,4")
    assert "1 thread" in " ".join(found.stdout.split())
    facts = document("profile", folder / "recipe.yaml")["facts"]
    values = {fact["name"]: fact["value"] for fact in facts}
    assert values["macs"] == 64 * 12 + 12 * 10
    assert values["latency_ms"] > 0


def test_profile_shows_what_can_be_removed(folder: Path) -> None:
    found = document("profile", folder / "recipe.yaml", "--prunable")
    (group,) = found["groups"]
    assert (group["kind"], group["units"]) == ("channels", 12)
    assert group["macs_of_a_unit"] == pytest.approx(1 / 12)
    assert found["not_prunable"] == []
    text = call("profile", "torch.nn:Flatten", "--shape", "1,3,4", "--prunable").stdout
    assert "Nothing of this model can be removed." in text


def test_profile_compares_engines(folder: Path) -> None:
    text = call(
        "profile", "torch.nn:Flatten", "--shape", "1,3,4", "--engines", "torch,onnxruntime"
    ).stdout
    rows = {line.split()[0]: line for line in text.splitlines() if line.strip()}
    assert {"engine", "torch,", "torch", "onnxruntime"} <= rows.keys()
    assert "batch 32, 1 thr." in rows["engine"]
    assert rows["onnxruntime"].count(" ms") >= 2
    facts = document("profile", folder / "recipe.yaml", "--engines", "torch")["facts"]
    assert {f["subject"] for f in facts} == {"original", "artifact/torch"}
    named = ("--shape", "1,3", "--engines", "onnx")
    assert "there is no engine 'onnx'" in refusal(
        "profile", "torch.nn:Flatten", *named, exit_code=2
    )


@pytest.mark.parametrize(
    "shapes", [("2:5", "2:7", "2,1"), ("item=2:7", "age=2,1", "user=2:5")], ids=["order", "names"]
)
def test_profile_takes_several_inputs_and_whole_numbers(
    folder: Path, monkeypatch: pytest.MonkeyPatch, shapes: tuple[str, ...]
) -> None:
    monkeypatch.syspath_prepend(folder)
    given = [argument for shape in shapes for argument in ("--shape", shape)]
    found = document("profile", "cli_nets:Pair", *given, "--prunable")
    (group,) = found["groups"]
    assert (group["units"], found["not_prunable"]) == (8, [])
    facts = document("profile", "cli_nets:Pair", *given)["facts"]
    values = {fact["name"]: fact["value"] for fact in facts}
    assert values["macs"] == 9
    assert "floats, or whole numbers below N with SIZES:N" in refusal(
        "profile", "cli_nets:Pair", "--shape", "2", exit_code=3
    )


def test_verify_says_what_it_checked(folder: Path) -> None:
    artifact = folder / "run" / "artifact"
    assert document("verify", artifact)["files"] >= 2
    text = " ".join(call("verify", artifact).stdout.split())
    assert "files have their hashes" in text
    assert "golden samples" in text


def test_verify_fails_on_a_changed_artifact(folder: Path, tmp_path: Path) -> None:
    artifact = tmp_path / "artifact"
    shutil.copytree(folder / "run" / "artifact", artifact)
    (artifact / "signature.json").write_text("{}", "utf-8")
    assert "signature.json' is corrupted" in refusal("verify", artifact, exit_code=5)


def test_verify_names_the_artifact_of_a_run(folder: Path) -> None:
    assert "Give '" in refusal("verify", folder / "run", exit_code=5)


def test_report_writes_one_file(folder: Path, tmp_path: Path) -> None:
    assert document("report", folder / "run", "-o", tmp_path / "a.html")["report"].endswith(
        "a.html"
    )
    assert "</html>" in (tmp_path / "a.html").read_text("utf-8")


def test_schema_accepts_the_recipe() -> None:
    schema = json.loads(call("schema").stdout)
    Draft202012Validator.check_schema(schema)
    assert document("schema") == schema


@pytest.mark.parametrize(
    ("arguments", "exit_code", "part"),
    [
        (("show", "nowhere"), 4, "is not a run folder"),
        (("report", "nowhere"), 4, "is not a run folder"),
        (("compare", "nowhere"), 4, "is not a run folder"),
        (("verify", "nowhere"), 5, "is not an artifact"),
        (("run", "nowhere.yaml", "-o", "run"), 2, "there is no recipe file"),
        (("evaluate", "nowhere.yaml"), 2, "there is no recipe file"),
        (("profile", "torch.nn:Flatten"), 2, "--shape is needed"),
        (("profile", "torch.nn:Flatten", "--shape", "1,-3"), 2, "got '1,-3'"),
        (("profile", "torch.nn:Flatten", "--shape", "1,3:0"), 2, "got '1,3:0'"),
        (("profile", "torch.nn:Flatten", "--shape", "a=1", "--shape", "1"), 2, "got a=1, 1."),
        (("profile", "torch.nn:Flatten", "--shape", "a=1", "--shape", "a=1"), 2, "of its own"),
        (("profile", "torch.nn:Flaten", "--shape", "1,3"), 2, "Did you mean 'Flatten'"),
        (("profile", "torch.nn:Flatten", "--shape", "1,3", "--weights", "x.pt"), 3, "no weights"),
        (("profile", "torchvision.models:resnet18", "--shape", "1,1,8,8"), 3, "the model fails"),
    ],
)
def test_what_is_wrong_is_said_with_its_exit_code(
    arguments: tuple[str, ...],
    exit_code: int,
    part: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert part in refusal(*arguments, exit_code=exit_code)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_does_not_fit_is_not_evaluated(folder: Path) -> None:
    (folder / "misfit.yaml").write_text(RECIPE.replace("cli_nets:net", "torch.nn:Flatten"), "utf-8")
    message = refusal("evaluate", folder / "misfit.yaml", exit_code=3)
    assert "64 outputs, and the task has 10 classes" in message


def test_a_bug_keeps_its_traceback_and_is_json_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr("overhaul.cli._commands.verify", broken)
    found = call("verify", "x", "--json")
    assert isinstance(found.exception, ZeroDivisionError)
    assert json.loads(found.stdout)["error"] == {"type": "ZeroDivisionError", "message": "a bug"}
    assert isinstance(call("verify", "x").exception, ZeroDivisionError)


def test_a_wrong_command_line_is_json_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["overhaul", "show", "--jsn", "--json"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--jsn" in json.loads(capsys.readouterr().out)["error"]["message"]


def test_the_version_is_printed() -> None:
    assert call("--version").stdout.startswith("overhaul 0.")


def test_every_command_has_json_and_tells_its_exit_codes() -> None:
    for command in COMMANDS:
        text = call(command, "-h").stdout
        assert "--json" in text
        assert "Exit codes: 0 done;" in text


def test_every_exit_code_of_an_error_is_documented() -> None:
    def below(cls: type[OverhaulError]) -> Iterator[type[OverhaulError]]:
        yield cls
        for sub in cls.__subclasses__():
            yield from below(sub)

    assert {error.exit_code for error in below(OverhaulError)} <= EXIT_CODES.keys()
