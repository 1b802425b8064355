"""How closely the saved files agree with PyTorch: the verdict, and every figure as a bar."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from nanoflux_export.console import REFERENCES
from nanoflux_export.report.markup import Markup, bar, element, percent, section
from nanoflux_export.report.words import bundle_name, count, decibels
from nanoflux_mobile.manifest import Manifest
from nanoflux_mobile.parity import Parity

_STEP_DB = 20.0


@dataclass(frozen=True)
class Headline:
    """Whether everything holds, said in one line, and a line for each thing that does not."""

    holds: bool
    text: str
    misses: tuple[str, ...]


@dataclass(frozen=True)
class Margin:
    """The figure with the least room above its floor, in dB."""

    bundle: str
    figure: Parity

    @property
    def db(self) -> float:
        """How far the figure lies above its floor; negative below it."""
        return self.figure.psnr_db - self.figure.floor_db


def headline(manifests: Sequence[Manifest]) -> Headline:
    """The verdict over all bundles; one without figures proves nothing, so it does not hold."""
    figures = [figure for manifest in manifests for figure in manifest.parity]
    silent = [manifest for manifest in manifests if not manifest.parity]
    failed = [(m, figure) for m in manifests for figure in m.parity if not figure.holds]
    misses = [_miss(manifest, figure) for manifest, figure in failed]
    misses += [f"{bundle_name(manifest)}: nothing was measured" for manifest in silent]
    if not figures:
        return Headline(False, "Nothing was measured", tuple(misses))
    if failed:
        verb = "misses its floor" if len(failed) == 1 else "miss their floors"
        return Headline(
            False, f"{len(failed)} of {count(len(figures), 'figure')} {verb}", tuple(misses)
        )
    if silent:
        return Headline(False, f"{count(len(silent), 'bundle')} not measured", tuple(misses))
    text = "The only figure holds" if len(figures) == 1 else f"All {len(figures)} figures hold"
    return Headline(True, text, ())


def least_margin(manifests: Iterable[Manifest]) -> Margin | None:
    """The figure closest to its floor, not-a-number first; None where nothing was measured."""
    margins = [Margin(bundle_name(m), figure) for m in manifests for figure in m.parity]
    return min(margins, key=lambda m: -math.inf if math.isnan(m.db) else m.db, default=None)


def _miss(manifest: Manifest, figure: Parity) -> str:
    return (
        f"{bundle_name(manifest)}: {figure.component} against {REFERENCES[figure.reference]} "
        f"is {decibels(figure.psnr_db)}, its floor is {decibels(figure.floor_db)}"
    )


def parity_chart(manifests: Sequence[Manifest]) -> Markup:
    """The section with one chart per bundle, all on one scale."""
    lead = (
        "Peak signal-to-noise ratio of what the saved files answer. Against the same rounded "
        "weights it tells whether the graph is right, against PyTorch float32 what compression "
        "cost. The tick on each bar is the floor that the recipe sets; more is better."
    )
    top = scale_top_db(figure for manifest in manifests for figure in manifest.parity)
    return section("parity", "Agreement with PyTorch", lead, *(_bundle(m, top) for m in manifests))


def scale_top_db(figures: Iterable[Parity]) -> float:
    """Where the common scale ends: the least multiple of 20 dB that every number fits under."""
    numbers = [n for figure in figures for n in (figure.psnr_db, figure.floor_db)]
    largest = max(filter(math.isfinite, numbers), default=0.0)
    return _STEP_DB * max(1, math.ceil(largest / _STEP_DB))


def _bundle(manifest: Manifest, top: float) -> Markup:
    title = element("h3", bundle_name(manifest))
    if not manifest.parity:
        nothing = element("p", "Nothing was measured.", class_="none")
        return element("div", title, nothing, class_="chart")
    parts = groupby(manifest.parity, key=lambda figure: figure.component)
    graphs = [_graph(name, list(figures), top) for name, figures in parts]
    return element("div", title, _axis(top), element("ul", *graphs), class_="chart")


def _axis(top: float) -> Markup:
    every = _STEP_DB if top <= 5 * _STEP_DB else 2 * _STEP_DB
    ticks = [
        element("span", f"{every * i:.0f}", style=f"left:{percent(every * i / top)}")
        for i in range(int(top // every) + 1)
    ]
    track = element("div", element("span", *ticks, class_="track"), class_="line")
    return element("div", track, class_="axis", aria_hidden="true")


def _graph(name: str, figures: Sequence[Parity], top: float) -> Markup:
    lines = [_line(figure, top) for figure in figures]
    return element("li", element("b", name, class_="name"), element("ul", *lines))


def _line(figure: Parity, top: float) -> Markup:
    kind = figure.reference if figure.holds else f"{figure.reference} missed"
    return element(
        "li",
        element("span", REFERENCES[figure.reference], class_="against"),
        bar(figure.psnr_db / top, kind, figure.floor_db / top),
        element("span", decibels(figure.psnr_db), class_="value"),
        element("span", f"floor {decibels(figure.floor_db)}", class_="floor"),
        element("span", "holds" if figure.holds else "misses", class_="verdict"),
        class_="line" if figure.holds else "line missed",
    )
