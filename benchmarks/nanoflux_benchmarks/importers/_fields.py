"""Other makers' JSON, read field by field: every error names the place, no other key matters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.strict_json import parse_json

MOST = 1e15
"""Larger than any figure of ours: 31 years in microseconds, a petabyte."""


@dataclass(frozen=True)
class Field:
    """A value and its place in the file."""

    value: Any
    where: str

    def __getitem__(self, key: str) -> Field:
        """A field of a table; InputError when it is absent or null."""
        found = self.get(key)
        if found is None:
            raise InputError(f"{self.where} lacks {key}; export it again with that field")
        return found

    def get(self, key: str) -> Field | None:
        """A field of a table; None when it is absent or null."""
        if not isinstance(self.value, dict):
            raise self._not("a table")
        value = self.value.get(key)
        return None if value is None else Field(value, f"{self.where}.{key}")

    def rows(self) -> tuple[Field, ...]:
        """The entries of a list."""
        if not isinstance(self.value, list):
            raise self._not("a list")
        return tuple(Field(value, f"{self.where}[{i}]") for i, value in enumerate(self.value))

    def text(self) -> str:
        """A text that can be written to a file again."""
        if not isinstance(self.value, str) or not _encodable(self.value):
            raise self._not("a text")
        return self.value

    def number(self) -> float:
        """A time or a size: finite, not negative."""
        if type(self.value) not in (int, float) or not 0 <= self.value <= MOST:
            raise self._not(f"a number from 0 to {MOST:g}")
        return float(self.value)

    def flag(self) -> bool:
        """True or false."""
        if not isinstance(self.value, bool):
            raise self._not("true or false")
        return self.value

    def _not(self, accepted: str) -> InputError:
        found = f"{self.value!r:.60}"
        return InputError(f"{self.where} is {found}; accepted: {accepted}; export it again")


def fields(text: str, where: str) -> Field:
    """The value of a JSON text; `where` opens every error.

    Raises:
        InputError: it is no JSON, or one that readers understand differently.
    """
    try:
        return Field(parse_json(text), where)
    except ValueError as broken:
        raise InputError(f"{where} cannot be read as JSON: {broken}; fetch it again") from broken


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
