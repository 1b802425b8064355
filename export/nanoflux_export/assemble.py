"""Filling a bundle's folder and writing the manifest that describes it."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image
from safetensors.numpy import save_file

from nanoflux_export.bundle import GOLDEN, PICTURE, REQUEST, TABLES, artifacts, memory_plan
from nanoflux_export.golden import GOLDEN_SEED, Tensors, save_golden
from nanoflux_export.graph import Target
from nanoflux_export.planning import Planned
from nanoflux_export.saving import SavedChunk
from nanoflux_export.student import Student
from nanoflux_mobile import __version__
from nanoflux_mobile.drawing import to_uint8
from nanoflux_mobile.manifest import (
    SCHEMA,
    Canvas,
    Chunk,
    ComponentEntry,
    Interface,
    Manifest,
    RecipeEntry,
)
from nanoflux_mobile.spec import ComponentName, Floors, Recipe
from nanoflux_mobile.storage import write_file


def fill(
    folder: Path,
    student: Student,
    recipe: Recipe,
    files: Mapping[ComponentName, Sequence[SavedChunk]],
    golden: Tensors,
) -> None:
    """Put every file but the manifest into `folder`."""
    for source in (chunk.path for chunks in files.values() for chunk in chunks):
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
    if "fp32.image" in golden:
        Image.fromarray(to_uint8(golden["fp32.image"])).save(folder / PICTURE)
    request = {"prompt": recipe.calibration_prompts[0], "seed": GOLDEN_SEED}
    write_file(folder / REQUEST, json.dumps(request, indent=2) + "\n")
    sigmas = student.family.noise_levels(student.parts, recipe.steps).sigmas
    write_file(folder / "schedule.json", json.dumps({"sigmas": sigmas}, indent=2) + "\n")


def _entry(
    planned: Planned, chunks: Sequence[SavedChunk], target: Target, floors: Floors
) -> ComponentEntry:
    graph, plan = planned.graph, planned.plan
    whole = next(iter(graph.functions.values()))
    return ComponentEntry(
        name=graph.name,
        scheme=str(plan.default),
        compute_unit=target.PROFILES[plan.profile or next(iter(target.PROFILES))],
        inputs=whole.inputs,
        outputs=whole.outputs,
        floors=floors,
        chunks=tuple(map(_chunk, chunks)),
        layers={name: str(scheme) for name, scheme in sorted(plan.layers.items())},
    )


def _chunk(saved: SavedChunk) -> Chunk:
    files = artifacts(saved.path) if saved.path.is_dir() else ()
    functions = saved.graph.functions.items()
    return Chunk(
        path=f"components/{saved.path.name}",
        weight_bytes=sum(file.bytes for file in files) or saved.path.stat().st_size,
        functions={name: Interface(part.inputs, part.outputs) for name, part in functions},
    )


def describe(
    folder: Path,
    student: Student,
    recipe: Recipe,
    target: Target,
    plans: Sequence[Planned],
    files: Mapping[ComponentName, Sequence[SavedChunk]],
) -> Manifest:
    """The manifest of a filled folder, parity and lint still empty."""
    wanted, canvas = recipe.targets[target.NAME], student.parts.canvas
    schedule = student.family.noise_levels(student.parts, recipe.steps)
    entries = tuple(
        _entry(plan, files[plan.name], target, wanted.components[plan.name].floors)
        for plan in plans
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
        sigmas=schedule.sigmas,
        low_steps=schedule.low_steps,
        tokenizer=student.family.tokenizer_entry(student.parts, "tokenizer"),
        image_floors=wanted.image,
        parity=(),
        lint=(),
        tools=target.tools(),
        created_by=f"nanoflux-mobile {__version__}",
        files=artifacts(folder),
        unmet=tuple(unmet for plan in plans for unmet in plan.unmet),
        hazards=tuple(hazard for plan in plans for hazard in plan.hazards),
        suppress=tuple(one for one in recipe.suppress if one.engine in target.PROFILES),
    )
