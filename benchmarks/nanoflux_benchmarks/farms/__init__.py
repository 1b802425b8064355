"""Where phones are: one file per farm, found by its name; a new farm is a new file and no edit.

`--device NAME:ADDRESS` names the module here and what it is to reach. A module whose name starts
with `_` is shared by farms and is none. Each farm offers one of two things:

* a farm within reach (`adb`, `host`, `replay`) measures at once:
  `run(job, address, tell) -> tuple[LatencyReport, ...]` gives the report of `job.bundle`, followed
  by that of `job.baseline` (same device, same session, launches in turns) when one is named;
  `tell` takes one line of progress at a time.
* a farm that a CI server drives (`apple`, `aws`, `browserstack`, `firebase`) does so in two halves:
  `prepare(job, address, folder) -> tuple[str, ...]` writes what is handed in into `folder` and
  gives the command lines to run, none of which it runs itself; `collect(results)` walks the folder
  or zip that comes back and yields the `(name, text)` of every file that may hold a report, for
  the importers to read. Credentials are named in the commands as environment variables and are
  never read here. Such a farm measures one bundle at a time: it refuses a baseline.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Job:
    """What to measure, the same for every farm.

    `app` is the app under test (an .apk, .ipa, .app or .xctestrun), None where the farm needs
    none. Each of `launches` fresh processes draws `warmup` uncounted images and then `images`
    counted ones from noise seed `seed`. `baseline` is a second bundle to measure in turns with the
    first.
    """

    bundle: Path
    app: Path | None
    launches: int
    images: int
    warmup: int
    seed: int
    baseline: Path | None


def turns(launches: int, bundles: int) -> Iterator[tuple[int, int]]:
    """Launch and bundle in the order to measure: A B B A A B for three launches of two bundles."""
    for number in range(launches):
        order = range(bundles) if number % 2 == 0 else reversed(range(bundles))
        for which in order:
            yield number, which
