"""Recipes: which graphs go where, stored how, and how close they must stay."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

from nanoflux_mobile import shipped_toml
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Recipe
from nanoflux_mobile.strict_json import from_plain

RECIPES = resources.files("nanoflux_export") / "recipes"


def shipped() -> tuple[str, ...]:
    """Names of the recipes inside the package."""
    return shipped_toml.shipped(RECIPES)


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """A shipped recipe by name, or any .toml file by path, with `key.sub=value` overrides.

    InputError names an unknown recipe, key or value and what is accepted.
    """
    data, where = shipped_toml.load_toml(RECIPES, "recipe", name)
    for override in overrides:
        _override(data, override)
    recipe = from_plain(Recipe, data, where)
    pairs = dict(override.split("=", 1) for override in overrides)
    return dataclasses.replace(recipe, name=Path(name).stem, overrides=pairs)


def with_loras(recipe: Recipe, told: Sequence[str]) -> Recipe:
    """The recipe with LoRAs given as FILE or FILE=STRENGTH; they land in its overrides.

    InputError for a strength that is no number.
    """
    loras = dict(recipe.loras)
    for text in told:
        path, separator, strength = text.rpartition("=")
        try:
            loras[path if separator else text] = float(strength) if separator else 1.0
        except ValueError as error:
            raise InputError(
                f"--lora {text!r}: {strength!r} is no number; give FILE=STRENGTH, such as "
                "style.safetensors=0.8"
            ) from error
    if loras == recipe.loras:
        return recipe
    noted = {f"loras.{Path(path).name}": f"{strength:g}" for path, strength in loras.items()}
    return dataclasses.replace(recipe, loras=loras, overrides={**recipe.overrides, **noted})


def _override(data: dict[str, Any], override: str) -> None:
    """Set one value in place, read as TOML, else as a string."""
    keys, separator, text = override.partition("=")
    if not separator or not keys:
        raise InputError(f"--set {override!r} is not key=value, such as steps=4")
    table: Any = data
    *path, last = keys.split(".")
    for key in path:
        table = table.get(key) if isinstance(table, Mapping) else None
    optional = () if path else [field.name for field in dataclasses.fields(Recipe)]
    if not isinstance(table, dict) or last not in (*table, *optional):
        raise InputError(f"--set {override!r}: the recipe has no value {keys!r}")
    try:
        table[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        table[last] = text
