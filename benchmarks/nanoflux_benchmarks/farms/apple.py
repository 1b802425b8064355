"""An iPhone at a Mac: the command lines of devicectl, xcodebuild and xcresulttool, as data.

Address: the identifier of a device (`xcrun devicectl list devices`). The app decides the way:

* an .app is installed, given the bundle, started once for each launch, and its report copied back;
* an .xctestrun (from build-for-testing) runs the XCTest bundle on an app that carries its bundle,
  and the report is exported from the attachments in its result.

Options are those seen in use with Xcode 16. This never ran on a Mac.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nanoflux_benchmarks.farms import Job
from nanoflux_benchmarks.farms._app import (
    IOS_BUNDLE,
    IOS_REPORTS,
    LAUNCH_TIMEOUT_S,
    PACKAGE,
    TESTS,
)
from nanoflux_benchmarks.farms._handin import ALARM, HandIn, Kind, hand_in, quoted
from nanoflux_benchmarks.farms._results import candidates
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.report import FILE
from nanoflux_mobile.storage import write_file

_HEX = "[0-9A-Fa-f]"
_DEVICE = re.compile(
    f"{_HEX}{{8}}-{_HEX}{{16}}|{_HEX}{{40}}|{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}"
)
_KINDS = {".app": Kind("ios", "coreml", ""), ".xctestrun": Kind("ios", "coreml", "")}
_MINUTE = 60


@dataclass(frozen=True)
class Command:
    """A command line as data: its words, seconds until it is given up, and what it is for."""

    argv: tuple[str, ...]
    timeout_s: int
    note: str

    @property
    def line(self) -> str:
        """The line for a shell, ended by an alarm when it takes too long."""
        return f"{ALARM} {self.timeout_s} {quoted(*self.argv)}"


def prepare(job: Job, address: str, folder: Path) -> tuple[str, ...]:
    """Write `bench.sh` for a Mac; the command runs it and fills `results` in `folder`.

    It needs Xcode 16 or newer and a paired, unlocked phone that trusts the app's developer.

    Raises:
        InputError: an address that is no device, or a job that cannot be handed in.
    """
    if not _DEVICE.fullmatch(address):
        raise InputError(f"{address!r} is no device identifier; see xcrun devicectl list devices")
    given, results = hand_in(job, _KINDS), folder.absolute() / "results"
    head = f"#!/bin/sh\nset -eu\nrm -rf {quoted(results)}\nmkdir -p {quoted(results)}\n"
    steps = commands(given, address, results)
    lines = "".join(f"# {step.note}\n{step.line}\n" for step in steps)
    write_file(folder / "bench.sh", head + lines)
    return (quoted("sh", folder.absolute() / "bench.sh"),)


def commands(given: HandIn, device: str, results: Path) -> tuple[Command, ...]:
    """The steps of a hand-in, in order."""
    if given.app.suffix == ".xctestrun":
        return _tested(given, device, results)
    return _launched(given, device, results)


def _launched(given: HandIn, device: str, results: Path) -> tuple[Command, ...]:
    steps = [
        _step(device, "install app", 10, "the app", str(given.app)),
        _step(device, "copy to", 60, "the bundle", *_place(str(given.bundle), IOS_BUNDLE)),
    ]
    for i in range(1, int(given.told["launches"]) + 1):
        run_id, report = f"{given.run_id}.{i}", str(results / f"latency-report-{i}.json")
        told = json.dumps(given.environment(bundle=IOS_BUNDLE, run_id=run_id))
        start = ("--terminate-existing", "--console", "--environment-variables", told, PACKAGE)
        left = _place(f"{IOS_REPORTS}/{FILE}", report)
        steps += [
            _step(device, "process launch", LAUNCH_TIMEOUT_S // _MINUTE, f"launch {i}", *start),
            _step(device, "copy from", 10, "what it left", *left),
            # A launch that left nothing would pass off the report of the one before it as its own.
            Command(("grep", "-qF", run_id, report), _MINUTE, "the report is of this launch"),
        ]
    return tuple(steps)


def _step(device: str, action: str, minutes: int, note: str, *words: str) -> Command:
    limit = str(minutes * _MINUTE)
    head = ("xcrun", "devicectl", "device", *action.split(), "--device", device)
    return Command((*head, "--timeout", limit, *words), (minutes + 1) * _MINUTE, note)


def _place(source: str, destination: str) -> tuple[str, ...]:
    container = ("--domain-type", "appDataContainer", "--domain-identifier", PACKAGE)
    return (*container, "--source", source, "--destination", destination)


def _tested(given: HandIn, device: str, results: Path) -> tuple[Command, ...]:
    # xcodebuild hands variables with this prefix on to the tests, without it.
    told = [f"TEST_RUNNER_{name}={value}" for name, value in given.environment().items()]
    allowed = LAUNCH_TIMEOUT_S * int(given.told["launches"])
    result = str(results / "bench.xcresult")
    test = ("env", *told, "xcodebuild", "test-without-building", "-xctestrun", str(given.app))
    where = ("-destination", f"id={device}", "-destination-timeout", "120")
    limits = (
        "-test-timeouts-enabled",
        "YES",
        "-maximum-test-execution-time-allowance",
        f"{allowed}",
    )
    export = ("xcrun", "xcresulttool", "export", "attachments", "--path", result)
    return (
        Command(
            (*test, *where, f"-only-testing:{TESTS}", *limits, "-resultBundlePath", result),
            allowed + 10 * _MINUTE,
            "the XCTest bundle, which starts the app for every launch",
        ),
        Command(
            (*export, "--output-path", str(results / "attachments")),
            10 * _MINUTE,
            "the attachments, one of which is the report",
        ),
    )


def collect(results: Path) -> Iterator[tuple[str, str]]:
    """The report that was copied or exported, and any log with one.

    Raises:
        InputError: there is no report among them, or they cannot be read.
    """
    return candidates(results, ("*.log", "*.txt"))
