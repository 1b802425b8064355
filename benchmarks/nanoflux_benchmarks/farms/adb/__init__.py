"""A phone on this computer's own adb: `--device adb:SERIAL`, or `adb:` for the only one attached.

adb is $NANOFLUX_ADB or the one on PATH. Its exit code is not believed, as some versions report 0
when the phone vanishes: a command has ended when its marker came, and a file has arrived when the
hash that the phone takes of it is right.

The app (`nanoflux_benchmarks.farms._app` has its names) is started once for every launch:

    am start -W -n io.nanoflux.mobile/.BenchActivity --es bundle FOLDER --es run_id ID \
        --ei images N --ei warmup W --el seed S

It wakes the screen and keeps it on, checks the bundle in FOLDER, draws W uncounted and N counted
images, writes `latency-report.json` into its files on the shared storage, renamed into place, with
one launch and with run_id ID, the bundle's digest and `Build.MODEL` in it, and ends. A bundle lies
in a folder named by its digest and stays there for the next run; nothing else on the phone is
removed or set.

The tests run all of this against Android's real adbd with a played app; no phone has run it yet.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Callable
from datetime import UTC, datetime

from nanoflux_benchmarks.farms import Job, turns
from nanoflux_benchmarks.farms.adb import words
from nanoflux_benchmarks.farms.adb.copying import install, read_bundle, require_app, send_bundle
from nanoflux_benchmarks.farms.adb.launching import Wanted, cool_down, launch
from nanoflux_benchmarks.farms.adb.link import Phone, choose, during, find_adb, shell
from nanoflux_benchmarks.importers import merge
from nanoflux_mobile.report import LatencyReport

_ROLES = ("candidate", "baseline")


def run(job: Job, address: str, tell: Callable[[str], None]) -> tuple[LatencyReport, ...]:
    """Measure on the phone with the serial `address`, or on the only one when it is empty.

    With a baseline both bundles take turns, A B B A, and their reports share a session. Run it
    again after a failure: what was copied is not copied again.

    Raises:
        InputError: no adb, no such phone or several, a phone that is not set up, a bundle or an
            app that it cannot take.
        NanofluxError: the phone went away, or the app crashed, hung or wrote a wrong report.
    """
    bundles = [bundle for bundle in (job.bundle, job.baseline) if bundle]
    manifests = [read_bundle(bundle) for bundle in bundles]
    phone = choose(find_adb(), address)
    facts = read_facts(phone)
    tell(f"{phone.serial}: {facts}")
    if job.app:
        install(phone, job.app, tell)
    require_app(phone)
    pairs = zip(bundles, manifests, strict=True)
    folders = [send_bundle(phone, bundle, manifest, tell) for bundle, manifest in pairs]
    session = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(4)}"
    reports: list[list[LatencyReport]] = [[] for _ in bundles]
    for number, which in turns(job.launches, len(bundles)):
        run_id = f"{session}-{_ROLES[which]}-{number + 1}"
        sizes = job.images, job.warmup, job.seed
        wanted = Wanted(run_id, manifests[which].digest, facts.model, *sizes)
        with during(phone, "reading its temperature"):
            cool_down(phone, tell)
        reports[which].append(launch(phone, folders[which], wanted))
        tell(f"launch {number + 1} of {job.launches}, {_ROLES[which]}: {job.images} images")
    return tuple(
        dataclasses.replace(
            merge(launches),
            run_id=f"{session}-{role}",
            session=session if job.baseline else None,
        )
        for role, launches in zip(_ROLES, reports, strict=False)
    )


def read_facts(phone: Phone) -> words.Facts:
    """What the phone says of itself before anything is measured."""
    with during(phone, "reading its facts"):
        properties = shell(phone, words.properties_script()).text
        battery = shell(phone, "dumpsys battery").text
        return words.facts(properties, battery, shell(phone, "dumpsys thermalservice").text)
