"""Filling a bundle's folder and writing the manifest that describes it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from PIL import Image
from safetensors.numpy import save_file

from nanoflux_export.bundle import GOLDEN, PICTURE, REQUEST, TABLES, artifacts, memory_plan
from nanoflux_export.golden import Tensors, save_golden
from nanoflux_export.graph import MobileGraph, Target
from nanoflux_export.student import GOLDEN_SEED, Student
from nanoflux_mobile import __version__
from nanoflux_mobile.drawing import to_uint8
from nanoflux_mobile.manifest import (
    SCHEMA,
    Canvas,
    ComponentEntry,
    Manifest,
    RecipeEntry,
)
from nanoflux_mobile.spec import ComponentRecipe, Recipe
from nanoflux_mobile.storage import write_file


def fill(
    folder: Path, student: Student, recipe: Recipe, files: Mapping[str, Path], golden: Tensors
) -> None:
    """Put every file but the manifest into `folder`; `files` maps components to packages."""
    for source in files.values():
        final = folder / "components" / source.name
        final.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, final)
        else:
            shutil.copy(source, final)
    student.family.save_tokenizer(student.parts, folder / "tokenizer")
    save_file({"step_tables": golden["step_tables"]}, folder / TABLES)
    (folder / GOLDEN).parent.mkdir()
    save_golden(golden, folder / GOLDEN)
    Image.fromarray(to_uint8(golden["fp32.image"])).save(folder / PICTURE)
    request = {"prompt": recipe.calibration_prompts[0], "seed": GOLDEN_SEED}
    write_file(folder / REQUEST, json.dumps(request, indent=2) + "\n")
    sigmas = student.family.noise_levels(student.parts, recipe.steps).sigmas
    write_file(folder / "schedule.json", json.dumps({"sigmas": sigmas}, indent=2) + "\n")


def _entry(
    folder: Path, graph: MobileGraph, target: Target, wanted: ComponentRecipe
) -> ComponentEntry:
    component = graph.component
    path = f"components/{component.name}{target.SUFFIX}"
    package = folder / path
    files = artifacts(package) if package.is_dir() else ()
    return ComponentEntry(
        name=component.name,
        path=path,
        scheme=wanted.scheme,
        compute_unit=target.COMPUTE_UNIT,
        functions=("main",),
        weight_bytes=sum(f.bytes for f in files) or package.stat().st_size,
        inputs=component.inputs,
        outputs=component.outputs,
        floors=wanted.floors,
    )


def describe(folder: Path, student: Student, recipe: Recipe, target: Target) -> Manifest:
    """The manifest of a filled folder, parity and lint still empty."""
    wanted, canvas = recipe.targets[target.NAME], student.parts.canvas
    entries = tuple(
        _entry(folder, graph, target, wanted.components[graph.component.name])
        for graph in student.graphs
    )
    return Manifest(
        schema=SCHEMA,
        family=recipe.family,
        target=target.NAME,
        recipe=RecipeEntry(recipe.name, recipe.digest, recipe.overrides),
        source_sha256=student.source_sha256,
        components=entries,
        memory_plan=memory_plan(entries),
        canvas=Canvas(**dataclasses.asdict(canvas), image_side=student.parts.side),
        sigmas=student.family.noise_levels(student.parts, recipe.steps).sigmas,
        tokenizer=student.family.tokenizer_entry(student.parts, "tokenizer"),
        image_floors=wanted.image,
        parity=(),
        lint=(),
        tools=target.tools(),
        created_by=f"nanoflux-mobile {__version__}",
        files=artifacts(folder),
    )
