"""The student a recipe asks for, out of a checkpoint, and whether the recipe fits it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanoflux_export.bundle import target_named
from nanoflux_export.golden import GOLDEN_SEED, Request
from nanoflux_export.graph import MobileGraph
from nanoflux_mobile import plugins
from nanoflux_mobile.checkpoint import open_checkpoint
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.lora import fuse, read_lora
from nanoflux_mobile.spec import Recipe, content_digest
from nanoflux_mobile.storage import file_sha256
from nanoflux_mobile.weights import Weights, with_zeros


@dataclass(frozen=True)
class Student:
    """A checkpoint turned into what gets exported; `key` names its weights and settings.

    `family` is the family's module in nanoflux_mobile.families, `parts` what its `load` returned.
    """

    parts: Any
    family: Any
    graphs: tuple[MobileGraph, ...]
    source_sha256: str
    key: str


def make_student(checkpoint: Path, recipe: Recipe) -> Student:
    """The student of a checkpoint under a recipe, and its mobile graphs.

    The recipe's LoRAs are fused first, so a Static-LN table is that of the changed model.
    """
    opened = open_checkpoint(checkpoint)
    if opened.family != recipe.family:
        raise InputError(
            f"recipe {recipe.name} is for the family {recipe.family}, "
            f"but {checkpoint} is of {opened.family}"
        )
    family = plugins.load("nanoflux_mobile.families", opened.family)
    loras = {path: (read_lora(Path(path)), strength) for path, strength in recipe.loras.items()}
    parts = family.load(opened)
    if recipe.non_finite == "zero":
        parts = with_every_weight(parts, with_zeros)
    if loras:
        parts = family.with_denoiser(parts, lambda weights: fuse(weights, list(loras.values())))
    if recipe.side:
        parts = dataclasses.replace(parts, side=recipe.side)
    student = family.make_student(parts, recipe.steps, recipe.calibration_prompts)
    source = opened.digest()
    fused = [[file_sha256(Path(path)), strength] for path, strength in recipe.loras.items()]
    prompts = list(recipe.calibration_prompts)
    settings = [recipe.steps, recipe.side, recipe.non_finite]
    key = content_digest([source, settings, prompts, fused])
    graphs = plugins.load("nanoflux_export.families", opened.family).graphs(student)
    return Student(student, family, graphs, source, key)


def with_every_weight(parts: Any, change: Callable[[Weights], Weights]) -> Any:
    """The parts of any family, the weights of each of its networks passed through `change`."""
    networks = {
        field.name: dataclasses.replace(network, weights=change(network.weights))
        for field in dataclasses.fields(parts.networks)
        if (network := getattr(parts.networks, field.name)) is not None
    }
    return dataclasses.replace(parts, networks=dataclasses.replace(parts.networks, **networks))


def check_recipe(student: Student, recipe: Recipe) -> None:
    """Refuse, before any work, a recipe that does not cover exactly the student's graphs."""
    names = [graph.name for graph in student.graphs]
    _check_suppressions(recipe, names)
    for target_name, wanted in recipe.targets.items():
        where = f"recipe {recipe.name}, targets.{target_name}"
        if sorted(wanted.components) != sorted(names):
            given = ", ".join(sorted(wanted.components))
            raise InputError(f"{where} has components {given}; the family has {', '.join(names)}")
        profiles = target_named(target_name).PROFILES
        if wanted.profile and wanted.profile not in profiles:
            raise InputError(
                f"{where}.profile is {wanted.profile!r}; {target_name} has {', '.join(profiles)}"
            )


def _check_suppressions(recipe: Recipe, components: Sequence[str]) -> None:
    engines = [name for target in recipe.targets for name in target_named(target).PROFILES]
    for one in recipe.suppress:
        if one.engine not in engines or one.component not in components:
            raise InputError(
                f"recipe {recipe.name} suppresses {one.rule} in {one.component}; rules here begin "
                f"with {', '.join(f'{name}/' for name in engines)}, and components are "
                f"{', '.join(components)}"
            )


def golden_request(student: Student, recipe: Recipe) -> Request:
    """The recipe's first calibration prompt, from seed 0."""
    prompt, family, parts = recipe.calibration_prompts[0], student.family, student.parts
    return Request(
        family.token_ids(parts, prompt),
        family.step_tables(parts, prompt, recipe.steps),
        family.noise_levels(parts, recipe.steps),
        parts.canvas,
        GOLDEN_SEED,
    )
