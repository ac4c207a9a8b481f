"""The names of the package: imported when the first is asked for, and then all."""

import ast
import json
import os
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest

import overhaul

SOURCE = Path(__file__).parents[1] / "src"


def run(program: str) -> Any:
    """Run a program in a process of its own and return the JSON that it prints."""
    done = subprocess.run(
        [sys.executable, "-c", dedent(program)],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def test_what_a_type_checker_sees_is_what_there_is() -> None:
    text = (SOURCE / "overhaul" / "__init__.py").read_text("utf-8")
    blocks = [node for node in ast.parse(text).body if isinstance(node, ast.If)]
    [imports] = [block.body for block in blocks if ast.unparse(block.test) == "TYPE_CHECKING"]
    seen = []
    for node in imports:
        assert isinstance(node, ast.ImportFrom)
        assert node.module is not None
        for alias in node.names:
            seen.append(alias.name)
            found = getattr(import_module(node.module), alias.name)
            assert getattr(overhaul, alias.name) is found, alias.name
    assert sorted([*seen, "__version__"]) == sorted(overhaul.__all__)


def test_importing_the_package_or_its_runtime_loads_numpy_at_most() -> None:
    loaded = """
        import json, sys
        import {}
        print(json.dumps(sorted({{name.split(".")[0] for name in sys.modules}})))
    """
    library = sys.stdlib_module_names
    expected = {"overhaul": {"overhaul"}, "overhaul.runtime": {"overhaul", "numpy"}}
    for module, allowed in expected.items():
        before = set(run(loaded.format("json")))  # what site-packages loads by itself
        found = {name for name in run(loaded.format(module)) if name not in library} - before
        assert found == allowed, module


def test_no_name_is_missing_before_it_is_imported() -> None:
    program = """
        import json, sys
        import overhaul
        names = dir(overhaul)
        known = [hasattr(overhaul, name) for name in ("nothing", "__wrapped__")]
        before = "torch" in sys.modules
        from overhaul import *
        print(json.dumps([names, known, before, Train.__name__, overhaul.deploy.__name__]))
    """
    names, known, before, *found = run(program)
    assert set(names) >= set(overhaul.__all__)
    assert known == [False, False]
    assert not before
    assert found == ["Train", "overhaul.deploy"]


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'overhaul' has no attribute 'Trian'"):
        overhaul.Trian  # noqa: B018


def test_short_names_are_found_whichever_room_is_imported_first() -> None:
    rooms = sorted(file.parent.name for file in (SOURCE / "overhaul").glob("*/__init__.py"))
    program = f"""
        import importlib, json, os, sys
        import pydantic, rich.console, yaml  # these once, not in each of the children
        import torch._dynamo, torch.export.pt2_archive
        for room in {rooms}:
            child = os.fork()
            if child == 0:
                importlib.import_module("overhaul." + room)
                from overhaul.core import Step, concrete_subclasses
                names = {{step.spec_name() for step in concrete_subclasses(Step)}}
                expected = {{"train", "deploy", "freeze", "prune_channels", "add_heads"}}
                os._exit(0 if names >= expected else 1)
            if os.waitpid(child, 0)[1] != 0:
                sys.exit(f"not with {{room}} first")
        print(json.dumps(True))
    """
    assert run(program) is True
    one = """
        import json
        from overhaul.core import Step
        print(json.dumps(type(Step.from_data("freeze")).__module__))
    """
    assert run(one).startswith("overhaul.transfer")
