"""Where the time of the run went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nanoflux_export.report.words import count, duration
from nanoflux_export.work import Step
from nanoflux_mobile.markup import Markup, bar, element, section, spaced


@dataclass(frozen=True)
class Stage:
    """All steps of one name: their seconds together, how many ran and how many were reused."""

    name: str
    seconds: float
    runs: int
    reused: int


def stages_of(steps: Sequence[Step]) -> tuple[Stage, ...]:
    """Steps of equal name as one stage, the longest first."""
    named: dict[str, list[Step]] = {}
    for step in steps:
        named.setdefault(step.name, []).append(step)
    stages = [
        Stage(
            name,
            sum(step.seconds for step in same),
            sum(not step.reused for step in same),
            sum(step.reused for step in same),
        )
        for name, same in named.items()
    ]
    return tuple(sorted(stages, key=lambda stage: -stage.seconds))


def total_text(steps: Sequence[Step]) -> str:
    """`43.0 s`, or `43.0 s, 6 of 27 steps reused`."""
    reused = sum(step.reused for step in steps)
    time = duration(sum(step.seconds for step in steps))
    return f"{time}, {reused} of {count(len(steps), 'step')} reused" if reused else time


def stage_chart(steps: Sequence[Step]) -> Markup:
    """The section with one bar per stage."""
    if not steps:
        nothing = element("p", "No step was recorded.", class_="none")
        return section("time", "Time", "How long each stage took on this machine.", nothing)
    lead = (
        f"{total_text(steps)}. Measured on the machine that made the bundles; it says nothing "
        "about a phone. A reused step found its result in the work folder of an earlier run."
    )
    stages = stages_of(steps)
    longest = max(stage.seconds for stage in stages) or 1.0
    lines = [_line(stage, longest) for stage in stages]
    return section("time", "Time", lead, element("ul", *lines, class_="stages"))


def _line(stage: Stage, longest: float) -> Markup:
    value = duration(stage.seconds) if stage.runs else "reused"
    parts = spaced(
        element("span", stage.name, class_="name", dir="auto"),
        bar(stage.seconds / longest),
        element("span", value, class_="value" if stage.runs else "value reused"),
        element("small", _times(stage)),
    )
    return element("li", parts)


def _times(stage: Stage) -> str:
    parts = [f"{stage.runs} times"] if stage.runs > 1 else []
    if stage.reused and stage.runs + stage.reused > 1:
        parts.append(f"{stage.reused} reused")
    return ", ".join(parts)
