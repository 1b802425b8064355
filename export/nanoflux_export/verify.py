"""Proof that the shipped files are right: hashes, lint, and parity of the saved files."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nanoflux_export.bundle import GOLDEN, Bundle, saved_graphs, target_named
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
from nanoflux_mobile.drawing import Graphs
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.manifest import Finding, Manifest
from nanoflux_mobile.parity import Parity, psnr_db
from nanoflux_mobile.spec import Floors


@dataclass(frozen=True)
class Verification:
    """What verifying found: parity of every component and of the image, and lint."""

    parity: tuple[Parity, ...]
    lint: tuple[Finding, ...]

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
    """Lint findings of every file; those that several chunks of a graph share are counted up."""
    target = target_named(manifest.target)
    counts: Counter[tuple[str, str, str]] = Counter()
    for entry in manifest.components:
        for chunk in entry.chunks:
            for finding in target.lint(bundle_path / chunk.path, entry.name):
                counts[finding.component, finding.rule, finding.advice] += finding.count
    return tuple(Finding(name, rule, n, advice) for (name, rule, advice), n in counts.items())


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
    return Verification(tuple(sorted(parity, key=lambda p: order.index(p.component))), findings)
