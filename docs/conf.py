"""Configuration of Sphinx, and the API reference, which is made by walking the public names."""

import inspect
import shutil
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError, latex2mathml
from sphinx.addnodes import pending_xref
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.errors import ExtensionError
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.writers.html5 import HTML5Translator

import overhaul
from overhaul import core

project = "Overhaul"
author = "The Overhaul authors"
project_copyright = author
version = release = overhaul.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
default_role = "code"
myst_enable_extensions = ["amsmath", "dollarmath"]
myst_heading_anchors = 3

autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
add_module_names = False
python_use_unqualified_type_names = True

html_theme = "furo"
html_title = "Overhaul"
html_copy_source = False

_PAGES = {
    "steps": ("Steps", "What a recipe is made of, in order."),
    "plugs": ("Plugs", "What is plugged into a step: objectives, optimizers, engines, and so on."),
    "tasks": ("Tasks", "What a model is for, with its data in three splits."),
    "rest": ("Runs, results and errors", "Everything else that `import overhaul` has."),
    "rooms": ("Rooms", "What a new step, plug or task is built on, by the package that has it."),
}


def public_names(module: ModuleType) -> dict[str, Any]:
    """Return the public names of a package, each with its object."""
    return {name: getattr(module, name) for name in module.__all__ if not name.startswith("__")}


def page_of(obj: object) -> str:
    """Return the page of the reference that an object of `overhaul` belongs on."""
    if not (inspect.isclass(obj) and issubclass(obj, core.Spec)):
        return "rest"
    if issubclass(obj, core.Step):
        return "steps"
    if issubclass(obj, core.Task):
        return "tasks"
    return "plugs" if any(map(inspect.isabstract, obj.__mro__)) else "rest"


def kind_of(obj: object) -> str:
    """Return the abstract kind of a plug, the heading that it is listed under."""
    kinds = [cls.__name__ for cls in getattr(obj, "__mro__", ()) if inspect.isabstract(cls)]
    return kinds[-1] if kinds else ""


def entry(path: str, obj: object) -> str:
    """Return the reStructuredText of one public name; empty if it has no docstring."""
    if inspect.isclass(obj):
        if issubclass(obj, core.Spec):
            drop_bounds(obj)
        lines = [f".. autoclass:: {path}"]
        if members := own_members(obj):
            lines.append(f"   :members: {', '.join(members)}")
        documented = bool(obj.__doc__)
    elif inspect.isroutine(obj):
        lines, documented = [f".. autofunction:: {path}"], bool(obj.__doc__)
    else:
        text = documentation_of_data(path)
        lines, documented = (
            [f".. py:data:: {path}", "", *(f"   {line}" for line in text)],
            bool(text),
        )
    return "\n".join(lines) if documented else ""


def drop_bounds(cls: type[core.Spec]) -> None:
    """Let the signature show the type of a field without the bounds that pydantic keeps with it."""
    signature = inspect.signature(cls)
    parameters = [
        each.replace(annotation=cls.model_fields[name].annotation)
        if name in cls.model_fields
        else each
        for name, each in signature.parameters.items()
    ]
    cls.__signature__ = signature.replace(parameters=parameters)


def own_members(cls: type) -> list[str]:
    """Return the public methods that a class adds to those of its kind."""
    inherited = {name for base in cls.__mro__[1:] for name in vars(base)}
    return [
        name
        for name, value in vars(cls).items()
        if not name.startswith(("_", "model_"))
        if name not in inherited
        if inspect.isroutine(value) or isinstance(value, property | classmethod | staticmethod)
    ]


def documentation_of_data(path: str) -> list[str]:
    """Return the docstring below the assignment of an alias or a constant."""
    package, _, name = path.rpartition(".")
    for module_name in sorted(sys.modules):
        module = sys.modules[module_name]
        if module_name.startswith(f"{package}.") and name in vars(module):
            found = ModuleAnalyzer.for_module(module_name).find_attr_docs().get(("", name))
            if found is not None:
                return found
    return []


def write_reference(folder: Path, package: ModuleType = overhaul) -> dict[str, str]:
    """Write one page for each kind of public name, and return the path of each name.

    Raises:
        ExtensionError: a public name has no docstring.
    """
    paths: dict[str, str] = {}
    sections: dict[str, dict[str, list[str]]] = {page: {} for page in _PAGES}
    undocumented = []
    for module in (package, *rooms()):
        for name, obj in sorted(public_names(module).items()):
            if name in paths:
                continue
            paths[name] = f"{module.__name__}.{name}"
            page = page_of(obj) if module is package else "rooms"
            heading = {"rooms": module.__name__, "plugs": kind_of(obj)}.get(page, "")
            text = entry(paths[name], obj)
            sections[page].setdefault(heading, []).append(text)
            if not text:
                undocumented.append(paths[name])
    if undocumented:
        raise ExtensionError(f"public names without a docstring: {', '.join(undocumented)}.")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for page, (title, introduction) in _PAGES.items():
        lines = [title, "=" * len(title), "", introduction, ""]
        for heading, entries in sorted(sections[page].items()):
            lines += [heading, "-" * len(heading), ""] if heading else []
            lines += [f"{each}\n" for each in entries]
        (folder / f"{page}.rst").write_text("\n".join(lines), "utf-8")
    index = ["Reference", "=========", "", ".. toctree::", "", *(f"   {page}" for page in _PAGES)]
    (folder / "index.rst").write_text("\n".join(index), "utf-8")
    return paths


def rooms() -> list[ModuleType]:
    """Return the packages that a method may be built on: all but the command line."""
    names = [file.parent.name for file in Path(overhaul.__path__[0]).glob("*/__init__.py")]
    return [import_module(f"overhaul.{name}") for name in sorted(names) if name != "cli"]


def link_to_public_path(
    app: Sphinx, env: BuildEnvironment, node: pending_xref, content: nodes.TextElement
) -> nodes.Node | None:
    """Link what a signature names to its entry; a name of another package stays plain text."""
    target: str = node.get("reftarget", "")
    name = target.rpartition(".")[2]
    path = app.config.overhaul_paths.get(name)
    if path is not None and path != target:
        python = env.get_domain("py")
        return python.resolve_xref(
            env, node["refdoc"], app.builder, node["reftype"], path, node, content
        )
    is_ours = target.startswith("overhaul.")
    return None if is_ours and len(name) > 1 and not name.startswith("_") else content


def _inline_math(self: HTML5Translator, node: nodes.math) -> None:
    _write_mathml(self, node, as_block=False)


def _block_math(self: HTML5Translator, node: nodes.math_block) -> None:
    _write_mathml(self, node, as_block=True)


def _write_mathml(self: HTML5Translator, node: nodes.Element, *, as_block: bool) -> None:
    """Write MathML, which browsers draw by themselves: the pages need no network and no script."""
    try:
        self.body.append(latex2mathml.tex2mathml(node.astext(), as_block=as_block))
    except MathError as error:
        logging.getLogger(__name__).warning("%s in %r", error, node.astext(), location=node)
    raise nodes.SkipNode


def setup(app: Sphinx) -> None:
    """Write the reference, and have formulas written as MathML."""
    paths = write_reference(Path(app.srcdir) / "reference")
    app.add_config_value("overhaul_paths", paths, "env", dict)
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
    app.config.html_math_renderer_name = "mathml"
    app.connect("missing-reference", link_to_public_path)
