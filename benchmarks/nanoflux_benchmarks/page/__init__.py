"""The page of a judgement: what came out, why, and every sample it rests on, drawn.

One HTML file that holds its style, asks nothing of the network and needs no script. What a report
says is text to it, whatever that says.
"""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

from nanoflux_benchmarks.page import svg
from nanoflux_benchmarks.page.by_launch import distribution, memory
from nanoflux_benchmarks.page.facts import conditions, facts
from nanoflux_benchmarks.page.loads import loads
from nanoflux_benchmarks.page.over_time import over_time
from nanoflux_benchmarks.page.placement import placement
from nanoflux_benchmarks.page.ratios import ratios
from nanoflux_benchmarks.page.roofline import roofline
from nanoflux_benchmarks.page.stages import stage_split
from nanoflux_benchmarks.page.steps import step_profile
from nanoflux_benchmarks.page.tables import checks, raw
from nanoflux_benchmarks.page.words import count, outside, plain
from nanoflux_benchmarks.render import headline
from nanoflux_benchmarks.verdict import Verdict
from nanoflux_mobile.markup import Markup, document, element, section, spaced

if TYPE_CHECKING:
    from nanoflux_benchmarks.prediction import Prediction
    from nanoflux_benchmarks.session import Judgement

__all__ = ["page"]

_NAVIGATION = {
    "checks": "Checks",
    "time": "Over time",
    "launches": "Launches",
    "ratios": "Baseline",
    "stages": "Stages",
    "resources": "Load and memory",
    "placement": "Placement",
    "roofline": "Roofline",
    "raw": "Raw numbers",
}
_REASONS = 20
"""Reasons in full; a report can be wrong in thousands of ways at once."""


def page(found: Judgement, prediction: Prediction | None = None) -> str:
    """The judgement as one self-contained HTML document, a prediction beside it where given."""
    body = element(
        "body",
        svg.shapes(),
        _header(found, prediction is not None),
        element(
            "main",
            checks(found),
            over_time(found),
            distribution(found),
            ratios(found),
            _stages(found),
            _resources(found),
            placement(found),
            roofline(found, prediction) if prediction else "",
            raw(found),
        ),
        conditions(found),
    )
    css = resources.files("nanoflux_benchmarks") / "page" / "page.css"
    return document(
        f"{plain(found.title)}: {headline(found.verdict)}", css.read_text("utf-8"), body
    )


def _header(found: Judgement, foreseen: bool) -> Markup:
    verdict = found.verdict
    shown = {k: text for k, text in _NAVIGATION.items() if foreseen or k != "roofline"}
    links = [element("a", text, href=f"#{key}") for key, text in shown.items()]
    words = headline(verdict)
    return element(
        "header",
        element("p", outside(found.title), class_="title"),
        element("h1", f"{words[:1].upper()}{words[1:]}", class_=verdict.outcome),
        _why(verdict),
        facts(found),
        element("nav", spaced(*links), aria_label="Sections"),
    )


def _why(verdict: Verdict) -> Markup:
    """Why the outcome is what it is: reasons against the evidence, else checks that do not hold."""
    lines = [element("li", outside(reason, 300)) for reason in verdict.reasons[:_REASONS]]
    if (more := len(verdict.reasons) - _REASONS) > 0:
        lines.append(element("li", f"and {count(more, 'reason')} more"))
    missed = [check for check in verdict.checks if check.outcome != "pass"]
    if not verdict.reasons:
        lines = [element("li", plain(f"{check.name}: {check.why}", 300)) for check in missed]
    return element("ul", *lines, class_=f"reasons {verdict.outcome}") if lines else Markup("")


def _stages(found: Judgement) -> Markup:
    lead = "What one image spends where, and what each of its steps takes."
    return section("stages", "Inside an image", lead, stage_split(found), step_profile(found))


def _resources(found: Judgement) -> Markup:
    lead = "What an image costs before it begins, and what it asks of the device."
    return section("resources", "Load and memory", lead, loads(found), memory(found))
