"""Proof that the shipped files are right: hashes, lint, and parity of the saved files."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nanoflux_export.bundle import GOLDEN, Bundle, saved_graphs, target_named
from nanoflux_export.findings import lint_errors, merged, unused, with_reasons
from nanoflux_export.golden import (
    GOLDEN_SEED,
    REFERENCES,
    Request,
    Tensors,
    answers,
    draw_request,
    load_golden,
    probes,
)
from nanoflux_export.work import Journal
from nanoflux_mobile import plugins
from nanoflux_mobile.drawing import Graphs
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.manifest import Finding, Manifest
from nanoflux_mobile.parity import Parity, psnr_db
from nanoflux_mobile.spec import Floors, Suppression

if TYPE_CHECKING:
    from nanoflux_export.targets.litert.gpu_check import GpuFigure


@dataclass(frozen=True)
class Verification:
    """What verifying found: parity of every component and of the image, and lint.

    `unused` are suppressions of the recipe that nothing needs; `gpu` is how the files did on a GPU,
    where that was asked for.
    """

    parity: tuple[Parity, ...]
    lint: tuple[Finding, ...]
    unused: tuple[Suppression, ...] = ()
    gpu: tuple[GpuFigure, ...] = ()

    @property
    def errors(self) -> tuple[Finding, ...]:
        """Findings that fail the bundle: errors that its recipe does not let pass."""
        return lint_errors(self.lint)

    @property
    def failed(self) -> tuple[Parity, ...]:
        """Figures below their floor."""
        return tuple(figure for figure in self.parity if not figure.holds)


def component_parity(
    name: str, outputs: list[np.ndarray], golden: Tensors, floors: Floors
) -> tuple[Parity, ...]:
    """Worst PSNR over the probes of one component, against both references."""
    rounded, fp32 = (
        min(psnr_db(output, golden[f"{reference}.{name}.{i}"]) for i, output in enumerate(outputs))
        for reference in REFERENCES
    )
    return (
        Parity(name, "rounded", rounded, floors.graph),
        Parity(name, "fp32", fp32, floors.quality),
    )


def measure(
    graphs: Graphs,
    golden: Tensors,
    request: Request,
    floors: Mapping[str, Floors],
    image: Floors,
    journal: Journal,
) -> tuple[Parity, ...]:
    """Parity of loaded graphs with the golden run, component by component, then of the image."""
    figures: list[Parity] = []
    for name in probes(golden):
        with journal.step(f"run {name}"):
            outputs = answers(name, graphs, golden, request.schedule)
        figures += component_parity(name, outputs, golden, floors[name])
    if "fp32.image" not in golden:
        return tuple(figures)
    with journal.step("draw the golden image"):
        drawn = draw_request(graphs, request).image
    figures += [
        Parity("image", "rounded", psnr_db(drawn, golden["rounded.image"]), image.graph),
        Parity("image", "fp32", psnr_db(drawn, golden["fp32.image"]), image.quality),
    ]
    return tuple(figures)


def in_half(figures: tuple[Parity, ...]) -> tuple[Parity, ...]:
    """Figures of a run in half precision: only those against the same weights say anything new."""
    kept = (figure for figure in figures if figure.reference == "rounded")
    return tuple(dataclasses.replace(figure, reference="half") for figure in kept)


def lint(bundle_path: Path, manifest: Manifest) -> tuple[Finding, ...]:
    """Lint findings of every file, those of several chunks of a graph as one.

    What the recipe suppresses has its reason.
    """
    return with_reasons(merged(_found(bundle_path, manifest)), manifest.suppress)


def _found(bundle_path: Path, manifest: Manifest) -> Iterator[Finding]:
    target = target_named(manifest.target)
    profiles = {unit: profile for profile, unit in target.PROFILES.items()}
    for entry in manifest.components:
        profile = profiles.get(entry.compute_unit, "")
        for chunk in entry.chunks:
            yield from target.lint(bundle_path / chunk.path, entry.name, profile)


def golden_request(bundle: Bundle, golden: Tensors) -> Request:
    """The request the golden run of a bundle answered; InputError for another step count."""
    tables, schedule = golden["step_tables"], bundle.schedule
    if len(tables) != schedule.steps:
        raise InputError(
            f"{bundle.path}: its golden run has {len(tables)} steps and the schedule has "
            f"{schedule.steps}; export the bundle again"
        )
    return Request(golden["token_ids"], tables, schedule, bundle.canvas, GOLDEN_SEED)


def verify(bundle: Bundle, journal: Journal) -> Verification:
    """Run a bundle's saved files against its golden run.

    InputError if the golden tensors do not belong to the manifest; floors that do not hold are
    in the result's `failed`, not an exception.
    """
    manifest = bundle.manifest
    golden = load_golden(bundle.path / GOLDEN)
    floors: dict[str, Floors] = {entry.name: entry.floors for entry in manifest.components}
    try:
        request = golden_request(bundle, golden)
        parity: tuple[Parity, ...] = ()
        for precision in target_named(manifest.target).PRECISIONS:
            with journal.step(f"load the saved files, {precision} arithmetic"):
                graphs = saved_graphs(bundle, precision)
            found = measure(graphs, golden, request, floors, manifest.image_floors, journal)
            parity += found if precision == "fp32" else in_half(found)
    except KeyError as missing:
        raise InputError(f"{bundle.path}: its golden run lacks {missing}") from missing
    with journal.step("lint"):
        findings = lint(bundle.path, manifest)
    order = [*floors, "image"]
    figures = tuple(sorted(parity, key=lambda p: order.index(p.component)))
    return Verification(figures, findings, unused(findings, manifest.suppress))


def gpu_checker(bundle: Bundle) -> Any:
    """The target's gpu_check module, which has `required_driver` and `check`, as `on_gpu` takes it.

    InputError for a target whose GPU does not run here, or without a Vulkan driver.
    """
    name = bundle.manifest.target
    if "gpu_check" not in plugins.names(f"nanoflux_export.targets.{name}"):
        raise InputError(
            f"{bundle.path} is made for {name}, whose accelerator runs on its own devices only; "
            "verify it without --gpu"
        )
    checker = plugins.load(f"nanoflux_export.targets.{name}", "gpu_check")
    checker.required_driver()
    return checker


def on_gpu(bundle: Bundle, checker: Any, journal: Journal) -> tuple[GpuFigure, ...]:
    """How the files that are for a GPU do on one, in the runtime's own delegate."""
    with journal.step("run the files on the GPU delegate, shaders compiled first"):
        found: tuple[GpuFigure, ...] = checker.check(
            bundle.path,
            bundle.manifest,
            probes(load_golden(bundle.path / GOLDEN)),
            on_part=journal.part,
        )
    return found
