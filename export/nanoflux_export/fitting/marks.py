"""Single measurements of a graph's layers, kept in a file that a killed run can go on with."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_SYNC_S = 5.0

Key = tuple[str, str, str]
"""Function, layer and scheme of a mark."""


@dataclass(frozen=True)
class Mark:
    """One measurement of one function: a layer in a scheme, or its start where `layer` is empty.

    values, bytes: how many weights the layer has, and what they take.
    damage: mean squared error of the function's outputs; infinite where they were not finite.
    signal: mean square of the float32 outputs, told with the start.
    """

    function: str
    layer: str
    scheme: str
    values: int
    bytes: int
    damage: float
    signal: float = 0.0

    @property
    def key(self) -> Key:
        """What tells marks apart."""
        return self.function, self.layer, self.scheme


@contextmanager
def kept_marks(path: Path) -> Iterator[tuple[dict[Key, Mark], Callable[[Mark], None]]]:
    """What a file of marks holds, and a way to append one; an end that a kill tore is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with path.open("r+b") as file:
        known = {mark.key: mark for mark in _read(file)}
        synced = time.monotonic()

        def note(mark: Mark) -> None:
            nonlocal synced
            known[mark.key] = mark
            plain = vars(mark) | {"damage": mark.damage if math.isfinite(mark.damage) else None}
            file.write(json.dumps(plain).encode() + b"\n")
            if time.monotonic() - synced > _SYNC_S:
                _sync(file)
                synced = time.monotonic()

        try:
            yield known, note
        finally:
            _sync(file)


def _read(file: IO[bytes]) -> list[Mark]:
    """The whole lines of a file of marks; it goes on behind the last of them."""
    marks: list[Mark] = []
    whole = 0
    for line in file:
        try:
            fields = json.loads(line)
            damage = math.inf if fields["damage"] is None else fields["damage"]
            mark = Mark(**{**fields, "damage": damage})
        except (ValueError, TypeError, KeyError):
            break
        if not line.endswith(b"\n"):
            break
        marks.append(mark)
        whole += len(line)
    file.seek(whole)
    file.truncate()
    return marks


def _sync(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
