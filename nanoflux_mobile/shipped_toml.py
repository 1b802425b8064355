"""TOML files that ship with a package, found by name, and a user's own, found by path."""

from __future__ import annotations

import tomllib
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from nanoflux_mobile.errors import InputError


def shipped(folder: Traversable) -> tuple[str, ...]:
    """Names of the files in a package's folder, without their ending, sorted."""
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml")))


def load_toml(folder: Traversable, kind: str, name: str) -> tuple[dict[str, Any], str]:
    """The table of a shipped file, or of any .toml file by path, and what errors call it.

    Raises:
        InputError: an unknown name, a file that cannot be read, or no TOML; `kind` says of what.
    """
    if name.endswith(".toml"):
        text, where = _read(Path(name), kind), name
    elif name in shipped(folder):
        text, where = (folder / f"{name}.toml").read_text("utf-8"), f"{kind} {name}"
    else:
        known = ", ".join(shipped(folder))
        raise InputError(f"unknown {kind} {name!r}; known: {known}, or the path of a .toml file")
    try:
        return tomllib.loads(text), where
    except tomllib.TOMLDecodeError as broken:
        raise InputError(f"{where} is not valid TOML: {broken}") from broken


def _read(path: Path, kind: str) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as broken:
        raise InputError(f"{kind} {path} cannot be read: {broken}") from broken
