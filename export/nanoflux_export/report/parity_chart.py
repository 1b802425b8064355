"""How closely the saved files agree with PyTorch: the verdict, and every figure as a bar."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from nanoflux_export.console import REFERENCES
from nanoflux_export.report.words import bundle_name, count, decibels
from nanoflux_mobile.manifest import Manifest
from nanoflux_mobile.markup import Markup, bar, element, join, percent, section, spaced
from nanoflux_mobile.parity import Parity

_STEP_DB = 20.0
_MEANING = {
    "rounded": "tells whether the graph is right",
    "fp32": "tells what compression cost",
    "half": "tells what survives the arithmetic of a phone's accelerator",
}


@dataclass(frozen=True)
class Headline:
    """Whether everything holds, said in one line, and a line for each thing that does not."""

    holds: bool
    text: str
    misses: tuple[str, ...]


@dataclass(frozen=True)
class Margin:
    """A figure of a bundle and its room above the floor."""

    bundle: str
    figure: Parity

    @property
    def db(self) -> float:
        """How far the figure lies above its floor in dB; negative below it, -inf for no number."""
        room = self.figure.psnr_db - self.figure.floor_db
        return -math.inf if math.isnan(room) else room

    @property
    def text(self) -> str:
        """`+5.2 dB`, or that there is no number."""
        return f"{self.db:+.1f} dB" if math.isfinite(self.db) else "not finite"


def margins(manifests: Iterable[Manifest]) -> tuple[Margin, ...]:
    """Every figure of every bundle, in their order."""
    return tuple(Margin(bundle_name(m), figure) for m in manifests for figure in m.parity)


def headline(manifests: Sequence[Manifest]) -> Headline:
    """The verdict over all bundles; one without figures proves nothing, so it does not hold."""
    every = margins(manifests)
    failed = [margin for margin in every if not margin.figure.holds]
    silent = [bundle_name(manifest) for manifest in manifests if not manifest.parity]
    misses = (*map(_miss, failed), *(f"{name}: nothing was measured" for name in silent))
    if not every:
        return Headline(False, "Nothing was measured", misses)
    if failed:
        verb = "misses its floor" if len(failed) == 1 else "miss their floors"
        return Headline(False, f"{len(failed)} of {count(len(every), 'figure')} {verb}", misses)
    if silent:
        return Headline(False, f"{count(len(silent), 'bundle')} not measured", misses)
    text = "The only figure holds" if len(every) == 1 else f"All {len(every)} figures hold"
    return Headline(True, text, ())


def _miss(margin: Margin) -> str:
    figure = margin.figure
    short = f", {-margin.db:.2g} dB short" if math.isfinite(margin.db) else ""
    return (
        f"{margin.bundle}: {figure.component}, {REFERENCES[figure.reference]}: "
        f"{decibels(figure.psnr_db)}, floor {decibels(figure.floor_db)}{short}"
    )


def parity_chart(manifests: Sequence[Manifest]) -> Markup:
    """The section with one chart per bundle, all on one scale."""
    lead = (
        "Peak signal-to-noise ratio of what the saved files answer; more is better. The tick on "
        "each bar is the floor that the recipe sets. All bars are on one scale."
    )
    every = [margin.figure for margin in margins(manifests)]
    legend = _legend({figure.reference for figure in every})
    bundles = [_bundle(manifest, scale_top_db(every)) for manifest in manifests]
    return section("parity", "Agreement with PyTorch", lead, legend, *bundles)


def _legend(shown: Collection[str]) -> Markup:
    lines = [
        element(
            "li", bar(1.0, key), element("span", spaced(element("b", REFERENCES[key]), meaning))
        )
        for key, meaning in _MEANING.items()
        if key in shown
    ]
    return element("ul", *lines, class_="legend") if lines else join(())


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
        element(
            "span",
            f"{every * i:.0f}",
            style=f"left:{percent(every * i / top)}",
        )
        for i in range(int(top // every) + 1)
    ]
    track = element("div", element("span", *ticks, class_="track"), class_="line")
    return element("div", track, class_="axis", aria_hidden="true")


def _graph(name: str, figures: Sequence[Parity], top: float) -> Markup:
    lines = [_line(figure, top) for figure in figures]
    return element("li", element("b", name, class_="name"), element("ul", *lines))


def _line(figure: Parity, top: float) -> Markup:
    kind = figure.reference if figure.holds else f"{figure.reference} missed"
    parts = spaced(
        element("span", REFERENCES[figure.reference], class_="against"),
        bar(figure.psnr_db / top, kind, figure.floor_db / top),
        element("span", decibels(figure.psnr_db), class_="value"),
        element("span", f"floor {decibels(figure.floor_db)}", class_="floor"),
        element("span", "holds" if figure.holds else "misses", class_="verdict"),
    )
    return element("li", parts, class_="line" if figure.holds else "line missed")
