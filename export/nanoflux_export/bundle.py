"""Bundles on disk: writing one, opening one, running one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from safetensors.numpy import load_file

from nanoflux_export.graph import MAIN, STEP_FULL, STEP_LOW, Precision, Runner, Target
from nanoflux_mobile import plugins
from nanoflux_mobile.cost import SCHEMA as COST_SCHEMA
from nanoflux_mobile.cost import Cost
from nanoflux_mobile.drawing import Canvas, Graphs
from nanoflux_mobile.errors import CheckFailed, InputError
from nanoflux_mobile.manifest import Artifact, ComponentEntry, Manifest, MemoryStep, read_manifest
from nanoflux_mobile.sampler import Schedule
from nanoflux_mobile.spec import Component, ComponentName
from nanoflux_mobile.storage import file_sha256
from nanoflux_mobile.tokenizer import encode_prompt, load_tokenizer

GOLDEN, TABLES = "golden/tensors.safetensors", "step_tables.safetensors"
PICTURE, REQUEST = "golden/image.png", "golden/golden.json"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: every file is there and has the sha256 its manifest states."""

    path: Path
    manifest: Manifest

    @property
    def schedule(self) -> Schedule:
        """The noise levels it was made for."""
        return Schedule(self.manifest.sigmas, self.manifest.low_steps)

    @property
    def canvas(self) -> Canvas:
        """Geometry of its latents."""
        canvas = self.manifest.canvas
        return Canvas(canvas.channels, canvas.height, canvas.width, canvas.patch)


def target_named(name: str) -> Target:
    """The functions of a runtime, by the name of its folder."""
    plugins.load("nanoflux_export.targets", name)
    return plugins.load(f"nanoflux_export.targets.{name}", "target")


def artifacts(folder: Path) -> tuple[Artifact, ...]:
    """Every file below a folder, with hash and size, in the order of their paths."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return tuple(
        Artifact(path.relative_to(folder).as_posix(), file_sha256(path), path.stat().st_size)
        for path in files
    )


def total_cost(target: Target, files: Mapping[ComponentName, Sequence[Path]]) -> Cost:
    """What the saved files of a bundle cost; `files` maps components to packages."""
    costs = [target.cost(path, name) for name, paths in files.items() for path in paths]
    blocks = tuple(block for cost in costs for block in cost.blocks)
    return Cost(COST_SCHEMA, target.NAME, blocks, sum(cost.crossings for cost in costs))


def open_bundle(path: Path) -> Bundle:
    """A bundle whose files all match its manifest.

    CheckFailed names the first file that is missing, changed or not listed; nothing of a bundle is
    handed to a runtime before this has passed.
    """
    manifest = read_manifest(path)
    listed = {file.path: file for file in manifest.files}
    present = {file.path: file for file in artifacts(path) if file.path != "manifest.json"}
    for name, file in listed.items():
        if name not in present:
            raise CheckFailed(f"{path}: {name} is missing; export the bundle again")
        if present[name].sha256 != file.sha256:
            raise CheckFailed(
                f"{path}: {name} was changed after it was made: its sha256 begins with "
                f"{present[name].sha256[:12]}, the manifest says {file.sha256[:12]}; export again"
            )
    if extra := sorted(present.keys() - listed.keys()):
        raise CheckFailed(f"{path}: {extra[0]} is not in the manifest; remove it or export again")
    return Bundle(path, manifest)


def saved_graphs(bundle: Bundle, precision: Precision = "fp32") -> Graphs:
    """The bundle's own files, loaded into their runtime on this machine."""
    target = target_named(bundle.manifest.target)
    runners = {
        (entry.name, function): loaded(bundle, target, entry, function, precision)
        for entry in bundle.manifest.components
        for function in entry.functions
    }
    return graphs_of(runners, str(bundle.path))


def loaded(
    bundle: Bundle, target: Target, entry: ComponentEntry, function: str, precision: Precision
) -> Runner:
    """One function of a component, through all chunks that have it."""
    links = []
    for chunk in entry.chunks:
        if function in chunk.functions:
            face = chunk.functions[function]
            part = Component(entry.name, face.inputs, face.outputs)
            path = bundle.path / chunk.path
            links.append((part, target.load(path, part, function=function, precision=precision)))
    return chained(links, entry.component)


def chained(links: Sequence[tuple[Component, Runner]], whole: Component) -> Runner:
    """Runners one after another as one; every value is handed on by name."""
    if len(links) == 1:
        return links[0][1]

    def run(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        known = dict(inputs)
        for part, runner in links:
            known |= runner({spec.name: known[spec.name] for spec in part.inputs})
        return {spec.name: known[spec.name] for spec in whole.outputs}

    return run


def graphs_of(runners: Mapping[tuple[ComponentName, str], Runner], where: str) -> Graphs:
    """The functions of a bundle in their places; InputError names one that is lacking."""
    low = runners.get(("denoiser", STEP_LOW))
    places: dict[ComponentName, str] = dict.fromkeys(get_args(ComponentName), MAIN)
    places["denoiser"] = STEP_FULL if low else MAIN
    if lacking := sorted(name for name, f in places.items() if (name, f) not in runners):
        raise InputError(f"{where} lacks the graph {lacking[0]}; export it again")
    return Graphs(**{name: runners[name, f] for name, f in places.items()}, low_denoiser=low)


def bundle_token_ids(bundle: Bundle, prompt: str) -> np.ndarray:
    """A prompt as the bundle's text encoder takes it, int32 (1, T)."""
    entry = bundle.manifest.tokenizer
    tokenizer = load_tokenizer((bundle.path / entry.path).parent)
    return encode_prompt(tokenizer, prompt, entry.length, entry.pad)


def step_tables(bundle: Bundle) -> np.ndarray:
    """Modulation of every step, float32 (steps, 1, D, 1, N); InputError for other step counts."""
    tables = load_file(bundle.path / TABLES)["step_tables"]
    if len(tables) != bundle.schedule.steps:
        raise InputError(
            f"{bundle.path}: {TABLES} holds {len(tables)} steps and the schedule has "
            f"{bundle.schedule.steps}; export the bundle again"
        )
    return tables


def memory_plan(entries: tuple[ComponentEntry, ...]) -> tuple[MemoryStep, ...]:
    """Load, run and drop one graph after another, so that the largest alone sets the peak."""
    return tuple(
        MemoryStep(action, entry.name, entry.weight_bytes if action != "unload" else 0)
        for entry in entries
        for action in ("load", "run", "unload")
    )
