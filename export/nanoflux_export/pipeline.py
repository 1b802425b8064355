"""From a checkpoint to verified bundles, one for each target of the recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from nanoflux_export import golden as golden_run
from nanoflux_export.assemble import describe, fill
from nanoflux_export.bundle import Bundle, target_named, total_cost
from nanoflux_export.compression.activation_rounding import with_rounded_inputs
from nanoflux_export.compression.rounding import rounded
from nanoflux_export.findings import explain_finding
from nanoflux_export.fitting.activity import Activity
from nanoflux_export.fitting.fit import Fit
from nanoflux_export.golden import Tensors
from nanoflux_export.graph import Segment, Target
from nanoflux_export.planning import Desk, Planned, plan, sketch
from nanoflux_export.saving import check_disk, check_memory, save_graph
from nanoflux_export.student import Student, check_recipe, golden_request, make_student
from nanoflux_export.torch_run import torch_graphs
from nanoflux_export.verify import verify
from nanoflux_export.work import WORK, Journal, once
from nanoflux_mobile import plugins
from nanoflux_mobile.cost import FILE as COST
from nanoflux_mobile.cost import cost_json
from nanoflux_mobile.errors import CheckFailed, InputError
from nanoflux_mobile.manifest import FILE, Manifest, manifest_json
from nanoflux_mobile.parity import Parity
from nanoflux_mobile.spec import ComponentName, Recipe
from nanoflux_mobile.storage import staged_folder, write_file

RECORD = "tensors.safetensors"


@dataclass(frozen=True)
class Exported:
    """One finished bundle, and how its layers were chosen where a budget chose them."""

    path: Path
    manifest: Manifest
    fits: tuple[Fit, ...] = ()


def export(checkpoint: Path, recipe: Recipe, out: Path, journal: Journal) -> tuple[Exported, ...]:
    """Make and verify one bundle per target of the recipe, at OUT/<recipe>-<target>.

    Steps already done by an earlier run, finished or killed, are reused from OUT/.work.
    InputError for a checkpoint or recipe that does not fit, or too little disk or memory;
    CheckFailed if a saved file misses a parity floor, in which case that bundle does not appear.
    """
    known = plugins.names("nanoflux_export.targets")
    if unknown := sorted(set(recipe.targets) - set(known)):
        names = ", ".join(known)
        raise InputError(f"recipe {recipe.name} names target {unknown[0]!r}; known: {names}")
    with journal.step("load the checkpoint and make its student"):
        student = make_student(checkpoint, recipe)
    check_recipe(student, recipe)
    targets = [target_named(name) for name in sorted(recipe.targets)]
    check_memory(student.graphs)
    activity = Activity(student, recipe, out / WORK, journal)
    desks = [Desk(student, target, recipe, activity, out / WORK, journal) for target in targets]
    check_disk([sketch(desk, graph) for desk in desks for graph in student.graphs], out)
    plans = [[plan(desk, graph) for graph in student.graphs] for desk in desks]
    pairs = zip(targets, plans, strict=True)
    return tuple(export_target(student, recipe, target, p, out, journal) for target, p in pairs)


def export_target(
    student: Student,
    recipe: Recipe,
    target: Target,
    plans: Sequence[Planned],
    out: Path,
    journal: Journal,
) -> Exported:
    """One target's bundle; it appears only once its saved files have passed."""
    files = {
        planned.name: save_graph(student, planned, target, out / WORK, journal) for planned in plans
    }
    golden = golden_of(student, recipe, target, plans, out / WORK, journal)
    final = out / f"{recipe.name}-{target.NAME}"
    with staged_folder(final) as folder:
        fill(folder, student, recipe, files, golden)
        paths = {name: [chunk.path for chunk in chunks] for name, chunks in files.items()}
        write_file(folder / COST, cost_json(total_cost(target, paths)))
        manifest = judge(folder, describe(folder, student, recipe, target, plans, files), journal)
        write_file(folder / FILE, manifest_json(manifest))
    return Exported(final, manifest, tuple(one.fit for one in plans if one.fit))


def golden_of(
    student: Student,
    recipe: Recipe,
    target: Target,
    plans: Sequence[Planned],
    work: Path,
    journal: Journal,
) -> Tensors:
    """The golden run, recorded once: of a large student it takes as long as the export."""
    inputs = {
        "student": student.key,
        "proof": recipe.proof,
        "half constants": target.HALF_CONSTANTS,
        "plans": {planned.name: planned.key for planned in plans},
    }

    def make(folder: Path) -> None:
        golden_run.save_golden(record_golden(student, recipe, target, plans), folder / RECORD)

    name = f"{target.NAME}: golden run in PyTorch"
    return golden_run.load_golden(once(work, name, inputs, make, journal) / RECORD)


def record_golden(
    student: Student, recipe: Recipe, target: Target, plans: Sequence[Planned]
) -> Tensors:
    """The golden run by the student as trained, and by its mobile form on the shipped weights."""
    request = golden_request(student, recipe)
    by_name = {planned.name: planned.plan for planned in plans}
    graphs = [planned.graph for planned in plans]

    def shipped(graph: ComponentName, segment: Segment, module: nn.Module) -> nn.Module:
        plan, halves = by_name[graph], target.HALF_CONSTANTS
        twin = rounded(module, plan, segment.weights, half_constants=halves)
        return with_rounded_inputs(twin, segment.weights, plan) if halves else twin

    if recipe.proof == "image":
        as_trained = student.family.graphs(student.parts)
        return golden_run.record_image(request, as_trained, torch_graphs(graphs, shipped))
    lean = torch_graphs(student.graphs, keep=False)
    return golden_run.record_steps(request, lean, torch_graphs(graphs, shipped, keep=False))


def judge(folder: Path, manifest: Manifest, journal: Journal) -> Manifest:
    """The manifest with parity and lint of the files in `folder`.

    CheckFailed below a floor, or for what the accelerator would refuse and no recipe suppresses.
    """
    found = verify(Bundle(folder, manifest), journal)
    if found.failed:
        raise _failed(manifest, map(explain, found.failed))
    if found.errors:
        raise _failed(manifest, map(explain_finding, found.errors))
    return dataclasses.replace(manifest, parity=found.parity, lint=found.lint)


def _failed(manifest: Manifest, reasons: Iterable[str]) -> CheckFailed:
    return CheckFailed(f"{manifest.recipe.name}-{manifest.target}: {'; '.join(reasons)}")


def explain(figure: Parity) -> str:
    """One figure below its floor, in words."""
    against = {"rounded": "PyTorch on the same rounded weights", "fp32": "PyTorch in float32"}
    against["half"] = "PyTorch on the same rounded weights when it computes in half precision"
    return (
        f"{figure.component} agrees to {figure.psnr_db:.1f} dB with {against[figure.reference]}, "
        f"its floor is {figure.floor_db:.1f} dB"
    )
