"""What LiteRT's benchmark_model prints, also into logcat.

Two tools of that name exist: that of the interpreter ends with one line `Inference timings in us:`,
that of CompiledModel with a table of milliseconds, which the `litert-benchmark` of the Python
package prints as well. Both formats were read off the sources (tflite/tools/benchmark and
litert/tools of google-ai-edge/LiteRT) and off outputs that people published.

Neither keeps the time of each run, so the report holds the first inference as a warm-up and the
average as the only measured one, and an error says so: a gate finds no evidence in it. How long the
graph took to load is left out, for nothing says whether a compiled form of it was cached.
"""

from __future__ import annotations

import re

from nanoflux_benchmarks.importers._foreign import (
    UNKNOWN,
    UNKNOWN_CONDITIONS,
    component_of,
    foreign_report,
    image,
)
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.report import LatencyReport, Launch, Placement, Runtime
from nanoflux_mobile.spec import ComponentName

NAME = "text of benchmark_model"

_NUMBER = r"(-?(?:\d[\d.]*(?:e[+-]?\d+)?|nan|inf))"
_LINE = re.compile(
    rf"Inference timings in us: Init: {_NUMBER}, First inference: {_NUMBER}, "
    rf"Warmup \(avg\): {_NUMBER}, Inference \(avg\): {_NUMBER}"
)
_TABLE_FIRST = re.compile(rf"Warmup \(first\): +{_NUMBER} ms")
_TABLE_AVERAGE = re.compile(rf"Inference \(avg\): +{_NUMBER} ms \(\d+ runs\)")
_GRAPH = re.compile(r"(?:\bGraph: \[|Loaded model |Loading model from: )([^\]\r\n]+)")
_THREADS = re.compile(r"\bNum threads: \[(\d{1,4})\]")
_APPLIED = re.compile(
    r"(?:Explicitly applied|Though) (\w+) delegate\b.{0,60}? "
    r"will (not be|be completely|be partially) executed"
)
_REPLACED = re.compile(r"Replacing (\d{1,9}) out of (\d{1,9}) node\(s\) with delegate")
_UNITS = {"GPU": "gpu", "XNNPACK": "cpu"}
_Shares = tuple[float | None, float | None, float | None]
_NO_SHARES: _Shares = (None, None, None)
_SHARES: dict[str, _Shares] = {"gpu": (0.0, 1.0, 0.0), "cpu": (0.0, 0.0, 1.0)}


def recognises(head: str) -> bool:
    """Whether a text holds the results of either tool."""
    return "Inference (avg):" in head or "Benchmarking failed." in head


def read(text: str, where: str) -> LatencyReport:
    """A report of one graph: its first inference, and the average of the rest.

    Raises:
        InputError: no result, several, one that is no time, or one of an unknown graph.
    """
    first, average, at = _times(text, where)
    # A logcat may still hold the beginning of an earlier run that failed.
    log = text[:at].rpartition("STARTING!")[2]
    component = component_of([*_GRAPH.findall(log), where], where)
    images = (
        image(component, first, f"{where}: First inference", warmup=True),
        image(component, average, f"{where}: Inference (avg)"),
    )
    applied = _APPLIED.search(log)
    unit = _UNITS.get(applied[1], UNKNOWN) if applied else UNKNOWN
    threads = _THREADS.search(log)
    return foreign_report(
        "benchmark_model",
        text,
        [Launch(None, UNKNOWN_CONDITIONS, (), images, None)],
        Runtime("litert", UNKNOWN, unit, int(threads[1]) if threads else None),
        placement=_placement(component, unit, applied[2], log, where) if applied else (),
        errors=("benchmark_model keeps no time of each run: the one here is their average",),
    )


def _times(text: str, where: str) -> tuple[float, float, int]:
    """The first inference and the average of the rest, in ms, and where in the text they are."""
    lines = [(_ms(m[2], 1e-3), _ms(m[4], 1e-3), m.start()) for m in _LINE.finditer(text)]
    table = zip(_TABLE_FIRST.finditer(text), _TABLE_AVERAGE.finditer(text), strict=False)
    found = lines or [(_ms(a[1], 1.0), _ms(b[1], 1.0), a.start()) for a, b in table]
    if not found:
        raise InputError(f"{where} has no timings, so the run failed; see its last lines")
    # On Android the tool prints to its output and to the log, and a capture may hold both.
    if len({row[:2] for row in found}) > 1:
        raise InputError(f"{where} holds the timings of {len(found)} runs; keep those of one")
    return found[-1]


def _ms(number: str, scale: float) -> float:
    # Digits with several points are no number of the tool's, so they count as none.
    return scale * (float("nan") if number.count(".") > 1 else float(number))


def _placement(
    component: ComponentName, unit: str, extent: str, log: str, where: str
) -> tuple[Placement, ...]:
    """Where the graph ran, as far as the delegate that was asked for says."""
    whole = extent == "be completely"
    shares = _SHARES.get(unit, _NO_SHARES) if whole else _NO_SHARES
    replaced = _REPLACED.search(log)
    delegated, total = (int(replaced[1]), int(replaced[2])) if replaced else (None, None)
    accelerated = whole and unit == "gpu" if unit != UNKNOWN or not whole else None
    try:
        return (Placement(component, *shares, delegated, total, accelerated),)
    except ValueError as error:
        raise InputError(f"{where}: {error}; keep the log of one run") from error
