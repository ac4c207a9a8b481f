"""Every example of the documents works: Python is run, commands are parsed, recipes are checked.

A document's blocks share their names, as a reader would expect who runs them in order. What an
example needs and a reader does not want to see goes into a block inside an HTML comment.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from overhaul.cli._app import app
from overhaul.core import json_schema
from overhaul.running import RecipeFile

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])
RECIPES = sorted((ROOT / "examples").glob("*.yaml"))
_FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text: str, language: str) -> list[str]:
    """Return the code blocks of one language."""
    return [match[2] for match in _FENCE.finditer(text) if match[1] == language]


def program_of(text: str) -> str:
    """Return the Python of a document as one program, each line where it is in the document."""
    program = [""] * text.count("\n")
    for match in _FENCE.finditer(text):
        if match[1] == "python":
            first = text.count("\n", 0, match.start(2))
            lines = match[2].splitlines()
            program[first : first + len(lines)] = lines
    return "\n".join(program)


def run_python(document: Path, folder: Path) -> None:
    """Run the Python of a document as a reader would: in a process and a folder of its own.

    Raises:
        AssertionError: it fails; the traceback in it has the lines of the document.
    """
    program = program_of(document.read_text("utf-8"))
    if program.strip():
        script = folder / f"{document.stem}_md.py"
        script.write_text(program, "utf-8")
        run = subprocess.run(
            [sys.executable, "-W", "error", script.name],
            cwd=folder,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr


def wrong_commands(text: str) -> list[str]:
    """Return the lines that call `overhaul` as it cannot be called; none is run."""
    lines = [line for script in blocks(text, "bash") for line in script.splitlines()]
    calls = [line for line in lines if line.startswith("overhaul ")]
    return [
        line
        for line in calls
        if CliRunner().invoke(app, [*shlex.split(line, comments=True)[1:], "--help"]).exit_code
    ]


def recipe_errors(text: str) -> list[str]:
    """Return what is wrong with a recipe file."""
    validator = Draft202012Validator(json_schema(RecipeFile))
    return [error.message for error in validator.iter_errors(yaml.safe_load(text))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_the_examples_of_a_document_work(document: Path, tmp_path: Path) -> None:
    text = document.read_text("utf-8")
    assert len(re.findall("^```", text, re.MULTILINE)) % 2 == 0
    run_python(document, tmp_path)
    assert wrong_commands(text) == []
    for recipe in blocks(text, "yaml"):
        assert "steps:" not in recipe or recipe_errors(recipe) == []


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_the_recipes_of_the_examples_are_accepted(recipe: Path) -> None:
    assert recipe_errors(recipe.read_text("utf-8")) == []


def test_a_failing_example_is_found_with_its_line(tmp_path: Path) -> None:
    document = tmp_path / "a.md"
    document.write_text("# A\n```python\nx = 1\n```\ntext\n```python\n\nassert x == 2\n```\n")
    with pytest.raises(AssertionError, match=r"line 8, in <module>\n *assert x == 2"):
        run_python(document, tmp_path)


@pytest.mark.parametrize("line", ["overhaul tarin", "overhaul run recipe.yaml --fast"])
def test_a_wrong_command_is_found(line: str) -> None:
    good = "overhaul run recipe.yaml -o runs/first  # a comment"
    assert wrong_commands(f"```bash\n{good}\n{line}\nls\n```\n") == [line]


def test_a_wrong_recipe_is_found() -> None:
    assert recipe_errors("steps: []\nmodell: a:b\n")
