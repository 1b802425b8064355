"""The page's tables: what was checked, and every number behind the plots."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanoflux_benchmarks import render
from nanoflux_benchmarks.page.svg import missing
from nanoflux_benchmarks.page.values import LAUNCHES, PARTS, evenly, state, thinned
from nanoflux_benchmarks.page.words import count, plain
from nanoflux_benchmarks.verdict import Check
from nanoflux_mobile.markup import Markup, element, escape, head, scroller, section, spaced
from nanoflux_mobile.report import Image, LatencyReport, Launch

if TYPE_CHECKING:
    from nanoflux_benchmarks.session import Judgement

ROWS = 5200
"""Images of one report in the table of raw numbers: 50 launches of 100 and their warm-ups."""
_CHECKS = ("Check", "Found", "95 % bounds", "Limit", "Outcome", "Why")
_NUMERIC = ("Found", "95 % bounds", "Limit")
_TIMES = ("Whole, ms", "Text encoder, ms", "Mean step, ms", "Decoder, ms")
_RAW = ("Launch", "Image", "Thermal", *_TIMES)


def checks(found: Judgement) -> Markup:
    """The section with every figure that was held against a limit."""
    lead = "Medians with 95 % bounds that come from resampling launches, against their limits."
    if found.verdict.reasons:
        lead += " None of them counts while there are reasons against the evidence."
    if not found.verdict.checks:
        nothing = missing("Nothing was checked: the evidence has no figure that a limit is for.")
        return section("checks", "Checks", lead, nothing)
    rows = element("tbody", *map(_check, found.verdict.checks))
    table = element("table", head(_CHECKS, _NUMERIC), rows, class_="checks")
    return section("checks", "Checks", lead, scroller("Checks", table))


def _check(check: Check) -> Markup:
    name, *texts = render.cells(check)
    kinds = ("number", "number", "number", f"outcome {check.outcome}", "why")
    cells = [
        element("td", plain(text, 300), class_=kind, data_name=column)
        for text, kind, column in zip(texts, kinds, _CHECKS[1:], strict=True)
    ]
    return element("tr", spaced(element("th", name, scope="row"), *cells))


def raw(found: Judgement) -> Markup:
    """The section with the numbers themselves, folded away."""
    lead = (
        "What the plots draw, image by image. The report itself holds every step of every image "
        "at full precision."
    )
    reports = {"Candidate": found.report, "Baseline": found.baseline}
    folded = [_folded(name, report) for name, report in reports.items() if report]
    return section("raw", "Raw numbers", lead, *folded)


def _folded(name: str, report: LatencyReport) -> Markup:
    launches = evenly(list(enumerate(report.launches, 1)), LAUNCHES)
    each = max(2, ROWS // max(1, len(launches)))
    rows = [row for number, launch in launches for row in _launch(number, launch, each)]
    every = sum(len(launch.images) for launch in report.launches)
    size = f"{count(len(report.launches), 'launch')}, {count(every, 'image')}"
    left_out = f", {len(rows):,} of them, evenly spaced" if len(rows) < every else ""
    table = element("table", head(_RAW, _TIMES), element("tbody", *rows), class_="raw")
    summary = element("summary", f"{name}: {size}{left_out}")
    return element("details", summary, scroller(f"{name}, raw numbers", table))


def _launch(number: int, launch: Launch, most: int) -> list[Markup]:
    totals = [image.ms("image") or 0.0 for image in launch.images]
    return [_image(number, i, launch, launch.images[i]) for i in thinned(totals, most)]


def _image(number: int, index: int, launch: Launch, image: Image) -> Markup:
    place = f"{index + 1}{', warm-up' if image.warmup else ''}"
    found = (image.ms(part) for part in PARTS)
    times = ("" if ms is None else f"{ms:.6g}" for ms in found)
    cells = (str(number), place, state(launch, image), *times)
    # Spelled out: ten thousand rows of eight elements each would take longer than all the rest.
    return Markup(f"<tr><td>{'</td><td>'.join(map(escape, cells))}</td></tr>")
