"""What a CI server hands to a farm: a job checked, and files in which every value is quoted."""

from __future__ import annotations

import json
import plistlib
import re
import secrets
import shlex
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.parsers.expat import ExpatError

from nanoflux_benchmarks.farms import Job
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.manifest import FILE as MANIFEST
from nanoflux_mobile.manifest import Manifest, read_manifest
from nanoflux_mobile.storage import write_file

ALARM = "perl -e 'alarm shift; exec @ARGV'"
"""A time-out in seconds before a command line, on Macs too, which have no `timeout`."""
_NO_TEXT = ("false", "no", "null", "off", "on", "true", "yes")
"""Words that YAML reads as values."""
_MOST_PLIST_BYTES = 1 << 20
_DAMAGE = (
    ArithmeticError,
    AttributeError,
    ExpatError,
    LookupError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
    zipfile.BadZipFile,
)


@dataclass(frozen=True)
class Kind:
    """A sort of app: its platform, the bundles it runs, and how its tests beside it are called."""

    platform: Literal["android", "ios"]
    target: str
    tests: str


ANDROID = Kind("android", "litert", "-androidTest.apk")
IOS = Kind("ios", "coreml", "-tests.zip")
PACKAGES = {".apk": ANDROID, ".ipa": IOS}


@dataclass(frozen=True)
class HandIn:
    """A job ready to be handed in: whole paths, and what every launch is told, by its name."""

    kind: Kind
    app: Path
    tests: Path
    bundle: Path
    manifest: Manifest
    told: Mapping[str, str | int]

    @property
    def run_id(self) -> str:
        """The name of the run, new for every hand-in: an older report cannot pass for this one."""
        return str(self.told["run_id"])

    def environment(self, **more: str | int) -> dict[str, str]:
        """What every launch is told, and `more`, as the variables that an iOS app reads."""
        told = {**self.told, **more}
        return {f"NANOFLUX_{name.upper()}": str(value) for name, value in told.items()}

    def pushed(self, place: str) -> dict[str, str]:
        """The bundle's files by their path in `place` on a device, as farms want them listed."""
        names = (MANIFEST, *(file.path for file in self.manifest.files))
        return {plain(f"{place}/{name}"): plain(self.bundle / name) for name in names}


def hand_in(job: Job, kinds: Mapping[str, Kind] = PACKAGES) -> HandIn:
    """The job of a farm that a CI server drives.

    The package of tests lies beside the app: `bench.apk` and `bench-androidTest.apk`, `bench.ipa`
    and `bench-tests.zip` (what build-for-testing made, with its .xctestrun).

    Raises:
        InputError: a path that is missing or that no script can carry, an app of another sort, a
            bundle for another target, or a baseline.
    """
    if job.baseline:
        raise InputError("this farm measures one bundle at a time; compare with gate --baseline")
    if job.app is None or job.app.suffix not in kinds:
        raise InputError(f"the app is {job.app}; this farm takes a file *{' or *'.join(kinds)}")
    kind, app, bundle = kinds[job.app.suffix], job.app.absolute(), job.bundle.absolute()
    tests = app.with_name(app.stem + kind.tests) if kind.tests else app
    for path in (app, tests, bundle):
        plain(path)
        if not path.exists():
            raise InputError(f"{path} does not exist; build it first")
    manifest = read_manifest(bundle)
    if manifest.target != kind.target:
        raise InputError(f"{bundle} is for {manifest.target}; {app.name} runs {kind.target}")
    if kind is ANDROID and job.seed >= 1 << 63:
        raise InputError(f"the seed is {job.seed}; Android takes 0 to {(1 << 63) - 1}")
    run_id = f"{manifest.digest[:12]}-{secrets.token_hex(4)}"
    counts = {"launches": job.launches, "images": job.images, "warmup": job.warmup}
    told: dict[str, str | int] = {"run_id": run_id, **counts, "seed": job.seed}
    return HandIn(kind, app, tests, bundle, manifest, told)


def plain(value: str | Path) -> str:
    """The text of a value, which may stand in a script once it is quoted.

    Raises:
        InputError: it is empty, or has a line break or another control character.
    """
    text = str(value)
    if not text or not text.isprintable():
        raise InputError(f"{text!r} cannot stand in a script; use a name of printable characters")
    return text


def quoted(*words: str | Path | int) -> str:
    """The words as one command line, each safe from the shell."""
    return shlex.join(plain(str(word)) for word in words)


def assignments(values: Mapping[str, str | Path | int]) -> str:
    """The values as shell assignments, a line each."""
    return "".join(f"{name}={quoted(value)}\n" for name, value in values.items())


def write_script(folder: Path, settings: Mapping[str, str | Path | int], body: Path) -> str:
    """Write `bench.sh` into `folder`, settings before a fixed body; the line that runs it."""
    head = f"#!/usr/bin/env bash\nset -euo pipefail\n{assignments(settings)}\n"
    write_file(folder / "bench.sh", head + body.read_text("utf-8"))
    return quoted("bash", folder.absolute() / "bench.sh")


def yaml(value: Any, indent: str = "") -> str:
    """A plain value as YAML: text in double quotes, scripts of several lines as literal blocks."""
    if isinstance(value, Mapping):
        return "".join(f"{indent}{_key(key)}:{_item(value[key], indent)}" for key in value)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "".join(f"{indent}-{_item(item, indent)}" for item in value)
    if isinstance(value, str) and "\n" in value:
        lines = (f"{indent}{line}" if line else "" for line in value.splitlines())
        return "|\n" + "".join(f"{line}\n" for line in lines)
    return json.dumps(value, ensure_ascii=False) + "\n"


def _key(key: str) -> str:
    plain_word = re.fullmatch(r"[a-z][a-z_-]+", key) and key not in _NO_TEXT
    return key if plain_word else json.dumps(key, ensure_ascii=False)


def _item(item: Any, indent: str) -> str:
    nested = isinstance(item, Mapping | Sequence) and not isinstance(item, str)
    return ("\n" if nested else " ") + yaml(item, indent + "  ")


def xctestrun(tests: Path, environment: Mapping[str, str]) -> bytes:
    """The .xctestrun at the top of a zip of iOS tests, with variables added.

    A farm that starts xcodebuild itself tells the tests nothing else.

    Raises:
        InputError: the zip has none there or several, or one that Xcode did not write.
    """
    try:
        with zipfile.ZipFile(tests) as archive:
            names = [n for n in archive.namelist() if n.endswith(".xctestrun") and "/" not in n]
            if len(names) != 1:
                raise InputError(f"{tests} has {len(names)} files *.xctestrun at its top; pack one")
            with archive.open(names[0]) as file:
                plist = plistlib.loads(file.read(_MOST_PLIST_BYTES))
        for target in _test_targets(plist):
            target.setdefault("EnvironmentVariables", {}).update(environment)
        return plistlib.dumps(plist)
    except _DAMAGE as broken:
        raise InputError(f"{tests} cannot be used: {broken}; build the tests again") from broken


def _test_targets(plist: dict[str, Any]) -> list[dict[str, Any]]:
    if "TestConfigurations" in plist:  # version 2 of the format
        return [t for entry in plist["TestConfigurations"] for t in entry["TestTargets"]]
    return [target for name, target in plist.items() if not name.startswith("__")]
