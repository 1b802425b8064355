"""A result from before, judged again: the address is a report, a log, or a farm's results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from nanoflux_benchmarks.farms import Job
from nanoflux_benchmarks.importers import read_any
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.manifest import read_manifest
from nanoflux_mobile.report import LatencyReport


def run(job: Job, address: str, tell: Callable[[str], None]) -> tuple[LatencyReport, ...]:
    """The stored report of `job.bundle`; nothing is measured.

    Raises:
        InputError: the address holds no report or several, or one of another bundle; or the job
            has a baseline, which has a report of its own.
    """
    if not address:
        raise InputError("replay needs an address; write replay:PATH, a report or a farm's results")
    if job.baseline:
        raise InputError("replay reads one report; give that of the baseline to gate --baseline")
    digest = read_manifest(job.bundle).digest
    tell(f"reading {address}")
    report = read_any(Path(address))
    if report.bundle.digest != digest:
        found = (report.bundle.digest or "none")[:12]
        raise InputError(f"{address} names bundle {found}, not {digest[:12]}; measure {job.bundle}")
    tell(f"{len(report.launches)} launches on {report.device.model}")
    return (report,)
