"""The report of a run as one HTML file: what was made, how well it agrees, what was not checked.

The page holds its pictures and its style, asks nothing of the network and needs no script.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources

from nanoflux_export.console import size
from nanoflux_export.fitting.fit import Fit
from nanoflux_export.report.gallery import Row, gallery
from nanoflux_export.report.notes import lint_table, provenance, remark_list
from nanoflux_export.report.parity_chart import headline, margins, parity_chart
from nanoflux_export.report.sensitivity_chart import Fitted, sensitivity_charts
from nanoflux_export.report.sizes import bundle_bytes, memory_plan, size_table
from nanoflux_export.report.stages import stage_chart, total_text
from nanoflux_export.report.words import bundle_name, count
from nanoflux_export.report.work_table import work_table
from nanoflux_export.work import Step
from nanoflux_mobile.cost import Cost
from nanoflux_mobile.manifest import Manifest
from nanoflux_mobile.markup import Markup, document, element, join, spaced

__all__ = ["Report", "Row", "render"]

_RAN = {
    "coreml": "Core ML files were executed by this toolkit's own executor, operation by "
    "operation, not by Apple's Core ML.",
    "litert": "LiteRT files were executed by LiteRT on this machine's CPU, not on a phone's GPU.",
}
_NAVIGATION = {
    "pictures": "Pictures",
    "parity": "Agreement",
    "sizes": "Sizes",
    "time": "Time",
    "lint": "Lint",
    "memory": "Memory",
}


@dataclass(frozen=True)
class Report:
    """What a page tells: pictures by prompt, a manifest per bundle, the steps of the run.

    fits: how layers were chosen where a budget chose them; costs: of bundles, by their names.
    """

    title: str
    summary: str
    rows: tuple[Row, ...]
    manifests: tuple[Manifest, ...]
    steps: tuple[Step, ...]
    fits: tuple[Fit, ...] = ()
    costs: Mapping[str, Cost] = field(default_factory=dict)


def render(report: Report) -> str:
    """The report as one self-contained HTML document."""
    body = element(
        "body",
        _header(report),
        element(
            "main",
            gallery(report.rows),
            parity_chart(report.manifests),
            size_table(report.manifests),
            sensitivity_charts(tuple(map(_fitted, report.fits))),
            remark_list(report.manifests),
            work_table(report.costs),
            stage_chart(report.steps),
            lint_table(report.manifests),
            memory_plan(report.manifests),
        ),
        provenance(report.manifests),
    )
    css = resources.files("nanoflux_export") / "report" / "page.css"
    return document(
        f"{report.title}: {headline(report.manifests).text}", css.read_text("utf-8"), body
    )


def _fitted(fit: Fit) -> Fitted:
    return Fitted(f"{fit.component}, {fit.target}", fit.sensitivity, fit.schemes)


def _header(report: Report) -> Markup:
    verdict = headline(report.manifests)
    misses = element("ul", *(element("li", miss) for miss in verdict.misses), class_="misses")
    links = [element("a", text, href=f"#{key}") for key, text in _NAVIGATION.items()]
    return element(
        "header",
        element("p", report.title, class_="title"),
        element("h1", verdict.text, class_="holds" if verdict.holds else "fails"),
        misses if verdict.misses else "",
        element("p", report.summary, class_="summary"),
        _facts(report),
        _claims(report.manifests),
        element("nav", spaced(*links), aria_label="Sections"),
    )


def _facts(report: Report) -> Markup:
    facts: list[tuple[str, str, str]] = []
    if every := margins(report.manifests):
        least = min(every, key=lambda margin: margin.db)
        where = f"{least.bundle}, {least.figure.component}"
        facts.append(("closest to its floor", least.text, where))
    if report.manifests:
        smallest = min(report.manifests, key=bundle_bytes)
        facts.append(("smallest bundle", size(bundle_bytes(smallest)), bundle_name(smallest)))
    pictures = sum(len(row.pictures) for row in report.rows)
    facts.append(("pictures", str(pictures), f"of {count(len(report.rows), 'prompt')}"))
    time, _, reused = total_text(report.steps).partition(", ")
    facts.append(("time", time, reused or "nothing reused"))
    return element("dl", *(_fact(*fact) for fact in facts), class_="facts")


def _fact(name: str, value: str, note: str) -> Markup:
    return element(
        "div", spaced(element("dt", name), element("dd", spaced(element("b", value), note)))
    )


def _claims(manifests: Sequence[Manifest]) -> Markup:
    targets = sorted({manifest.target for manifest in manifests})
    checked = (
        _measured(manifests),
        *(_RAN.get(name, f"{name} files were executed on this machine.") for name in targets),
    )
    unchecked = (
        "Nothing here was ever run on a phone or on a Mac.",
        "Speed, memory and heat on a device are not known; times below are those of exporting.",
        "Which operations an accelerator takes is read from rules, not observed.",
    )
    pair = join((_claim("What was checked", checked), _claim("What was not", unchecked)))
    return element("div", pair, class_="claims")


def _measured(manifests: Sequence[Manifest]) -> str:
    which = "every bundle" if all(m.parity for m in manifests) else "each bundle with figures below"
    return f"The files of {which} were run here, as saved, on inputs recorded from PyTorch."


def _claim(title: str, lines: Sequence[str]) -> Markup:
    items = [element("li", line) for line in lines]
    return element("div", element("h2", title), element("ul", *items))
