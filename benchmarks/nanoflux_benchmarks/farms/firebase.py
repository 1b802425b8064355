"""Firebase Test Lab: an argument file for gcloud, and what lies in the results bucket afterwards.

Address: a device as gcloud takes it, `model=e3q,version=34`. Handed in: `firebase.yaml`, which
names the app, its tests, the files of the bundle to push and the folder to pull. Comes back, for
each device, `MODEL-VERSION-LOCALE-ORIENTATION/` with `logcat` or `syslog`, `test_result_*.xml` and
`artifacts/` with what was pulled.

Flags and limits are those of gcloud's own reference; pushing to iOS is in its beta commands only.
This never ran on the farm.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nanoflux_benchmarks.farms import Job
from nanoflux_benchmarks.farms._app import (
    ANDROID_BUNDLES,
    ANDROID_REPORTS,
    IOS_BUNDLE,
    IOS_REPORTS,
    PACKAGE,
)
from nanoflux_benchmarks.farms._handin import HandIn, hand_in, write_script, xctestrun, yaml
from nanoflux_benchmarks.farms._results import candidates
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.storage import write_file

TEST_TIMEOUT = "45m"
"""The most that a physical device is lent for."""
_DIMENSION = re.compile(r"(model|version|locale|orientation)=([\w.-]+)", re.ASCII)


def prepare(job: Job, address: str, folder: Path) -> tuple[str, ...]:
    """Write `firebase.yaml` and `bench.sh`; the command tests, waits and fills `results`.

    The script needs bash and gcloud, logged in, `$GOOGLE_CLOUD_PROJECT`, and the name of a bucket
    in `$NANOFLUX_RESULTS_BUCKET`.

    Raises:
        InputError: an address that is no device, or a job that cannot be handed in.
    """
    device, given = _device(address), hand_in(job)
    android = given.kind.platform == "android"
    arguments = _android(given) if android else _ios(given, folder.absolute())
    shared = {
        "device": [device],
        "timeout": TEST_TIMEOUT,
        "results-dir": given.run_id,
        # A second attempt would be a second report, and a film takes time from the phone.
        "num-flaky-test-attempts": 0,
        "record-video": False,
    }
    write_file(folder / "firebase.yaml", yaml({"bench": arguments | shared}))
    settings = {"PLATFORM": given.kind.platform, "RUN_ID": given.run_id}
    return (write_script(folder, settings, Path(__file__).with_suffix(".sh")),)


def _device(address: str) -> dict[str, str]:
    found = [_DIMENSION.fullmatch(part) for part in address.split(",")]
    device = {match[1]: match[2] for match in found if match}
    if len(device) < len(found) or "model" not in device:
        raise InputError(f"{address!r} is no device; write firebase:model=MODEL,version=VERSION")
    return device


def _android(given: HandIn) -> dict[str, Any]:
    place = f"{ANDROID_BUNDLES}/bundle"
    return {
        "type": "instrumentation",
        "app": str(given.app),
        "test": str(given.tests),
        "environment-variables": {
            name: str(value) for name, value in {**given.told, "bundle": place}.items()
        },
        "other-files": given.pushed(place),
        "directories-to-pull": [ANDROID_REPORTS],
        "performance-metrics": False,
    }


def _ios(given: HandIn, folder: Path) -> dict[str, Any]:
    # gcloud tells an XCTest nothing else, but takes an .xctestrun in place of the zip's own.
    plist = xctestrun(given.tests, given.environment(bundle=IOS_BUNDLE))
    write_file(folder / "bench.xctestrun", plist)
    return {
        "type": "xctest",
        "test": str(given.tests),
        "xctestrun-file": str(folder / "bench.xctestrun"),
        "other-files": given.pushed(f"{PACKAGE}:/{IOS_BUNDLE}"),
        "directories-to-pull": [f"{PACKAGE}:/{IOS_REPORTS}"],
    }


def collect(results: Path) -> Iterator[tuple[str, str]]:
    """The reports that were pulled, and the logs with one, of every device of a run.

    Raises:
        InputError: there is no report among them, or they cannot be read.
    """
    logs = ("logcat*", "syslog*", "*.log", "*.txt", "test_result_*.xml")
    return candidates(results, logs)
