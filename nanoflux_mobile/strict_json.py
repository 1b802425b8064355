"""Frozen dataclasses to and from plain JSON or TOML values, strictly.

Every field is checked against its annotation and an unknown or missing one is an error that names
its place, so a file written by another version is refused instead of half understood.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
import sys
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from nanoflux_mobile.errors import InputError

T = TypeVar("T")

MOST_NESTED = 64
_NESTING = {"[": 1, "{": 1, "]": -1, "}": -1}
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"?', re.DOTALL)


def parse_json(text: str) -> Any:
    """The value of a JSON text; ValueError if it is none, or something that JSON leaves open.

    Refused are NaN and infinities, a key that comes twice (readers differ in which one they keep)
    and nesting deeper than our files have.

    The depth is counted first: json recurses in C, and where another library has raised Python's
    recursion limit a hostile file would end the process instead of the parse.
    """
    steps = (_NESTING.get(char, 0) for char in _STRING.sub("", text))
    if max(itertools.accumulate(steps), default=0) > MOST_NESTED:
        raise ValueError(f"nested deeper than {MOST_NESTED} levels")
    return json.loads(text, parse_constant=_refuse_constant, object_pairs_hook=_once)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table: dict[str, Any] = {}
    for name, value in pairs:
        if name in table:
            raise ValueError(f"key {_show(name)} comes twice")
        table[name] = value
    return table


def to_plain(value: Any) -> Any:
    """Dataclasses, mappings and tuples as dicts and lists, ready for json.dumps."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(item) for key, item in value.items()}
    return [to_plain(item) for item in value] if isinstance(value, tuple | list) else value


def from_plain(cls: type[T], data: object, where: str) -> T:
    """`data` as an instance of the dataclass `cls`; `where` opens every error.

    Raises InputError on a wrong type, an unknown field, or a missing field without a default.
    """
    if not isinstance(data, Mapping):
        raise InputError(f"{where} must be a table, not {_show(data)}")
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if unknown := sorted(set(data) - set(fields)):
        raise InputError(f"{where} has no field {_show(unknown[0])}; it has {', '.join(fields)}")
    required = {
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    }
    if missing := sorted(required - set(data)):
        raise InputError(f"{where} lacks {', '.join(missing)}")
    hints = typing.get_type_hints(cls)
    values = {name: _value(hints[name], data[name], f"{where}.{name}") for name in data}
    try:
        return cls(**values)
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error


def _value(hint: Any, data: object, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return from_plain(typing.cast(type, hint), data, where)
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in args:
            return None
        return _value(next(a for a in args if a is not type(None)), data, where)
    if origin is tuple:
        return _row(args, data, where)
    if origin in (dict, Mapping) or getattr(origin, "__name__", "") == "Mapping":
        if not isinstance(data, Mapping):
            raise InputError(f"{where} must be a table, not {_show(data)}")
        named = {_scalar(str, key, where): item for key, item in data.items()}
        return {
            key: _value(args[1], item, f"{where}.{_cut(str(key))}") for key, item in named.items()
        }
    if origin is typing.Literal:
        if data not in args:
            raise InputError(f"{where} is {_show(data)}; known: {', '.join(map(str, args))}")
        return data
    return _scalar(hint, data, where)


def _row(args: tuple[Any, ...], data: object, where: str) -> tuple[Any, ...]:
    if not isinstance(data, list | tuple):
        raise InputError(f"{where} must be a list, not {_show(data)}")
    if len(args) == 2 and args[1] is Ellipsis:
        return tuple(_value(args[0], item, f"{where}[{i}]") for i, item in enumerate(data))
    if len(args) != len(data):
        raise InputError(f"{where} must have {len(args)} entries, not {len(data)}")
    pairs = zip(args, data, strict=True)
    return tuple(_value(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(pairs))


def _scalar(hint: Any, data: object, where: str) -> Any:
    if hint is float and isinstance(data, int) and not isinstance(data, bool):
        if abs(data) > sys.float_info.max:
            raise InputError(f"{where} is too large for a number: {_show(data)}")
        return float(data)
    if type(data) is not hint:
        raise InputError(f"{where} must be {hint.__name__}, not {_show(data)}")
    if hint is str and not _is_text(data):
        raise InputError(f"{where} holds half a character: {_show(data)}")
    return data


def _is_text(data: Any) -> bool:
    """Whether a string can be written; JSON can spell the half of a surrogate pair."""
    try:
        data.encode()
    except UnicodeEncodeError:
        return False
    return True


def _show(data: object) -> str:
    return _cut(repr(data))


def _cut(text: str) -> str:
    return text if len(text) <= 60 else text[:57] + "..."
