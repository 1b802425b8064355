"""The files of a run's folder: what it is of, its metrics, its last state.

run.json says what the run was begun with, metrics.jsonl has a row of figures for every few steps,
last.pt is the state to go on from. Rows of steps that a kill took back are dropped at the next
start, so the curve has every step once.
"""

from __future__ import annotations

import json
import os
import pickle
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.storage import write_file, write_with

RUN, METRICS, LAST = "run.json", "metrics.jsonl", "last.pt"
MOVABLE = ("device", "workers", "save_every_s")
"""Settings that may differ when a run goes on: they change no number of a run on one machine."""
STATE = {"step", "model", "ema", "optimizers"}
_BROKEN = (
    EOFError,
    LookupError,
    OSError,
    RuntimeError,
    ValueError,
    pickle.PickleError,
    zipfile.BadZipFile,
)

Row = Mapping[str, Any]


def check_identity(out: Path, identity: Mapping[str, Any]) -> None:
    """Write what the run is of, or compare it with what is there.

    Raises:
        InputError: the folder holds a run that was begun with other settings.
    """
    wanted = {k: v for k, v in json.loads(json.dumps(identity)).items() if k not in MOVABLE}
    path = out / RUN
    if not path.exists():
        write_file(path, json.dumps(wanted, indent=2, sort_keys=True) + "\n")
        return
    try:
        begun, ours = dict(_flat(json.loads(path.read_bytes()))), dict(_flat(wanted))
    except (ValueError, AttributeError, OSError) as broken:
        raise InputError(f"{path} is damaged ({broken}); remove {out} to start again") from broken
    for key in sorted({*ours, *begun}):
        if ours.get(key) != begun.get(key):
            raise InputError(
                f"{out} holds a run with {key} {_short(begun.get(key))}, this one has "
                f"{_short(ours.get(key))}; give another folder, or the same settings to go on"
            )


def _flat(table: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested tables by dotted names, such as phase.lr."""
    for key, value in table.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{before}{key}.")
        else:
            yield before + key, value


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def keep_rows(path: Path, step: int) -> None:
    """Drop rows after `step`, and a last one that a kill cut short."""
    if not path.exists():
        return
    rows = [row for row in read_rows(path) if row["step"] <= step]
    write_file(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    """All whole rows of a metrics file."""
    rows = []
    for line in path.read_bytes().splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            rows.append(row)
    return rows


def add_row(path: Path, row: Row) -> None:
    """Append a row and see it onto the disk; InputError if there is no room."""
    try:
        with path.open("a") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; make room and run again"
        ) from error


class _Remembering:
    """A file for torch.save, which turns the system's errors into RuntimeErrors of its own."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        try:
            return self.file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def write_state(path: Path, state: Mapping[str, Any]) -> None:
    """Put a training state in the place of an older one; InputError leaves that as it was."""

    def write(file: BinaryIO) -> None:
        into = _Remembering(file)
        try:
            torch.save(state, into)  # type: ignore[arg-type]
        except RuntimeError as error:
            raise (into.error or error) from None

    write_with(path, write)


def read_state(path: Path) -> dict[str, Any]:
    """What `write_state` wrote, on the CPU; InputError for a file that is missing or not whole."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch reads changed bytes without a word
            changed = archive.testzip()
        state = torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError as missing:
        raise InputError(f"{path} is missing; that run was never trained") from missing
    except _BROKEN as broken:
        raise _damaged(path) from broken
    if changed or not isinstance(state, dict) or not state.keys() >= STATE:
        raise _damaged(path)
    return state


def _damaged(path: Path) -> InputError:
    return InputError(
        f"{path} is damaged; put a copy of it back, or remove {path.parent} to start again"
    )


def clear_leftovers(path: Path) -> None:
    """Remove what a kill in the middle of `write_state` left beside `path`."""
    for part in path.parent.glob(f".{path.name}.*.partial"):
        part.unlink(missing_ok=True)
