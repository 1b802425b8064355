"""Recipes: which graphs go where, stored how, and how close they must stay."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Recipe
from nanoflux_mobile.strict_json import from_plain


def shipped() -> tuple[str, ...]:
    """Names of the recipes inside the package."""
    folder = resources.files("nanoflux_export") / "recipes"
    return tuple(sorted(f.name[:-5] for f in folder.iterdir() if f.name.endswith(".toml")))


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name, or any .toml file by path, with `key.sub=value` overrides.

    InputError names an unknown recipe, key or value and what is accepted.
    """
    if name.endswith(".toml"):
        text, where = _read(Path(name)), name
    elif name in shipped():
        text = (resources.files("nanoflux_export") / "recipes" / f"{name}.toml").read_text("utf-8")
        where = f"recipe {name}"
    else:
        known = ", ".join(shipped())
        raise InputError(f"unknown recipe {name!r}; known: {known}, or the path of a .toml file")
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as broken:
        raise InputError(f"{where} is not valid TOML: {broken}") from broken
    for override in overrides:
        _override(data, override)
    recipe = from_plain(Recipe, data, where)
    pairs = dict(override.split("=", 1) for override in overrides)
    return dataclasses.replace(recipe, name=Path(name).stem, overrides=pairs)


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as broken:
        raise InputError(f"recipe {path} cannot be read: {broken}") from broken


def _override(data: dict[str, Any], override: str) -> None:
    """Set one value in place, read as TOML, else as a string."""
    keys, separator, text = override.partition("=")
    if not separator or not keys:
        raise InputError(f"--set {override!r} is not key=value, such as steps=4")
    table: Any = data
    *path, last = keys.split(".")
    for key in path:
        table = table.get(key) if isinstance(table, Mapping) else None
    if not isinstance(table, dict) or last not in table:
        raise InputError(f"--set {override!r}: the recipe has no value {keys!r}")
    try:
        table[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        table[last] = text
