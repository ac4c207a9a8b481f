"""`Spec`: what steps, plugs and tasks have in common. They are data."""

import math
from collections.abc import Callable, Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, ClassVar, Self, TypeAlias, get_origin

import numpy as np
import torch
import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    GetCoreSchemaHandler,
    ModelWrapValidatorHandler,
    PlainSerializer,
    ValidationError,
    WithJsonSchema,
    model_serializer,
    model_validator,
)
from pydantic_core import ErrorDetails, core_schema
from torch import nn

from overhaul.core._errors import SpecError
from overhaul.core._names import find_class, import_object, import_path, is_kind, snake_case
from overhaul.runtime import nearest


def _import_if_path(value: Any) -> Any:
    return import_object(value) if isinstance(value, str) else value


Factory: TypeAlias = Annotated[
    Callable[..., nn.Module],
    BeforeValidator(_import_if_path),
    PlainSerializer(lambda value: import_path(value), return_type=str),
    WithJsonSchema({"type": "string", "pattern": r"^[\w.]+:[\w.]+$"}),
]
"""A function or class that builds a network; in a recipe file its import path."""


class InputFile(str):
    """The path of a file that a result depends on.

    Its content, and not its path alone, decides whether a finished step can be used again.
    """

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: type[Any], handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Accept any string."""
        return core_schema.no_info_after_validator_function(cls, core_schema.str_schema())


StandIn: TypeAlias = Callable[[Any], Any]
"""Returns what to write in place of something that a file cannot hold, or of a file's path."""


class Spec(BaseModel):
    """A frozen description with a name, that prints as the code that makes it.

    In a recipe file a spec is written by its short name: alone (`taylor`), or as the only key of a
    mapping that holds its fields (`taylor: {batches: 4}`).

    Raises:
        SpecError: a field is unknown or missing, or its value is refused.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", arbitrary_types_allowed=True, protected_namespaces=()
    )

    bare_field: ClassVar[str | None] = None
    """The field that is meant where a recipe file has a value instead of a mapping of fields."""

    def __new__(cls, *values: Any, **fields: Any) -> Self:
        """Refuse values without the name of their field, which Python would do in its own words."""
        if values and cls.__init__ is Spec.__init__:
            known = list(cls.model_fields)
            example = f" Write {cls.__name__}({known[0]}=...)." if known else ""
            raise SpecError(
                f"{cls.__name__} takes its fields by name, got {', '.join(map(_code, values))} "
                f"without one.{example} Known: {', '.join(known) or 'none'}."
            )
        return super().__new__(cls)

    def __init__(self, **fields: Any) -> None:
        """Check the fields; see the class for what they mean."""
        own = self.spec_name()
        for name, value in fields.items():
            known = type(self).model_fields.get(name)
            if isinstance(value, Spec) and known and get_origin(known.annotation) is tuple:
                # It can be iterated over, so pydantic would take its fields for the items.
                raise SpecError(
                    f"`{name}` of {own} must be a list, got {value!r}. Write {name}=[{value!r}]."
                )
        if list(fields) == [own] and own not in type(self).model_fields:
            # Otherwise this one field would be read as the short form of another object.
            raise SpecError(f"{own} has no field '{own}'. {nearest(own, type(self).model_fields)}")
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise SpecError(_explain(type(self), error)) from None

    @classmethod
    def spec_name(cls) -> str:
        """Return the short name that recipe files use."""
        return snake_case(cls.__name__)

    @model_validator(mode="wrap")
    @classmethod
    def _accept_short_form(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(value, str):
            value = {value: None}
        if isinstance(value, Mapping) and _is_short_form(cls, value):
            name, fields = next(iter(value.items()))
            found = find_class(cls, str(name))
            if fields is not None and not isinstance(fields, Mapping):
                return found._from_bare_value(fields)
            return found(**{str(k): v for k, v in (fields or {}).items()})
        if isinstance(value, Mapping) and is_kind(cls):
            raise SpecError(
                f"a {snake_case(cls.__name__)} is written as one name with its fields, "
                f"'name: {{field: value}}', got the keys {sorted(map(str, value))}."
            )
        return handler(value)

    @classmethod
    def _from_bare_value(cls, value: Any) -> Self:
        """Make the spec from a value that is not a mapping of fields."""
        if cls.bare_field is None:
            raise SpecError(
                f"the fields of {cls.spec_name()} are a mapping, got {value!r}. "
                f"Known: {', '.join(cls.model_fields) or 'none'}."
            )
        return cls(**{cls.bare_field: value})

    @model_serializer(mode="plain")
    def _serialize(self) -> Any:
        return self.to_data()

    def _changed_fields(self) -> dict[str, Any]:
        fields = type(self).model_fields
        return {
            name: value
            for name, value in self
            if fields[name].is_required()
            or not _same(value, fields[name].get_default(call_default_factory=True))
        }

    def __repr__(self) -> str:
        """Return code that makes an equal object."""
        fields = ", ".join(f"{k}={_code(v)}" for k, v in self._changed_fields().items())
        return f"{type(self).__name__}({fields})"

    __str__ = __repr__

    def __eq__(self, other: object) -> bool:
        """Tell whether both are of one class and every field is equal (tensors by value)."""
        if type(self) is not type(other):
            return NotImplemented
        return all(_same(value, getattr(other, name)) for name, value in self)

    def __hash__(self) -> int:
        """Hash by the code that makes the object."""
        return hash(repr(self))

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Return a copy with some fields changed; unlike pydantic's, the new values are checked.

        Args:
            update: New values by field name.
            deep: Not supported: specs are immutable.

        Raises:
            SpecError: a name is not a field, or a value is refused.
        """
        if deep:
            raise SpecError("a spec is immutable: a deep copy is never needed.")
        fields = {name: getattr(self, name) for name in self.model_fields_set}
        return type(self)(**{**fields, **(update or {})})

    def to_data(self, stand_in: "StandIn | None" = None) -> Any:
        """Return the short form made of dicts, lists, strings and numbers only.

        Args:
            stand_in: Returns what to write for a network or for data; without it they are refused.

        Raises:
            SpecError: a field holds something that a file cannot (a lambda, a network, data).
        """
        fields = {
            name: _to_data(value, f"{self.spec_name()}.{name}", stand_in)
            for name, value in self._changed_fields().items()
        }
        return {self.spec_name(): fields} if fields else self.spec_name()

    @classmethod
    def from_data(cls, data: Any) -> Self:
        """Make a spec from its short form.

        Raises:
            SpecError: a name or key is unknown (the nearest is named), or a value is refused.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SpecError(_explain(cls, error)) from None

    def to_yaml(self) -> str:
        """Return the short form as YAML."""
        return yaml_text(self.to_data())

    @classmethod
    def from_yaml(cls, text: str) -> Self:
        """Make a spec from the YAML (or JSON) text of its short form."""
        try:
            return cls.from_data(yaml.load(text, _Loader))
        except yaml.YAMLError as error:
            where = str(error).replace('in "<unicode string>", ', "at ")
            raise SpecError(f"this is not YAML: {where}") from None


def yaml_text(data: object) -> str:
    """Return plain data as YAML from which the same data is read."""
    text: str = yaml.safe_dump(data, sort_keys=False, allow_unicode=True)
    if yaml.safe_load(text) != data:  # some control characters are written as line breaks
        text = yaml.safe_dump(data, sort_keys=False, allow_unicode=False)
    return text


class _Loader(yaml.SafeLoader):
    """Refuses a key that is written twice, of which YAML's own loader keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        for key in keys:
            if keys.count(key) > 1:
                raise SpecError(
                    f"the key '{key}' is written {keys.count(key)} times in one mapping (line "
                    f"{node.start_mark.line + 1}). Keep one of them."
                )
        return super().construct_mapping(node, deep=deep)


def _is_short_form(cls: type[Spec], value: Mapping[Any, Any]) -> bool:
    if len(value) != 1:
        return False
    key = str(next(iter(value)))
    return key not in cls.model_fields and (is_kind(cls) or key == cls.spec_name())


def _same(left: Any, right: Any) -> bool:
    if left is right:
        return True
    if isinstance(left, bool) != isinstance(right, bool):
        return False
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return (left.dtype, left.device) == (right.dtype, right.device) and torch.equal(left, right)
    if isinstance(left, tuple | list) and isinstance(right, tuple | list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, Mapping) and isinstance(right, Mapping):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, np.ndarray) or isinstance(right, np.ndarray):
        return bool(np.array_equal(left, right))
    try:
        return bool(left == right)
    except (TypeError, ValueError, RuntimeError):
        return False


def _plain(value: Any) -> Any:
    """Turn the look-alikes of plain values (enums, NumPy scalars, paths) into plain values."""
    if isinstance(value, Enum):
        return _plain(value.value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    return value


def _to_data(value: Any, field: str, stand_in: StandIn | None) -> Any:
    """Turn the value of a field into plain data, or say which field cannot be saved."""
    value = _plain(value)
    if isinstance(value, Spec):
        return value.to_data(stand_in)
    if isinstance(value, frozenset):
        value = _in_order(value)
    if isinstance(value, tuple | list):
        return [_to_data(item, f"{field}[{i}]", stand_in) for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {str(k): _to_data(item, f"{field}.{k}", stand_in) for k, item in value.items()}
    if isinstance(value, InputFile):
        return str(value) if stand_in is None else stand_in(value)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if callable(value) and not isinstance(value, nn.Module):
        path = import_path(value)
        if path is not None:
            return path
        raise SpecError(
            f"`{field}` holds {getattr(value, '__qualname__', value)!r}, which cannot be "
            "imported by name. Move it to the top level of a module of yours."
        )
    if stand_in is not None:
        return stand_in(value)
    if isinstance(value, nn.Module):
        raise SpecError(
            f"`{field}` holds a network ({type(value).__name__}), which a recipe file cannot "
            "hold. Give a factory by its import path and a weights file instead."
        )
    raise SpecError(
        f"`{field}` holds {type(value).__name__}, which a recipe file cannot hold. Give data by "
        "the name of a built-in data set."
    )


def _code(value: Any) -> str:
    value = _plain(value)
    if isinstance(value, tuple):
        inner = ", ".join(map(_code, value))
        return f"({inner},)" if len(value) == 1 else f"({inner})"
    if isinstance(value, list):
        return f"[{', '.join(map(_code, value))}]"
    if isinstance(value, frozenset) and value:
        return f"frozenset({{{', '.join(map(_code, _in_order(value)))}}})"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{k!r}: {_code(v)}" for k, v in value.items()) + "}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"float('{value}')"
    if callable(value) and not isinstance(value, nn.Module):
        return repr(import_path(value) or value)
    if isinstance(value, torch.Tensor | np.ndarray):
        return f"<{type(value).__name__} {tuple(value.shape)}>"
    if isinstance(value, nn.Module):
        return f"<{type(value).__name__}>"
    return repr(value)


def _in_order(values: frozenset[Any]) -> list[Any]:
    """Sort a set, whose own order differs from process to process."""
    return sorted(values, key=lambda value: (type(value).__name__, _code(value)))


def _explain(cls: type[Spec], error: ValidationError) -> str:
    """Turn pydantic's findings into one sentence for each field: rule, value, what to do."""
    findings: dict[tuple[str, ...], list[ErrorDetails]] = {}
    for detail in error.errors():
        findings.setdefault(_field_of(detail), []).append(detail)
    return "\n".join(
        _explain_field(cls, location, details)
        for location, details in findings.items()
        # A list is found too short when an item of it was refused, which is said already.
        if details[0]["type"] != "too_short" or not _has_below(location, findings)
    )


def _has_below(location: tuple[str, ...], findings: Iterable[tuple[str, ...]]) -> bool:
    size = len(location)
    return any(len(other) > size and other[:size] == location for other in findings)


def _explain_field(cls: type[Spec], location: tuple[str, ...], details: list[ErrorDetails]) -> str:
    field, detail = ".".join(location), details[0]
    if detail["type"] == "extra_forbidden":
        return f"{cls.spec_name()} has no field '{field}'. {nearest(field, cls.model_fields)}"
    if detail["type"] == "missing":
        return f"{cls.spec_name()} needs the field `{field}`."
    for each in details:
        inner = each.get("ctx", {}).get("error")
        if isinstance(inner, SpecError):
            # It was meant to be a spec, so what the other members of a union want is no help.
            return f"in `{field}`: {inner}" if field else str(inner)
        if isinstance(inner, ValueError):
            return f"`{field}` {inner}" if field else str(inner)
    rule = " or ".join(map(_rule, details))
    known = cls.model_fields.get(location[0]) if location else None
    meaning = f" {known.description}" if known is not None and known.description else ""
    subject = f"`{field}` of {cls.spec_name()}" if field else f"a {cls.spec_name()}"
    return f"{subject} {rule}, got {_code(detail['input'])}.{meaning}"


def _rule(detail: ErrorDetails) -> str:
    """Return pydantic's rule in the words of a recipe file."""
    if detail["type"] == "model_type" and isinstance(detail["input"], Spec):
        return f"must be a {detail['ctx']['class_name']}"
    if detail["type"] == "too_short":
        least = detail["ctx"]["min_length"]
        return f"must have at least {least} item{'s' if least > 1 else ''}"
    if detail["type"] in _RULES:
        return f"must be {_RULES[detail['type']]}"
    return detail["msg"].replace("Input should be", "must be").replace("Tuple should", "must")


_RULES = {
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "a whole number"),
    **dict.fromkeys(("float_type", "float_parsing"), "a number"),
    "finite_number": "a finite number",
    **dict.fromkeys(("bool_type", "bool_parsing"), "true or false"),
    **dict.fromkeys(("tuple_type", "list_type"), "a list"),
    **dict.fromkeys(("model_type", "dict_type"), "a mapping of fields (`name: value`)"),
    "string_type": "text",
}


def _field_of(detail: ErrorDetails) -> tuple[str, ...]:
    """Return where a finding is, without the parts that name a member of a union."""
    parts = [part for part in detail["loc"] if not isinstance(part, str) or "[" not in part]
    while len(parts) > 1 and parts[-1] in _UNION_MEMBERS:
        parts.pop()
    return tuple(map(str, parts))


_UNION_MEMBERS = {"str", "bool", "int", "float", "constrained-float", "none", "callable"}
