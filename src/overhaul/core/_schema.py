"""JSON Schema of specs in their short form, for editors and for checks without Overhaul."""

import inspect
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import ConfigDict, PydanticInvalidForJsonSchema, WithJsonSchema, create_model
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError, to_jsonable_python

from overhaul.core._names import concrete_subclasses, is_kind, snake_case, spec_name
from overhaul.core._spec import Spec

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PATH = r"^[\w.]+:[\w.]+$"
_MARK = "$kind"  # pydantic would look for the target of a `$ref` among its own definitions


def json_schema(base: type[Spec]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of what `base.from_data` accepts.

    `$defs` has one entry for the fields of each class, under the class name (`PruneWeights`), and
    one for each kind that a field asks for, in snake case (`step`): a name alone where no field is
    needed, or an object whose only key is a name. What belongs to a package of yours is there
    under its module as well (`my_package:MyStep`).

    Args:
        base: The kind of the whole document. Classes that are not imported yet are not in the
            schema by name; by import path (`my_package:MyStep`) they are accepted with any fields.

    Example:
        >>> from overhaul.core import Spec
        >>> class Halve(Spec):
        ...     '''Halve it.'''
        ...
        ...     times: int = 1
        >>> json_schema(Halve)["$defs"]["Halve"]["properties"]
        {'times': {'type': 'integer', 'default': 1}}
    """
    definitions: dict[str, Any] = {}
    kinds, classes = [base], set[type[Spec]]()
    for kind in kinds:  # grows while it is walked
        choices = _choices(kind)
        for cls in choices.values():
            if cls not in classes:
                classes.add(cls)
                definitions[_fields_name(cls)] = _fields_schema(cls, kinds, definitions)
        definitions[_kind_name(kind)] = _kind_schema(kind, choices)
    return {
        "$schema": _DIALECT,
        "title": base.__name__,
        "$ref": _reference(_kind_name(base)),
        "$defs": dict(sorted(definitions.items())),
    }


def _choices(kind: type[Spec]) -> dict[str, type[Spec]]:
    """Return what a recipe file may write where `kind` is asked for, by name."""
    if not is_kind(kind):
        return {spec_name(kind): kind}
    by_path = {_path(cls): cls for cls in concrete_subclasses(kind)}
    names = [spec_name(cls) for cls in by_path.values()]
    return {
        name if names.count(name) == 1 else path: cls
        for name, (path, cls) in sorted(zip(names, by_path.items(), strict=True))
    }


def _kind_schema(kind: type[Spec], choices: dict[str, type[Spec]]) -> dict[str, Any]:
    alone = [name for name, cls in choices.items() if not _required(cls)]
    short_form = {
        "type": "object",
        "minProperties": 1,
        "maxProperties": 1,
        "properties": {name: _value_schema(cls) for name, cls in choices.items()},
        "additionalProperties": False,
    }
    forms: list[dict[str, Any]] = [{"enum": alone}] if alone else []
    if is_kind(kind):
        forms.append({"type": "string", "pattern": _PATH})
        short_form["patternProperties"] = {_PATH: {"type": ["object", "null"]}}
    else:
        forms.append({"$ref": _reference(_fields_name(kind))})
    return {"description": _first_line(kind), "anyOf": [*forms, short_form]}


def _value_schema(cls: type[Spec]) -> dict[str, Any]:
    """Return the schema of what stands after `name:`."""
    fields = _reference(_fields_name(cls))
    forms: list[dict[str, Any]] = [{"$ref": fields}]
    if not _required(cls):
        forms.append({"type": "null"})
    if cls.bare_field is not None:
        forms.append({"$ref": f"{fields}/properties/{cls.bare_field}"})
    return {"description": _first_line(cls), **(forms[0] if len(forms) == 1 else {"anyOf": forms})}


def _fields_schema(
    cls: type[Spec], kinds: list[type[Spec]], definitions: dict[str, Any]
) -> dict[str, Any]:
    """Return the schema of the fields of a class, and note in `kinds` what they ask for."""
    properties = {}
    for name, field in cls.model_fields.items():
        schema = _field_schema(field, kinds, definitions)
        if schema is not None:
            properties[name] = schema
    return {
        "title": cls.__name__,
        "description": _first_line(cls),
        "type": "object",
        "properties": properties,
        "required": _required(cls),
        "additionalProperties": False,
    }


def _field_schema(
    field: FieldInfo, kinds: list[type[Spec]], definitions: dict[str, Any]
) -> dict[str, Any] | None:
    """Return the schema of one field, or None where a file cannot hold any value of it."""
    annotation = _with_references(field.annotation, kinds)
    if field.metadata:
        annotation = Annotated[annotation, *field.metadata]
    model = create_model(
        "Field", __config__=ConfigDict(arbitrary_types_allowed=True), value=(annotation, ...)
    )
    try:
        schema = model.model_json_schema()
    except PydanticInvalidForJsonSchema:
        return None
    schema = _with_marks_replaced(schema)
    found: dict[str, Any] | None = schema["properties"].get("value")
    if found is None:
        return None
    definitions.update(schema.get("$defs", {}))
    found.pop("title", None)
    if field.description:
        found["description"] = field.description
    if not field.is_required():
        try:
            found["default"] = to_jsonable_python(field.get_default(call_default_factory=True))
        except PydanticSerializationError:
            return found
    return found


def _with_references(annotation: Any, kinds: list[type[Spec]]) -> Any:
    """Replace each spec in a type by a mark for its kind; pydantic knows the rest."""
    if inspect.isclass(annotation) and issubclass(annotation, Spec):
        if annotation not in kinds:
            kinds.append(annotation)
        return Annotated[Any, WithJsonSchema({_MARK: _reference(_kind_name(annotation))})]
    origin, arguments = get_origin(annotation), get_args(annotation)
    replaced = tuple(_with_references(argument, kinds) for argument in arguments)
    if replaced == arguments:
        return annotation
    if origin is Annotated:
        return Annotated[replaced[0], *arguments[1:]]
    if origin is UnionType:
        return Union[replaced]  # noqa: UP007 - made at run time
    return origin[replaced] if origin is not None else annotation


def _with_marks_replaced(schema: Any) -> Any:
    if isinstance(schema, dict):
        return {
            "$ref" if key == _MARK else key: _with_marks_replaced(value)
            for key, value in schema.items()
        }
    return list(map(_with_marks_replaced, schema)) if isinstance(schema, list) else schema


def _required(cls: type[Spec]) -> list[str]:
    return [name for name, field in cls.model_fields.items() if field.is_required()]


def _first_line(cls: type[Spec]) -> str:
    return (inspect.getdoc(cls) or "").partition("\n")[0]


def _path(cls: type[Spec]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def _fields_name(cls: type[Spec]) -> str:
    return cls.__name__ if _is_ours(cls) else _path(cls)


def _kind_name(kind: type[Spec]) -> str:
    name = snake_case(kind.__name__)
    return name if _is_ours(kind) else f"{kind.__module__}:{name}"


def _is_ours(cls: type[Spec]) -> bool:
    """Tell whether the class is Overhaul's, where every public name is taken once only."""
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


def _reference(name: str) -> str:
    return f"#/$defs/{name}"
