"""What the `litert-benchmark` of the ai-edge-litert package writes with --result_json.

Checked against the tool itself, version 2.3.0. It keeps statistics and no time of each run, so the
report holds the first inference as a warm-up and the average as the only measured one, and an error
says so. Its `fully_accelerated` is true of a run on the CPU alone, so it counts only where the CPU
was no choice; and how long the graph took to load says nothing of caches, so it is left out.
"""

from __future__ import annotations

from nanoflux_benchmarks.importers._fields import Field, fields
from nanoflux_benchmarks.importers._foreign import (
    UNKNOWN,
    UNKNOWN_CONDITIONS,
    component_of,
    foreign_report,
    image,
)
from nanoflux_mobile.report import LatencyReport, Launch, Placement, Runtime

NAME = "result JSON of litert-benchmark"


def recognises(head: str) -> bool:
    """Whether a text is a JSON table with the tool's figures."""
    return head.lstrip()[:1] == "{" and '"latency"' in head and '"warmup_first_ms"' in head


def read(text: str, where: str) -> LatencyReport:
    """A report of one graph: its first inference, and the average of the rest.

    Raises:
        InputError: a field is missing or wrong, or the graph is unknown.
    """
    found = fields(text, where)
    latency = found["latency"]
    component = component_of([found["model"].text(), where], where)
    average = latency["avg_ms"]
    images = [image(component, average.number(), average.where)]
    if (first := latency.get("warmup_first_ms")) and _ran(latency):
        images.insert(0, image(component, first.number(), first.where, warmup=True))
    units = [unit.text().lower() for unit in found["accelerators"].rows()]
    placed = found.get("fully_accelerated") if "cpu" not in units else None
    accelerated = placed.flag() if placed else None
    return foreign_report(
        "litert-benchmark",
        text,
        [Launch(None, UNKNOWN_CONDITIONS, (), tuple(images), None)],
        Runtime("litert", UNKNOWN, "_and_".join(units) or UNKNOWN, _threads(found)),
        placement=(Placement(component, None, None, None, None, None, accelerated),),
        errors=("litert-benchmark keeps no time of each run: the one here is their average",),
    )


def _ran(latency: Field) -> bool:
    """Whether there was a warm-up; without one the tool writes a time of 0."""
    runs = latency.get("num_warmup_runs")
    return runs is None or runs.number() > 0


def _threads(found: Field) -> int | None:
    threads = found.get("num_threads")
    return threads.value if threads and type(threads.value) is int and threads.value > 0 else None
