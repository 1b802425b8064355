"""A bundle onto a device or into the hands of a farm, and the reports that come back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from nanoflux_benchmarks.farms import Job
from nanoflux_mobile import plugins
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.report import LatencyReport, report_json
from nanoflux_mobile.storage import write_file

FARMS = "nanoflux_benchmarks.farms"


@dataclass(frozen=True)
class Measured:
    """Files written, and the commands that a farm still has to be given."""

    files: tuple[Path, ...]
    commands: tuple[str, ...]


def measure(job: Job, device: str, out: Path, tell: Callable[[str], None]) -> Measured:
    """Run a job on `device`, written FARM or FARM:ADDRESS.

    A farm within reach (host, adb, replay) measures now and `out` becomes the report; with a
    baseline its report lies beside, named OUT.baseline.json. A farm elsewhere gets the files that
    CI hands in, in the folder `out`.

    Raises:
        InputError: no such farm, or whatever the farm cannot do.
    """
    name, _, address = device.partition(":")
    farm = plugins.load(FARMS, name)
    if not hasattr(farm, "run"):
        commands = farm.prepare(job, address, out)
        return Measured(tuple(sorted(p for p in out.rglob("*") if p.is_file())), tuple(commands))
    reports: tuple[LatencyReport, ...] = farm.run(job, address, tell)
    if len(reports) != (2 if job.baseline else 1):
        raise InputError(f"{name} cannot measure a baseline beside the bundle; bench each alone")
    files = (out, out.with_suffix(".baseline.json"))[: len(reports)]
    for report, file in zip(reports, files, strict=True):
        write_file(file, report_json(report))
    return Measured(files, ())
