"""The example of all four families runs, reduced, and what it writes has every recipe in it."""

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch

from overhaul import Deploy

ROOT = Path(__file__).resolve().parents[2]
NAMES = (
    *("compression", "distillation", "transfer", "no transfer"),
    *("multi-task", "three combined"),
)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The example, imported as it is when it is started: its folder is on the path."""
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    return importlib.import_module("tutorial_four_families")


def test_the_images_are_the_digits_with_a_black_border(example: ModuleType) -> None:
    images, labels = example.images_of_ten()
    assert images.shape == (1797, 1, 10, 10)
    assert labels.unique().tolist() == list(range(10))
    border = images.clone()
    border[:, :, 1:9, 1:9] = 0
    assert not border.any()
    assert (images[:, :, 1:9, 1:9].flatten(1).sum(1) > 0).all()


def test_every_family_is_applied_and_judged(example: ModuleType, tmp_path: Path) -> None:
    torch.manual_seed(0)
    deploy = Deploy(engines=("torch",), timing_s=0.05, cost=False)
    results = example.run_all(tmp_path / "runs", epochs=1, deploy=deploy, cost=False)
    rows = {row["recipe"]: row for row in example.rows(results)}

    assert tuple(rows) == NAMES
    for name, row in rows.items():
        assert 0 < row["final"] <= 1, name
        assert row["status"] in ("proved", "not proved", "refuted"), name
    dense, sparse = rows["multi-task"], rows["three combined"]
    assert rows["compression"]["nonzero_parameters"] < 0.2 * dense["nonzero_parameters"]
    assert sparse["nonzero_parameters"] < 0.2 * dense["nonzero_parameters"]
    assert rows["distillation"]["parameters"] < 0.2 * dense["parameters"]
    assert rows["transfer"]["reference"] == "control"
    assert rows["transfer"]["original"] is None
    assert {"mean_accuracy", "digit_accuracy", "parity_accuracy"} <= dense["metrics"][
        "final"
    ].keys()
    deployed = [result.name for result in results if result.run.artifact is not None]
    assert deployed == ["compression", "distillation", "three combined"]

    out = tmp_path / "results" / "tutorial"
    example.write_results(out, results, took="1 s", epochs=1)
    written = json.loads(out.with_suffix(".json").read_text("utf-8"))
    assert [row["recipe"] for row in written["rows"]] == list(NAMES)
    page = out.with_suffix(".md").read_text("utf-8")
    assert "| three combined | mean_accuracy | - |" in page
    assert "Not shown:" in page
