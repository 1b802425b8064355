"""This machine as a device: the address is how many cores to use, 1 where none is named.

Every launch is a process of its own, held to the same cores, so that launches differ as they do on
a phone and the scheduler moves none of them while it measures.
"""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from nanoflux_benchmarks.farms import Job, turns
from nanoflux_benchmarks.importers import merge
from nanoflux_mobile.errors import CheckFailed, InputError, NanofluxError
from nanoflux_mobile.manifest import read_manifest
from nanoflux_mobile.report import LatencyReport, read_report

APP = (sys.executable, "-P", "-m", "nanoflux_export.host_app")
"""The program that is one launch; -P, or a file in the current folder could stand in for a part."""
LAUNCH_S = 3600.0
SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
_PINS = hasattr(os, "sched_setaffinity")
_FAULTS = {fault.exit_code: fault for fault in (CheckFailed, InputError)}
_OURS = "error: "


@dataclass(frozen=True)
class _Side:
    """One of the bundles that take turns, and what its reports must say of themselves."""

    bundle: Path
    digest: str
    session: str
    name: str

    @property
    def run_id(self) -> str:
        return f"{self.session}-{self.name}"


def run(job: Job, address: str, tell: Callable[[str], None]) -> tuple[LatencyReport, ...]:
    """The report of `job.bundle`, then that of `job.baseline` where there is one.

    With a baseline the launches go A B B A, the baseline first. When a launch fails, those that
    ended well stay in a folder which the last line of progress names.

    Raises:
        InputError: an address that is no number of cores this machine has, a job with an app, no
            launches, or a bundle that cannot be measured here.
        CheckFailed: a file of a bundle is not the one its manifest lists.
        NanofluxError: a launch crashed, took over an hour, or left a report of something else.
    """
    cores = _cores(address)
    if job.app:
        raise InputError(f"the host runs bundles without an app; leave {job.app} out")
    if job.launches < 1:
        raise InputError(f"launches is {job.launches}; give at least 1")
    session = f"host-{secrets.token_hex(6)}"
    named = {"baseline": job.baseline, "candidate": job.bundle}
    sides = [
        _Side(bundle, read_manifest(bundle).digest, session, name)
        for name, bundle in named.items()
        if bundle
    ]
    found: dict[str, list[LatencyReport]] = {side.name: [] for side in sides}
    with _kept_on_failure(tell) as folder:
        order = list(turns(job.launches, len(sides)))
        for number, (_, which) in enumerate(order, 1):
            side = sides[which]
            tell(f"launch {number} of {len(order)}: {side.name} {side.bundle.name}")
            run_id = f"{side.run_id}.{len(found[side.name]) + 1}"
            out = folder / f"{run_id}.json"
            _launch([*APP, *_arguments(job, side, run_id, out, len(cores))], cores)
            found[side.name].append(_read(out, job, side, run_id))
    return tuple(
        dataclasses.replace(merge(found[side.name]), run_id=side.run_id) for side in reversed(sides)
    )


def _arguments(job: Job, side: _Side, run_id: str, out: Path, threads: int) -> list[str]:
    options = {
        "images": job.images,
        "warmup": job.warmup,
        "seed": job.seed,
        "threads": threads,
        "run-id": run_id,
        "session": side.session,
        "out": out,
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    return [*words, "--", str(side.bundle)]


@contextmanager
def _kept_on_failure(tell: Callable[[str], None]) -> Iterator[Path]:
    """A folder for the reports of single launches; it stays when the block ends early."""
    folder = Path(tempfile.mkdtemp(prefix="nanoflux-host-"))
    try:
        yield folder
    except BaseException:
        if count := len(list(folder.glob("*.json"))):
            tell(f"{count} finished launches are kept in {folder}")
        else:
            shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)


def _cores(address: str) -> list[int]:
    """So many CPUs, no two of one physical core; the last ones, as interrupts favour the first."""
    own = sorted(os.sched_getaffinity(0)) if _PINS else range(os.cpu_count() or 1)
    physical = list({_core(cpu): cpu for cpu in own}.values())
    if not re.fullmatch(r"[1-9]\d{0,3}", address or "1", re.ASCII):
        raise InputError(f"{address!r} is no number of cores; write host or host:{len(physical)}")
    if (count := int(address or 1)) > len(physical):
        raise InputError(f"this machine has {len(physical)} cores to use, not {count}; use fewer")
    return physical[-count:]


def _core(cpu: int) -> str:
    path = Path(SIBLINGS.format(cpu))
    return path.read_text("utf-8") if path.is_file() else str(cpu)


def _launch(command: list[str], cores: list[int]) -> None:
    """One process from start to end; it is not left behind however this ends."""
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    ) as child:
        try:
            if _PINS:
                with suppress(ProcessLookupError):
                    os.sched_setaffinity(child.pid, cores)
            _, words = child.communicate(timeout=LAUNCH_S)
        except subprocess.TimeoutExpired as late:
            raise NanofluxError(f"a launch took over {LAUNCH_S:g} s; draw fewer images") from late
        finally:
            child.kill()
    if child.returncode:
        raise _fault(child.returncode, words)


def _fault(code: int, words: str) -> NanofluxError:
    """What a failed launch said in its last line, as the error it was."""
    last = (words.strip().splitlines() or ["it said nothing"])[-1][:400]
    if code < 0:
        return NanofluxError(f"a launch was killed by signal {-code} ({signal.strsignal(-code)})")
    if last.startswith(_OURS) and code in _FAULTS:
        return _FAULTS[code](last.removeprefix(_OURS))
    return NanofluxError(f"a launch ended with code {code}: {last}")


def _read(out: Path, job: Job, side: _Side, run_id: str) -> LatencyReport:
    """The report of one launch, once it is about that launch."""
    try:
        report = read_report(out)
    except InputError as broken:
        raise NanofluxError(f"a launch of {side.bundle.name} left no report: {broken}") from broken
    images = [image.warmup for launch in report.launches for image in launch.images]
    pairs = {
        "run_id": (report.run_id, run_id),
        "session": (report.session, side.session),
        "bundle.digest": (report.bundle.digest, side.digest),
        "workload.seed": (report.workload.seed, job.seed),
        "launches": (len(report.launches), 1),
        "warm-ups": (images.count(True), job.warmup),
        "images": (images.count(False), job.images),
    }
    for name, (found, wanted) in pairs.items():
        if found != wanted:
            raise NanofluxError(
                f"a launch of {side.bundle.name} left a report of something else: its {name} is "
                f"{found}, not {wanted}"
            )
    return report
