"""The reference has every public name, and cannot be built while one is undocumented."""

from pathlib import Path
from types import ModuleType

import pytest
from sphinx.errors import ExtensionError

import overhaul
from docs.conf import rooms, write_reference
from overhaul.core import Spec, Step
from tests.core.samples import PackUp


def package(**names: object) -> ModuleType:
    """Return a package with these public names."""
    module = ModuleType("overhaul.made_up")
    vars(module).update(names, __all__=["__version__", *names])
    return module


def test_every_public_name_has_an_entry(tmp_path: Path) -> None:
    paths = write_reference(tmp_path / "reference")
    names = {name for module in (overhaul, *rooms()) for name in module.__all__}
    assert set(paths) == names - {"__version__"}
    text = "".join(page.read_text("utf-8") for page in (tmp_path / "reference").iterdir())
    assert [path for path in paths.values() if f":: {path}\n" not in f"{text}\n"] == []


def test_a_name_is_on_the_page_of_its_kind(tmp_path: Path) -> None:
    write_reference(tmp_path / "reference", package(PackUp=PackUp, Step=Step, Spec=Spec))
    steps = (tmp_path / "reference" / "steps.rst").read_text("utf-8")
    assert ".. autoclass:: overhaul.made_up.PackUp" in steps
    assert "overhaul.made_up.Spec" in (tmp_path / "reference" / "rest.rst").read_text("utf-8")


def test_public_names_without_a_docstring_are_named(tmp_path: Path) -> None:
    def silent() -> None: ...

    with pytest.raises(ExtensionError, match=r"docstring: .*made_up.ANSWER, .*made_up.silent\."):
        write_reference(tmp_path, package(silent=silent, ANSWER=42, PackUp=PackUp))
    assert list(tmp_path.iterdir()) == []
