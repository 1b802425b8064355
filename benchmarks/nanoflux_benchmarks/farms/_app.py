"""What farms know of the phone apps: names, where a report lies, what a launch is told.

The apps keep to this:

* One start of the app with these values is one launch: it measures, puts a report of this one
  launch in place (renamed, so it is whole when it is there) and ends its process.
* Android: `ACTIVITY` takes them as extras: `bundle` (a folder on the device; without it the app
  measures the bundle that it carries), `run_id`, `images`, `warmup` and `seed`.
* iOS: the same names in capitals after `NANOFLUX_`, as environment variables; `NANOFLUX_BUNDLE` is
  relative to the app's container.
* The package of tests takes the same, as instrumentation arguments or environment variables, and
  `launches`: it starts the app so many times, each in a fresh process, joins what the launches
  left into one report with that run id, puts it in their place, attaches it (XCTest) and prints it
  in the lines of `importers/log_markers.py`.
"""

from __future__ import annotations

from typing import Final

PACKAGE: Final = "io.nanoflux.mobile"
ACTIVITY: Final = f"{PACKAGE}/.BenchActivity"
ANDROID_REPORTS: Final = f"/sdcard/Android/data/{PACKAGE}/files"
ANDROID_BUNDLES: Final = "/data/local/tmp/nanoflux"
"""Apps may read here, and farms and a shell may write."""
IOS_REPORTS: Final = "Documents/reports"
IOS_BUNDLE: Final = "Documents/bundle"
TESTS: Final = "NanofluxBenchTests"
LAUNCH_TIMEOUT_S: Final = 900
"""The first launch compiles the graphs, which takes minutes for large ones."""
