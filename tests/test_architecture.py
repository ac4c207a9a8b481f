"""The architecture, read from the source without importing it.

The rules are those of docs/architecture.md. Each finding names the file and the line; the tests at
the end show on small trees that each rule can be broken.
"""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "overhaul"

_FAMILIES = ("pruning", "quantization", "distillation", "transfer", "multitask")
_BELOW_CLI = (
    *("runtime", "core", "graph", "tasks", "evaluation", "training", *_FAMILIES),
    *("deploy", "report", "running"),
)
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "runtime": (),
    "core": ("runtime",),
    "graph": ("core",),
    "tasks": ("core",),
    "evaluation": ("core", "tasks"),
    "training": ("core", "tasks", "evaluation"),
    **dict.fromkeys(_FAMILIES, ("core", "graph", "tasks", "evaluation", "training")),
    "deploy": ("core", "runtime", "tasks", "evaluation"),
    "report": ("core",),
    "running": ("core", "tasks", "evaluation", "deploy", "report"),
    "cli": (*_BELOW_CLI, ""),
    "testing": (*_BELOW_CLI, ""),
    "": _BELOW_CLI,
}
"""The rooms and what each may import; `""` is the package itself, which re-exports."""

WITHOUT_TORCH = {"report", "runtime"}
DRAWERS = {"utils", "util", "utilities", "helpers", "helper", "common", "misc", "manager"}
MOST_LINES = 450
"""The training loop, the longest file that still answers one question, has a little over 400."""

HEAVY = (
    *("accelerate", "torchmetrics", "scipy", "sklearn", "pandas", "altair", "vl_convert"),
    *("onnx", "onnxscript", "onnxruntime", "transformers", "datasets", "torchvision", "timm"),
    *("matplotlib", "pyarrow", "openvino", "executorch"),
)


@dataclass(frozen=True)
class Import:
    """One import of a module by a module."""

    importer: str
    imported: str
    file: Path
    line: int
    in_function: bool

    def __str__(self) -> str:
        return f"{self.file.name}:{self.line}: {self.importer} imports {self.imported}"


def modules(package: Path) -> dict[str, Path]:
    """Return every module of the package by its dotted name."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package.parent).with_suffix("").parts
        found[".".join(parts).removesuffix(".__init__")] = file
    return found


def imports(package: Path) -> Iterator[Import]:
    """Yield every import in the package, with the module that it means."""
    known = modules(package)
    for importer, file in known.items():
        tree = ast.parse(file.read_text("utf-8"), str(file))
        inside = {
            child
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.walk(node)
        }
        for node in ast.walk(tree):
            for name in _imported_names(node, importer, file.name == "__init__.py", known):
                yield Import(importer, name, file, getattr(node, "lineno", 0), node in inside)


def _imported_names(
    node: ast.AST, importer: str, is_package: bool, known: dict[str, Path]
) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    base = node.module or ""
    if node.level:
        parents = importer.split(".")
        parents = parents[: len(parents) - node.level + is_package]
        base = ".".join([*parents, base] if base else parents)
    names = [f"{base}.{alias.name}" for alias in node.names]
    return [name if name in known else base for name in names]


def room(module: str) -> str:
    """Return the room that a module of the package is in."""
    return [*module.split("."), ""][1]


def against_the_table(package: Path) -> list[str]:
    """Find rooms that are not in the table, and imports that it does not allow."""
    rooms = {path.name for path in package.iterdir() if (path / "__init__.py").exists()}
    found = [f"the room {name} is not in the table" for name in sorted(rooms - MAY_IMPORT.keys())]
    for each in imports(package):
        here, top = room(each.importer), each.imported.split(".")[0]
        if top == "torch" and here in WITHOUT_TORCH:
            found.append(f"{each}, and {here} does without torch")
        if top == package.name and here in MAY_IMPORT:
            there = room(each.imported)
            if there != here and there not in MAY_IMPORT[here]:
                found.append(f"{each}, and {here or 'the package'} may not import {there}")
    return found


def past_a_front_door(package: Path) -> list[str]:
    """Find imports of a private module of another room."""
    return [
        f"{each}, which is private to its room"
        for each in imports(package)
        if each.imported.split(".")[0] == package.name
        and room(each.imported) != room(each.importer)
        and any(part.startswith("_") for part in each.imported.split("."))
    ]


def rings(package: Path) -> list[str]:
    """Find modules that import each other in a ring, inside a room as well."""
    graph: dict[str, set[str]] = {name: set() for name in modules(package)}
    for each in imports(package):
        if each.imported in graph:
            graph[each.importer].add(each.imported)
    found, done = [], set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        if module in path:
            ring = path[path.index(module) :]
            found.append(" -> ".join((*ring, module)))
        elif module not in done:
            for imported in sorted(graph[module]):
                visit(imported, (*path, module))
            done.add(module)

    for module in graph:
        visit(module, ())
    return found


def inside_functions(package: Path) -> list[str]:
    """Find imports of the package inside a function: a ring in disguise."""
    return [
        f"{each} inside a function"
        for each in imports(package)
        if each.in_function and each.imported.split(".")[0] == package.name
    ]


def drawers(package: Path) -> list[str]:
    """Find modules whose name says nothing about what is in them."""
    return [
        f"{name} says nothing about what is in it"
        for name in modules(package)
        if any(part.strip("_") in DRAWERS for part in name.split("."))
    ]


def long_files(package: Path) -> list[str]:
    """Find files that answer more than one question."""
    counts = {file: len(file.read_text("utf-8").splitlines()) for file in package.rglob("*.py")}
    return [
        f"{file.name} has {count} lines, more than {MOST_LINES}; split it by question"
        for file, count in sorted(counts.items())
        if count > MOST_LINES
    ]


RULES = (against_the_table, past_a_front_door, rings, inside_functions, drawers, long_files)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_source_keeps_the_rule(rule: object) -> None:
    assert callable(rule)
    assert rule(SOURCE) == []


def table_of_the_document(text: str) -> dict[str, tuple[str, ...]]:
    """Return the table of rooms as docs/architecture.md states it."""
    block = text.split("may import, besides torch\n")[1].split("```")[0]
    table: dict[str, tuple[str, ...]] = {}
    for line in block.splitlines():
        columns = re.split(r"\s{2,}", line.strip())
        if len(columns) < 2:
            continue
        rooms, allowed = re.findall(r"(\w+)/", line), columns[-1]
        names = [] if allowed == "-" else re.sub(r",.*|\(.*", "", allowed).split()
        if allowed == "all above":
            names = [name for name in table if name != "cli"]
        table |= dict.fromkeys(rooms, tuple(names))
    return table


def test_the_document_has_the_same_table() -> None:
    stated = table_of_the_document((ROOT / "docs" / "architecture.md").read_text("utf-8"))
    rooms = {name: set(allowed) - {""} for name, allowed in MAY_IMPORT.items() if name}
    assert {name: set(allowed) for name, allowed in stated.items()} == rooms


def test_importing_loads_torch_and_nothing_else_that_is_heavy() -> None:
    rooms = sorted(file.parent.name for file in SOURCE.glob("*/__init__.py"))
    program = f"""
        import importlib, json, sys
        for room in {rooms}:
            importlib.import_module("overhaul." + room)
        print(json.dumps(sorted(sys.modules)))
    """
    run = subprocess.run(
        [sys.executable, "-c", dedent(program)], capture_output=True, text=True, check=True
    )
    loaded = set(json.loads(run.stdout))
    assert "torch" in loaded
    assert loaded.isdisjoint(HEAVY), sorted(loaded.intersection(HEAVY))


# Each rule on a tree that breaks it.


def make_package(folder: Path, files: dict[str, str]) -> Path:
    """Write a package; every folder of it becomes a package too."""
    package = folder / "overhaul"
    for name, text in files.items():
        file = package / name
        file.parent.mkdir(parents=True, exist_ok=True)
        (file.parent / "__init__.py").touch()
        file.write_text(dedent(text), "utf-8")
    (package / "__init__.py").touch()
    return package


def test_a_good_tree_passes_every_rule(tmp_path: Path) -> None:
    package = make_package(
        tmp_path,
        {
            "core/__init__.py": "from overhaul.core._step import Step",
            "core/_step.py": "import torch\nclass Step: ...",
            "tasks/__init__.py": "from overhaul.core import Step",
            "report/_html.py": "def write():\n    import altair",
            "__init__.py": "from overhaul.core import Step",
        },
    )
    assert [finding for rule in RULES for finding in rule(package)] == []


@pytest.mark.parametrize(
    ("files", "finding"),
    [
        (
            {"core/_step.py": "import overhaul.tasks", "tasks/_task.py": ""},
            "_step.py:1: overhaul.core._step imports overhaul.tasks, and core may not import tasks",
        ),
        (
            {
                "pruning/_mask.py": "from overhaul.distillation import Distill",
                "distillation/_d.py": "",
            },
            "pruning may not import distillation",
        ),
        (
            {"core/_step.py": "from ..tasks import Task", "tasks/_task.py": ""},
            "may not import tasks",
        ),
        ({"core/_step.py": "from overhaul import Train"}, "core may not import"),
        ({"report/_html.py": "from torch import nn"}, "report does without torch"),
        ({"drawer/_thing.py": ""}, "the room drawer is not in the table"),
    ],
)
def test_an_import_against_the_table_is_found(
    tmp_path: Path, files: dict[str, str], finding: str
) -> None:
    [found] = against_the_table(make_package(tmp_path, files))
    assert finding in found


def test_an_import_past_a_front_door_is_found(tmp_path: Path) -> None:
    files = {"tasks/_task.py": "from overhaul.core._step import Step", "core/_step.py": ""}
    [found] = past_a_front_door(make_package(tmp_path, files))
    assert "overhaul.core._step, which is private" in found


@pytest.mark.parametrize(
    "files",
    [
        {"core/_a.py": "from overhaul.core import _b", "core/_b.py": "import overhaul.core._a"},
        {"core/_a.py": "from ._b import B", "core/_b.py": "from ._a import A"},
        {
            "core/__init__.py": "from overhaul.core._a import A",
            "core/_a.py": "import overhaul.core",
        },
        {
            "core/_a.py": "if TYPE_CHECKING:\n    from overhaul.core._b import B",
            "core/_b.py": "from overhaul.core._c import C",
            "core/_c.py": "from overhaul.core._a import A",
        },
    ],
)
def test_a_ring_is_found(tmp_path: Path, files: dict[str, str]) -> None:
    found = rings(make_package(tmp_path, files))
    assert len(found) == 1
    assert found[0].count("overhaul.core") == len(files) + 1


def test_an_import_inside_a_function_is_found(tmp_path: Path) -> None:
    files = {"core/_a.py": "def f():\n    from overhaul.core import _b", "core/_b.py": ""}
    [found] = inside_functions(make_package(tmp_path, files))
    assert found.startswith("_a.py:2")


@pytest.mark.parametrize("name", ["core/utils.py", "core/_helpers.py", "misc/_thing.py"])
def test_a_drawer_is_found(tmp_path: Path, name: str) -> None:
    assert drawers(make_package(tmp_path, {name: ""}))


def test_a_long_file_is_found(tmp_path: Path) -> None:
    package = make_package(tmp_path, {"core/_a.py": "\n" * MOST_LINES, "core/_b.py": ""})
    assert long_files(package) == []
    (package / "core" / "_b.py").write_text("\n" * (MOST_LINES + 1), "utf-8")
    [found] = long_files(package)
    assert "_b.py has 451 lines" in found


def test_a_changed_document_is_found() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    changed = re.sub(r"(report/ .*)core \(and not torch\)", r"\1core tasks", text)
    assert table_of_the_document(changed)["report"] == ("core", "tasks")
