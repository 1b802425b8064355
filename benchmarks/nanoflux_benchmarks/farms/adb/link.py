"""A phone at the other end of adb: every call has an end, and its exit code is not believed."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nanoflux_benchmarks.farms.adb import words
from nanoflux_benchmarks.farms.adb.words import Answer
from nanoflux_mobile.errors import InputError, NanofluxError

TRIES = 3
ANSWER_S = 60.0
ATTACH_S = 20.0
"""A phone that restarts its adb, or a server that looks for phones, needs some seconds."""
PAUSE_S = 0.5
SLOWEST_BYTES_PER_S = 2e6
"""USB 2 and the flash of a cheap phone do ten times as much."""


class Away(NanofluxError):
    """The phone stopped answering: it was unplugged, restarted, or hangs."""


@dataclass(frozen=True)
class Phone:
    """A device and the adb program that reaches it."""

    adb: str
    serial: str


@contextmanager
def during(phone: Phone, doing: str) -> Iterator[None]:
    """Say what was going on when the phone went away.

    Raises:
        NanofluxError: it did.
    """
    try:
        yield
    except Away as away:
        raise NanofluxError(
            f"lost {phone.serial} while {doing}: {away}; then run again, what was copied is kept"
        ) from away


def find_adb() -> str:
    """The adb program: $NANOFLUX_ADB, or the one on PATH.

    Raises:
        InputError: there is none.
    """
    named = os.environ.get("NANOFLUX_ADB")
    if found := shutil.which(named or "adb"):
        return found
    place = f"NANOFLUX_ADB is {named!r}, which is no program" if named else "there is no adb"
    raise InputError(f"{place}; install Android's platform-tools and put adb on PATH")


def choose(adb: str, address: str) -> Phone:
    """The phone with the serial `address`, ready; without an address the only one attached.

    Raises:
        InputError: it is not attached or not usable, or several are attached; the message lists
            them.
    """
    until = time.monotonic() + ATTACH_S
    listed = _listed(adb)
    while not address and not listed and time.monotonic() < until:
        time.sleep(PAUSE_S)
        listed = _listed(adb)
    if not address and len(listed) != 1:
        advice = "; name one: --device adb:SERIAL" if listed else ""
        raise InputError(words.attached(listed) + advice)
    phone = Phone(adb, address or listed[0][0])
    if fault := trouble(phone):
        raise InputError(fault)
    return phone


def trouble(phone: Phone) -> str | None:
    """Why the phone cannot be used, once it had ATTACH_S to come back; None when it can."""
    until = time.monotonic() + ATTACH_S
    while fault := words.trouble(phone.serial, _listed(phone.adb)):
        if time.monotonic() > until:
            return fault
        time.sleep(PAUSE_S)
    return None


def _listed(adb: str) -> tuple[tuple[str, str], ...]:
    said, complaint = _called([adb, "devices"], ANSWER_S)
    if "List of devices" not in said:
        raise NanofluxError(f"adb finds no server: {words.printable(complaint[-300:])}")
    return words.devices(said)


def shell(phone: Phone, script: str, seconds: float | None = None) -> Answer:
    """What a script says on the phone; sent again when the phone was away for a moment.

    So it must be one that may run twice.

    Raises:
        Away: the phone does not come back, or does not answer in `seconds` (else ANSWER_S).
    """
    for _ in range(TRIES):
        token = secrets.token_hex(8)
        marked = words.marked(script, token)
        said, _ = _called([phone.adb, "-s", phone.serial, "shell", marked], seconds or ANSWER_S)
        if found := words.answer(said, token):
            return found
        time.sleep(PAUSE_S)  # adb takes a moment to see that a phone has gone
        if fault := trouble(phone):
            raise Away(fault)
    raise Away(f"it cut {TRIES} answers short; try another cable")


def call(phone: Phone, *arguments: str | Path, seconds: float) -> str:
    """What an adb command prints; whether it did anything is for the caller to find out.

    Raises:
        Away: no end in `seconds`.
    """
    command = [phone.adb, "-s", phone.serial, *map(str, arguments)]
    return "\n".join(_called(command, seconds))


def _called(command: list[str], seconds: float) -> tuple[str, str]:
    """What a program prints, on stdout and on stderr."""
    idle = subprocess.DEVNULL
    try:
        done = subprocess.run(
            command, stdin=idle, capture_output=True, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired as late:
        raise Away(f"adb gave no answer in {seconds:.0f} s; restart the phone or adb") from late
    except OSError as broken:
        raise InputError(f"cannot run {command[0]}: {broken.strerror}; name another adb") from None
    return done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")
