"""Plans: which cuts make a student, in which order, and how long each is trained.

A plan is TOML. Shares such as "2/3" are taken of the teacher's own sizes, so one plan fits teachers
of several sizes.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any, Literal

from nanoflux_mobile import plugins, shipped_toml
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.strict_json import from_plain

PLANS = resources.files("nanoflux_mobile") / "plans"
STAGES = "nanoflux_mobile.distill.stages"


@dataclass(frozen=True)
class Stage:
    """One cut: `cut` is the module of distill/stages that makes it, `settings` its own."""

    name: str
    cut: str
    settings: Any


@dataclass(frozen=True)
class Plan:
    """A chain of cuts.

    steps: Euler steps of the student. data: what it learns from, "scenes" or the path of a folder
    of pictures; "" leaves that to the command line. batch: samples of a training step.
    answers: how many batches of the teacher's answers are kept on disk, 0 for none.
    """

    schema: Literal["compress/1"]
    family: Literal["nanoflux"]
    summary: str
    steps: int
    batch: int
    data: str = ""
    seed: int = 0
    answers: int = 0
    name: str = ""
    stages: tuple[Stage, ...] = ()

    def __post_init__(self) -> None:
        """Refuse counts that mean nothing."""
        if self.steps < 1 or self.batch < 1 or self.answers < 0:
            raise ValueError(
                f"steps {self.steps}, batch {self.batch}, answers {self.answers}: give steps and "
                "batch from 1, answers from 0"
            )


def names() -> tuple[str, ...]:
    """The plans inside the package."""
    return shipped_toml.shipped(PLANS)


def load(name: str, overrides: Sequence[str] = ()) -> Plan:
    """A plan inside the package by name, or any .toml file by path; InputError says what is off.

    `overrides` are key=value with the names that run.json has: batch=20, heads.train.1.steps=100.
    """
    data, where = shipped_toml.load_toml(PLANS, "plan", name)
    tables = data.pop("stages", [])
    if not isinstance(tables, list) or not tables:
        raise InputError(f"{where} needs at least one [[stages]] table")
    for override in overrides:
        _override(data, tables, override)
    stages = tuple(_stage(table, f"{where}.stages[{i}]") for i, table in enumerate(tables))
    if len({stage.name for stage in stages}) < len(stages):
        raise InputError(f"{where} has two stages of one name; give each its own")
    plan = from_plain(Plan, data, where)
    title = Path(name).name.removesuffix(".toml")
    return dataclasses.replace(plan, name=title, stages=stages)


def _override(data: dict[str, Any], tables: Sequence[Any], override: str) -> None:
    """Set one value in place, read as TOML, else as a string; its type is checked later."""
    keys, separator, text = override.partition("=")
    if not separator or not keys:
        raise InputError(f"--set {override!r} is not key=value, such as heads.choose=first")
    stages = {t.get("name", t.get("cut")): t for t in tables if isinstance(t, dict)}
    *path, last = keys.split(".")
    place: Any = data
    for key in path:
        place = _inside(stages if place is data else place, key)
    if not isinstance(place, dict):
        known = ", ".join(map(str, stages))
        raise InputError(f"--set {override!r}: the plan has no {keys!r}; its stages are {known}")
    try:
        place[last] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        place[last] = text


def _inside(place: Any, key: str) -> Any:
    """What a table has under a name, or a list at a number from 1."""
    if isinstance(place, list):
        return place[int(key) - 1] if key.isdecimal() and 0 < int(key) <= len(place) else None
    return place.get(key) if isinstance(place, dict) else None


def _stage(table: Mapping[str, Any], where: str) -> Stage:
    if not isinstance(table, Mapping):
        raise InputError(f"{where} must be a table")
    cut = table.get("cut")
    known = plugins.names(STAGES)
    if cut not in known:
        raise InputError(f"{where}.cut is {cut!r}; known: {', '.join(known)}")
    name = table.get("name", cut)
    if not isinstance(name, str) or not name.replace("-", "").isalnum():
        raise InputError(f"{where}.name is {name!r}; give letters, digits and hyphens")
    kind = plugins.load(STAGES, cut).Settings
    shares = {field.name for field in dataclasses.fields(kind) if field.type in ("str", str)}
    settings = {
        key: str(value) if key in shares and type(value) is int else value
        for key, value in table.items()
        if key not in ("cut", "name")
    }
    return Stage(name, cut, from_plain(kind, settings, where))


def share_of(wanted: str, present: int, what: str) -> int:
    """A count such as "16", or a fraction such as "2/3" of the `present` one.

    Raises:
        InputError: neither of both, or a share that is not a whole count.
    """
    try:
        count = Fraction(wanted) * (present if "/" in wanted else 1)
    except (ValueError, ZeroDivisionError) as error:
        told = 'give a count such as "16" or a share such as "2/3"'
        raise InputError(f"{what} is {wanted!r}; {told}") from error
    if count.denominator != 1:
        raise InputError(f"{what} is {wanted} of {present}, which is not whole; give another share")
    return int(count)
