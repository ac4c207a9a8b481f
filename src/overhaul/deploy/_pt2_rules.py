"""`check_pt2`: what a `.pt2` archive may hold, so that loading it never executes code from it.

torch unpickles example inputs, tensor subclasses and custom objects of an archive, evaluates its
size expressions and guards as Python, compiles its names into a function, and calls whatever
its targets name below `torch`. So each of these is held against a list of what is allowed.
"""

import ast
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch.export.pt2_archive import PT2ArchiveReader

from overhaul.core import ArtifactError

_RECORD = re.compile(
    r"archive_format|archive_version|byteorder|\.data/(version|serialization_id)"
    r"|models/model\.json|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)"
)
_SAMPLE_INPUTS = "data/sample_inputs/model.pt"
_MODEL = "models/model.json"
_CONFIGS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")

_TENSOR_RECORD = re.compile(r"(weight|tensor)_\d+")
_NAME = re.compile(r"[\w.+\-]*")
_TENSOR_NAME = re.compile(r"""[^"'\\\n\r]*""")
_TREE = re.compile(
    r'(?:[\[\]{},: \d]|null|"(?:type|context|children_spec|null|\[\]|builtins\.\w+)")*'
)
_ATEN = re.compile(r"torch\.ops\.aten\.(\w+)\.(\w+)")
_OTHER_OPERATION = re.compile(
    r"_operator\.(getitem|add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_)"
    r"|math\.(ceil|floor|trunc|sqrt)|torch\.(sym_\w+|_sym_sqrt)"
    r"|torch\.ops\.higher_order\.(cond|wrap_with_set_grad_enabled|wrap_with_autocast)"
)
_FILE_OPERATIONS = frozenset({"save", "from_file"})
_TENSOR_NAMES = frozenset({"parameter_name", "buffer_name", "tensor_constant_name", "fqn"})
_FUNCTION = re.compile(
    "Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|Max|Min|Abs|Eq|Ne|Equality|Unequality|And|Or|Not"
    "|(Strict)?(Less|Greater)Than|floor|ceiling|FloorDiv|ModularIndexing|Where|PythonMod|CleanDiv"
    "|(Ceil|Floor|Trunc|Round)ToInt|TruncToFloat|RoundDecimal|CeilDiv|[LR]Shift|PowByNatural"
    "|FloatPow|(Float|Int)TrueDiv|ToFloat|Identity|true|false|oo"
)
_SYMBOL = re.compile(r"[a-z]+\d+")
_HARMLESS = (
    *(ast.Expression, ast.Load, ast.keyword, ast.UnaryOp, ast.unaryop),
    *(ast.BinOp, ast.operator, ast.Compare, ast.cmpop),
)


def check_pt2(path: Path) -> None:
    """Refuse an archive that could make torch execute something on loading or running.

    Args:
        path: A file that `torch.export.save` wrote, or that claims to be one.

    Raises:
        ArtifactError: it is not such a file, or something in it is not allowed; it is named.
    """
    try:
        with PT2ArchiveReader(str(path)) as reader, zipfile.ZipFile(path) as archive:
            records = sorted(reader.get_file_names())
            others = sorted(name.partition("/")[2] for name in archive.namelist())
            unknown = [name for name in records if not _RECORD.fullmatch(name)]
            if _SAMPLE_INPUTS in unknown and not reader.read_bytes(_SAMPLE_INPUTS):
                unknown.remove(_SAMPLE_INPUTS)
            contents = {name: json.loads(reader.read_string(name)) for name in (_MODEL, *_CONFIGS)}
    except Exception as error:  # torch documents no type for what it raises
        raise ArtifactError(
            f"'{path.name}' is not an archive that torch.export wrote: {error}. Deploy the model "
            "again."
        ) from error
    if records != others:
        raise _refusal(path, "records that not every reader of zip files sees", ", ".join(others))
    if unknown:
        raise _refusal(path, "a record that torch may unpickle or execute", unknown[0])
    for config in _CONFIGS:
        _check_config(path, contents[config])
    _check_value(path, contents[_MODEL], "")


def _check_config(path: Path, config: Any) -> None:
    for name, entry in config["config"].items():
        if entry["use_pickle"] or not _TENSOR_RECORD.fullmatch(entry["path_name"]):
            raise _refusal(path, "a pickled object", name)


def _check_value(path: Path, value: Any, key: str) -> None:
    if isinstance(value, dict):
        for inner_key, inner in value.items():
            if not _TENSOR_NAME.fullmatch(inner_key):
                raise _refusal(path, "a name that is none", inner_key)
            _check_value(path, inner, inner_key)
    elif isinstance(value, list):
        for inner in value:
            _check_value(path, inner, key)
    elif isinstance(value, str) and not _is_allowed(value, key):
        what = "an operation that is not one of torch's own"
        raise _refusal(path, what if key in ("target", "as_operator") else "code", value)


def _is_allowed(text: str, key: str) -> bool:
    if key in ("target", "as_operator"):
        return _is_operation(text)
    if key == "expr_str":
        return _is_size_expression(text)
    if key in ("in_spec", "out_spec"):
        return _TREE.fullmatch(text) is not None
    if key in ("as_string", "as_strings"):  # torch puts these into its code as literals
        return True
    pattern = _TENSOR_NAME if key in _TENSOR_NAMES else _NAME
    return pattern.fullmatch(text) is not None


def _is_operation(target: str) -> bool:
    match = _ATEN.fullmatch(target)
    if match is None:
        return _OTHER_OPERATION.fullmatch(target) is not None
    name, overload = match.groups()
    packet = getattr(torch.ops.aten, name, None)
    found = getattr(packet, overload, None)
    return name not in _FILE_OPERATIONS and isinstance(found, torch._ops.OpOverload)


def _is_size_expression(text: str) -> bool:
    """Tell whether a text only computes with whole numbers and symbols."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError):
        return False
    return all(_only_computes(node) for node in nodes)


def _only_computes(node: ast.AST) -> bool:
    if isinstance(node, ast.Call):
        return isinstance(node.func, ast.Name)
    if isinstance(node, ast.Name):
        return (_SYMBOL.fullmatch(node.id) or _FUNCTION.fullmatch(node.id)) is not None
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _SYMBOL.fullmatch(node.value) is not None
    if isinstance(node, ast.Constant):
        return isinstance(node.value, bool | int | float)
    return isinstance(node, _HARMLESS)


def _refusal(path: Path, what: str, value: str) -> ArtifactError:
    shown = value if len(value) <= 120 else value[:120] + "..."
    return ArtifactError(
        f"'{path.name}' holds {what}: '{shown}'. A deployed model must hold tensors and operations "
        "of torch only."
    )
