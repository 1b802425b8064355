"""One launch of the app: a fresh process, waited for, whose report is fetched and checked."""

from __future__ import annotations

import shlex
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from nanoflux_benchmarks.farms import _app
from nanoflux_benchmarks.farms.adb import words
from nanoflux_benchmarks.farms.adb.copying import fetch
from nanoflux_benchmarks.farms.adb.link import Phone, during, shell
from nanoflux_mobile.errors import InputError, NanofluxError
from nanoflux_mobile.report import FILE, LatencyReport, read_report

REPORT = f"{_app.ANDROID_REPORTS}/{FILE}"
POLL_S = 5.0
"""Rarely, as every look takes a moment of the processor that is measured."""
COOL_S = 600.0
"""After this long a phone is left as warm as it is; the gate will say what that is worth."""


@dataclass(frozen=True)
class Wanted:
    """What the report of a launch must say of itself."""

    run_id: str
    digest: str
    model: str
    images: int
    warmup: int
    seed: int


def cool_down(phone: Phone, tell: Callable[[str], None]) -> None:
    """Wait until the phone is not warm, COOL_S at the most: a warm launch is no evidence."""
    until, told = time.monotonic() + COOL_S, False
    while status := words.thermal_status(shell(phone, "dumpsys thermalservice").text):
        if time.monotonic() > until:
            tell(f"still thermal status {status} after {COOL_S:.0f} s: going on")
            return
        if not told:
            tell(f"thermal status {status}: waiting for it to cool")
        told = True
        time.sleep(POLL_S)


def launch(phone: Phone, folder: str, wanted: Wanted) -> LatencyReport:
    """Measure once in a new process; the report of that launch.

    Raises:
        InputError: the app cannot be started.
        NanofluxError: it crashed, hung or wrote another report, or the phone went away.
    """
    name = f"launch {wanted.run_id}"
    with during(phone, name), tempfile.TemporaryDirectory() as scratch:
        _start(phone, folder, wanted)
        until = time.monotonic() + _app.LAUNCH_TIMEOUT_S
        while (state := _state(phone)) == "running":
            if time.monotonic() > until:
                raise _failure(phone, f"{name} did not end in {_app.LAUNCH_TIMEOUT_S} s")
            time.sleep(POLL_S)
        if state == "ended":
            raise _failure(phone, f"{name} ended without a report")
        fetch(phone, REPORT, Path(scratch, FILE))
        return checked(Path(scratch, FILE), wanted)


def _start(phone: Phone, folder: str, wanted: Wanted) -> None:
    # Whatever report lies there would be overwritten by the app as well, and must not pass for it.
    extras = (
        ("--es", "bundle", folder),
        ("--es", "run_id", wanted.run_id),
        ("--ei", "images", str(wanted.images)),
        ("--ei", "warmup", str(wanted.warmup)),
        ("--el", "seed", str(wanted.seed)),
    )
    told = " ".join(shlex.join(extra) for extra in extras)
    said = shell(
        phone,
        f"am force-stop {_app.PACKAGE} && rm -f {REPORT} && am start -W -n {_app.ACTIVITY} {told}",
    )
    if said.code or "Error" in said.text:
        raise InputError(f"cannot start {_app.ACTIVITY}: {words.printable(said.text)[-300:]}")


def _state(phone: Phone) -> Literal["reported", "running", "ended"]:
    """How far the app is; a process that ends right after its report has reported."""
    script = f"pidof {_app.PACKAGE} >/dev/null && echo alive; [ -f {REPORT} ] && echo there"
    said = shell(phone, script).text.split()
    return "reported" if "there" in said else "running" if "alive" in said else "ended"


def _failure(phone: Phone, what: str) -> NanofluxError:
    log = shell(phone, "logcat -d -t 2000").text
    lines = words.last_lines(log, _app.PACKAGE) or ("nothing about the app",)
    return NanofluxError(f"{what} on {phone.serial}; its log says:\n" + "\n".join(lines))


def checked(path: Path, wanted: Wanted) -> LatencyReport:
    """The report in a file, when it is that of the one launch that was asked for.

    Raises:
        NanofluxError: it cannot be read, or speaks of something else.
    """
    try:
        report = read_report(path)
    except InputError as broken:
        raise NanofluxError(f"the app wrote a broken report: {broken}") from broken
    images = [len(launch.images) for launch in report.launches]
    counted = [len(launch.measured) for launch in report.launches]
    for name, found, asked in (
        ("run_id", report.run_id, wanted.run_id),
        ("bundle.digest", report.bundle.digest, wanted.digest),
        ("device.model", report.device.model, wanted.model),
        ("workload.seed", report.workload.seed, wanted.seed),
        ("images by launch", images, [wanted.warmup + wanted.images]),
        ("measured images by launch", counted, [wanted.images]),
    ):
        if found != asked:
            said = f"; it says: {report.errors[0][:300]}" if report.errors else ""
            raise NanofluxError(f"the app wrote {name} {found!r}, not {asked!r}{said}")
    return report
