"""`Fields`: values of a JSON object, each held against the type that it must have."""

from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")


class Fields:
    """The values of a JSON object whose names are known.

    Raises:
        ValueError: it is no object, or has a name that is not known.

    Example:
        >>> Fields({"file": "model.onnx"}, ("file",)).get("file", str)
        'model.onnx'
    """

    def __init__(self, data: object, known: Iterable[str]) -> None:
        """Hold the values."""
        self._known = tuple(known)
        if not isinstance(data, dict):
            raise ValueError(f"an object is expected, got {data!r:.80}")
        unknown = sorted(set(data) - set(self._known))
        if unknown:
            raise ValueError(f"it has the unknown field '{unknown[0]}'")
        self._data = data

    def get(self, name: str, kind: type[T]) -> T:
        """Return a value.

        Raises:
            ValueError: it is missing or of another type.
        """
        if name not in self._data:
            raise ValueError(f"its field '{name}' is missing")
        value = self._data[name]
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise ValueError(f"its field '{name}' must be {kind.__name__}, got {value!r:.80}")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of strings.

        Raises:
            ValueError: it is missing or something else.
        """
        values = self.get(name, list)
        if not all(isinstance(value, str) for value in values):
            raise ValueError(f"its field '{name}' must have strings only, got {values!r:.80}")
        return tuple(values)

    def texts_by_name(self, name: str) -> dict[str, str]:
        """Return an object of strings.

        Raises:
            ValueError: it is missing or something else.
        """
        values = self.get(name, dict)
        if not all(isinstance(value, str) for value in values.values()):
            raise ValueError(f"its field '{name}' must have strings only, got {values!r:.80}")
        return dict(values)

    def has(self, name: str) -> bool:
        """Return whether there is a value that is not null."""
        return self._data.get(name) is not None

    def any(self, name: str) -> Any:
        """Return a value of any kind; None if it is missing."""
        return self._data.get(name)
