"""Dataclasses that know the ranges of their values, from and to JSON.

`between`     a field with a default and a range;  `Ranged`  the base that checks them
`to_dict`, `from_dict`   nested dicts as JSON has them;  `changed`  a copy with other values
"""

import dataclasses
import math
import types
import typing
from typing import Any, ClassVar, TypeVar

from wan_streamer.errors import ConfigError

T = TypeVar("T")
SHOWN = 60  # characters of a wrong value in a message


def between(default: Any, low: float, high: float) -> Any:
    """A field whose value, or each of them if it is a tuple, is at least `low` and at most `high`."""
    return dataclasses.field(default=default, metadata={"range": (low, high)})


class Ranged:
    """Base of a configuration. `place` is what its values are called after in messages."""

    place: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            _check_range(field, getattr(self, field.name), f"{self.place}.{field.name}".lstrip("."))


def _check_range(field: dataclasses.Field, value: Any, where: str) -> None:
    if "range" not in field.metadata:
        return
    low, high = field.metadata["range"]
    # written so that NaN is outside
    if not all(low <= number <= high for number in (value if isinstance(value, tuple) else (value,))):
        raise ConfigError(f"{where}: expected {low} to {high}, got {_shown(value)}")


def to_dict(config: object) -> dict:
    """Nested dict of a dataclass as JSON gives it back: lists in place of tuples."""
    return _lists(dataclasses.asdict(config))  # type: ignore[call-overload]


def _lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _lists(item) for key, item in value.items()}
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def from_dict(cls: type, data: object, where: str = "config"):
    """Build config `cls` from nested dicts. Raises `ConfigError` on unknown keys, wrong types and ranges."""
    if not isinstance(data, dict):
        raise ConfigError(f"{where}: expected an object, got {type(data).__name__}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}
    unknown = sorted(set(data) - set(fields))
    if unknown:
        raise ConfigError(f"{where}: unknown key {_shown(unknown[0])}; known keys are {', '.join(sorted(fields))}")
    values = {key: _convert(hints[key], value, f"{where}.{key}") for key, value in data.items()}
    for key, value in values.items():
        _check_range(fields[key], value, f"{where}.{key}")
    return cls(**values)


def changed(config: T, **values: object) -> T:
    """`config` with other values; None keeps what is there. Raises `ConfigError` on wrong types and ranges."""
    given = {key: value for key, value in values.items() if value is not None}
    if not given:
        return config
    return from_dict(type(config), to_dict(config) | given, getattr(config, "place", "config"))


def _convert(hint: object, value: object, where: str) -> object:
    if isinstance(hint, types.UnionType):  # the only one in use: something or None
        return None if value is None else _convert(typing.get_args(hint)[0], value, where)
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    if isinstance(hint, types.GenericAlias):  # the only generic in use: a tuple
        kinds = typing.get_args(hint)
        if kinds[-1] is Ellipsis and isinstance(value, list | tuple):  # of any length
            kinds = kinds[:1] * len(value)
        if not isinstance(value, list | tuple) or len(value) != len(kinds):
            raise ConfigError(f"{where}: expected {len(kinds)} numbers, got {_shown(value)}")
        return tuple(_convert(kind, item, where) for kind, item in zip(kinds, value, strict=True))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        try:
            return float(value)
        except OverflowError:
            return math.inf if value > 0 else -math.inf
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):  # type: ignore[arg-type]
        raise ConfigError(f"{where}: expected {hint.__name__}, got {_shown(value)}")  # type: ignore[attr-defined]
    return value


def _shown(value: object) -> str:
    """A value as one short printable line."""
    if isinstance(value, int) and value.bit_length() > 8 * SHOWN:  # Python writes no integer of thousands of digits
        return f"an integer of {value.bit_length()} bits"
    try:
        text = repr(value).encode(errors="backslashreplace").decode()
    except (RecursionError, ValueError):
        return type(value).__name__
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
