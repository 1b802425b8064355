"""BrowserStack App Automate: the body of a build call, and the script that makes it and waits.

Address: a device as BrowserStack names it, `Samsung Galaxy S24-14.0`. Handed in: the app, its
tests, and `build.json` for espresso/v2/build or xcuitest/v2/xctestrun-build. The farm takes no
files beside the packages and gives none back, so the app carries its bundle, and the report comes
as marked lines in the device log and the test's log of each session.

The calls are those of the REST reference. This never ran on the farm.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from nanoflux_benchmarks.farms import Job
from nanoflux_benchmarks.farms._handin import HandIn, hand_in, write_script, xctestrun
from nanoflux_benchmarks.farms._results import candidates
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.storage import write_file

WAIT_MINUTES = 150
_DEVICE = re.compile(r"[A-Za-z0-9][\w .()+/-]{1,80}-\d[\d.]*", re.ASCII)
_CALLS = {
    "android": ("espresso", "build", "apk", "apk"),
    "ios": ("xcuitest", "xctestrun-build", "ipa", "zip"),
}


def prepare(job: Job, address: str, folder: Path) -> tuple[str, ...]:
    """Write `build.json` and `bench.sh`; the command uploads, waits and fills `results`.

    The script needs bash, zip, curl, jq, `$BROWSERSTACK_USERNAME` and `$BROWSERSTACK_ACCESS_KEY`.

    Raises:
        InputError: an address that is no device, or a job that cannot be handed in.
    """
    if not _DEVICE.fullmatch(address):
        raise InputError(f"{address!r} is no device; write 'browserstack:NAME-OS', as in the list")
    given = hand_in(job)
    framework, call, app_ext, tests_ext = _CALLS[given.kind.platform]
    settings: dict[str, str | Path | int] = {
        "RUN_ID": given.run_id,
        "APP": given.app,
        "TESTS": given.tests,
        "FRAMEWORK": framework,
        "BUILD_CALL": call,
        "APP_EXT": app_ext,
        "TESTS_EXT": tests_ext,
        "MINUTES": WAIT_MINUTES,
    }
    if framework == "xcuitest":
        plist = xctestrun(given.tests, given.environment())
        write_file(folder / "bench.xctestrun", plist)
    write_file(folder / "build.json", json.dumps(body(given, address), indent=1) + "\n")
    return (write_script(folder, settings, Path(__file__).with_suffix(".sh")),)


def body(given: HandIn, device: str) -> dict[str, object]:
    """The body of the build call; packages go by the custom id that they are uploaded under."""
    shared: dict[str, object] = {
        "app": given.run_id,
        "testSuite": given.run_id,
        "devices": [device],
        "project": "nanoflux-mobile",
        "deviceLogs": True,
        "video": False,  # recording takes time from the phone
    }
    if given.kind.platform == "android":
        options = {name: str(value) for name, value in given.told.items()}
        return shared | {"instrumentationOptions": options}
    return shared


def collect(results: Path) -> Iterator[tuple[str, str]]:
    """The logs of a build's sessions in which the app left a report.

    Raises:
        InputError: there is no report among them, or they cannot be read.
    """
    return candidates(results, ("*.log", "*.txt"))
