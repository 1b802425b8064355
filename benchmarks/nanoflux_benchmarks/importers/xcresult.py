"""What Xcode keeps of a performance test: its metrics, and the files that the test attached.

`xcrun xcresulttool get test-results metrics --path X.xcresult` (Xcode 16.3 and later) prints a list
of tests, each with its runs; a run holds metrics, and a metric one measurement per iteration. Of
ours are nanoflux.image, nanoflux.text_encoder, nanoflux.step and nanoflux.decoder, in `s` or `ms`.
An iteration may report several steps; then their list is as often longer. Where no test has a
metric of ours, the clock metric of one test stands for the whole image. Every run is one launch.

`xcrun xcresulttool export attachments` writes attachments under names of its own, and a
manifest.json that says which was called what. An attached latency-report.json is the report
itself, so it says more than metrics do.

The keys were checked against Apple's release notes and against programs that read them; no Xcode
was at hand.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from nanoflux_benchmarks.importers._fields import Field, fields
from nanoflux_benchmarks.importers._foreign import UNKNOWN, UNKNOWN_CONDITIONS, foreign_report
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.report import Device, Image, LatencyReport, Launch, Runtime
from nanoflux_mobile.strict_json import parse_json

NAME = "metrics JSON of xcresulttool"
CLOCK = "com.apple.dt.XCTMetric_Clock.time.monotonic"
OURS = ("nanoflux.image", "nanoflux.text_encoder", "nanoflux.step", "nanoflux.decoder")
MS = {"s": 1000.0, "ms": 1.0}

_ATTACHED = re.compile(r"latency-report(\.json)?(_\d+_[0-9A-Fa-f-]{36})?(\.json)?")
_PLAIN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9 ()_.+-]{0,199}")
_PLATFORMS = {"iOS": "ios", "iPadOS": "ios", "macOS": "macos"}

Series = Mapping[str, Sequence[float]]


def recognises(head: str) -> bool:
    """Whether a text is a JSON list of tests with metrics."""
    return head.lstrip()[:1] == "[" and '"testRuns"' in head and '"metrics"' in head


def read(text: str, where: str) -> LatencyReport:
    """A report with a launch for every run of the tests that measured us.

    Raises:
        InputError: a field is missing or wrong, nothing here is a time of ours, or the runs come
            from several devices.
    """
    runs = [
        (f"{test['testIdentifier'].text()!r}", run)
        for test in fields(text, where).rows()
        for run in test["testRuns"].rows()
    ]
    found = [(name, run, series) for name, run in runs if (series := _series(run, OURS))]
    if not found:
        found = [(name, run, series) for name, run in runs if (series := _series(run, (CLOCK,)))]
        if not found:
            raise InputError(f"{where} has no metric {', '.join(OURS)} or {CLOCK}; measure one")
        if len(tests := sorted({name for name, _, _ in found})) > 1:
            several = ", ".join(tests[:5])
            raise InputError(f"{where} times {several}; export one of them with --test-id")
    devices = {_device(run) for _, run, _ in found}
    if len(devices) > 1:
        raise InputError(f"{where} holds runs of {len(devices)} devices; export those of one")
    launches = [
        Launch(None, UNKNOWN_CONDITIONS, (), _images(series, run.where), None)
        for _, run, series in found
    ]
    runtime = Runtime(UNKNOWN, UNKNOWN, UNKNOWN, None)
    return foreign_report("xctest", text, launches, runtime, device=devices.pop())


def attachments(text: str, where: str) -> tuple[str, ...]:
    """The names under which `export attachments` wrote reports, each a plain file name.

    None where the text is no manifest of that tool, or one without a report.

    Raises:
        InputError: a name would lead out of the folder.
    """
    try:
        listed = isinstance(tests := parse_json(text), list)
    except ValueError:
        return ()
    if not listed or not all(isinstance(test, dict) and "attachments" in test for test in tests):
        return ()
    every = [row for test in Field(tests, where).rows() for row in test["attachments"].rows()]
    ours = [row["exportedFileName"] for row in every if _is_report(row)]
    for name in ours:
        if not _PLAIN.fullmatch(name.text()):
            raise InputError(
                f"{name.where} is {name.text()[:60]!r}; accepted: a plain file name; export again"
            )
    return tuple(dict.fromkeys(name.text() for name in ours))


def _is_report(row: Field) -> bool:
    # Xcode puts a count and a UUID behind the name that the test gave.
    name = row.get("suggestedHumanReadableName") or row["exportedFileName"]
    return _ATTACHED.fullmatch(name.text()) is not None


def _series(run: Field, identifiers: Sequence[str]) -> dict[str, list[float]]:
    """Measurements in ms by identifier, of the metrics asked for."""
    found: dict[str, list[float]] = {}
    for metric in run["metrics"].rows():
        identifier = metric.get("identifier")
        name = identifier.text() if identifier else ""
        if name not in identifiers:
            continue
        if name in found:
            raise InputError(f"{metric.where}.identifier is {name!r} again; report it once")
        found[name] = _measurements(metric)
    return found


def _measurements(metric: Field) -> list[float]:
    unit = metric["unitOfMeasurement"]
    if unit.text() not in MS:
        raise InputError(f"{unit.where} is {unit.text()[:60]!r}; accepted: {', '.join(MS)}")
    values = [row.number() * MS[unit.text()] for row in metric["measurements"].rows()]
    if not values:
        raise InputError(f"{metric.where}.measurements is empty; run the test to its end")
    return values


def _images(series: Series, where: str) -> tuple[Image, ...]:
    """One image per iteration; the steps of an iteration follow each other in their list."""
    whole, text, step, decoder = (series.get(name, ()) for name in OURS)
    whole = whole or series.get(CLOCK, ())
    counts = {len(values) for values in (whole, text, decoder) if values} or {len(step)}
    count = min(counts)
    if len(counts) > 1 or len(step) % count:
        lengths = {name: len(values) for name, values in series.items()}
        raise InputError(f"{where}.metrics have unlike numbers of measurements: {lengths}")
    each = len(step) // count
    try:
        return tuple(
            Image(
                warmup=False,
                uptime_ms=None,
                wall_ms=None,
                total_ms=whole[i] if whole else None,
                text_encoder_ms=text[i] if text else None,
                step_ms=tuple(step[i * each : (i + 1) * each]),
                decoder_ms=decoder[i] if decoder else None,
                thermal=None,
            )
            for i in range(count)
        )
    except ValueError as error:
        raise InputError(f"{where}.metrics: {error}; measure again") from error


def _device(run: Field) -> Device:
    """What the run says of its device; a phone where it does not say."""
    device = run.get("device") or Field({}, f"{run.where}.device")
    told = {
        key: value.text() if (value := device.get(key)) else None
        for key in ("modelName", "platform", "osVersion", "osBuildNumber")
    }
    platform = told["platform"] or ""
    kind = _PLATFORMS.get(platform.removesuffix(" Simulator"), "ios")
    simulator = platform.endswith(" Simulator") if platform else None
    return Device(
        platform="macos" if kind == "macos" else "ios",
        model=told["modelName"] or UNKNOWN,
        soc=None,
        ram_bytes=None,
        os_version=told["osVersion"] or UNKNOWN,
        os_build=told["osBuildNumber"],
        simulator=simulator,
    )
