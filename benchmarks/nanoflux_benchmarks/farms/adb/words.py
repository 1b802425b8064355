"""The words of adb and of Android's shell: what is sent is marked, what comes back is parsed."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PROPERTIES = {
    "model": "ro.product.model",
    "soc": "ro.soc.model",
    "release": "ro.build.version.release",
    "fingerprint": "ro.build.fingerprint",
}
_PROMPT = "does not trust this computer; unlock it and accept the prompt on its screen"
STATES = {
    "unauthorized": _PROMPT,
    "authorizing": _PROMPT,
    "no permissions": "may not be opened by this user; add a udev rule for it, or your user to "
    "the group plugdev",
    "offline": "is offline; plug it in again, or run: adb reconnect offline",
}
"""What a person does about a device that is listed and cannot be used."""
REFUSALS = {
    "No space left on device": "its storage is full; free some space",
    "Read-only file system": "its storage is read-only; restart the phone",
    "Permission denied": "its shell may not write there; use a phone that allows it",
}
_BATTERY = re.compile(r"^ *(level|status): *(\d{1,3}) *$", re.MULTILINE)
_THERMAL = re.compile(r"^ *Thermal Status: *(\d) *$", re.MULTILINE)
_CHARGING = ("2", "5")
"""BatteryManager's words for charging and for full on a charger."""


@dataclass(frozen=True)
class Answer:
    """What a script said on the phone, both streams in order, and its exit code there."""

    text: str
    code: int


@dataclass(frozen=True)
class Facts:
    """What a phone says of itself; `fingerprint` names its build, `thermal` is Android's 0 to 6."""

    model: str
    soc: str
    release: str
    fingerprint: str
    battery: int | None
    charging: bool | None
    thermal: int | None

    def __str__(self) -> str:
        """One line for a person."""
        chip = f" ({self.soc})" if self.soc else ""
        battery = "unknown" if self.battery is None else f"{self.battery} %"
        power = ", charging" if self.charging else ""
        thermal = "unknown" if self.thermal is None else self.thermal
        return (
            f"{self.model}{chip}, Android {self.release}: "
            f"battery {battery}{power}, thermal status {thermal}"
        )


def marked(script: str, token: str) -> str:
    """The script, followed by a line with `token` and its exit code: proof that it ran to its end.

    An exit code of adb is no proof: some versions report 0 when the phone vanishes half-way.
    """
    return f"{{ {script}\n}} </dev/null 2>&1; code=$?; echo; echo {token} $code"


def answer(text: str, token: str) -> Answer | None:
    """What a marked script said; None when its end never came."""
    body, found, code = text.rpartition(f"\n{token} ")
    whole = found and re.fullmatch(r"\d{1,3}\n", code, re.ASCII)
    return Answer(body, int(code)) if whole else None


def devices(text: str) -> tuple[tuple[str, str], ...]:
    """Serial and state of every device in what `adb devices` prints."""
    rows = (line.partition("\t") for line in text.splitlines())
    return tuple((serial, state.strip()) for serial, tab, state in rows if tab and serial)


def trouble(serial: str, listed: Sequence[tuple[str, str]]) -> str | None:
    """Why a device cannot be used, and what to do; None when it can."""
    states = [state for name, state in listed if name == serial]
    if not states:
        return f"{serial} is not attached; {attached(listed)}"
    if "device" in states:
        return None
    for state, advice in STATES.items():
        if states[0].startswith(state):
            return f"{serial} {advice}"
    return f"{serial} is in state {printable(states[0])!r}; start it into Android"


def attached(listed: Sequence[tuple[str, str]]) -> str:
    """The devices adb sees, in words."""
    found = ", ".join(f"{printable(serial)} ({printable(state)})" for serial, state in listed)
    return f"attached: {found}" if found else "no device is attached; plug one in, USB debugging on"


def refusal(text: str) -> str | None:
    """Why a phone would not take a file, and what to do, when a text of its or of adb says so."""
    return next((advice for words, advice in REFUSALS.items() if words in text), None)


def properties_script() -> str:
    """The script that prints PROPERTIES, one `name=value` a line."""
    return "; ".join(f'echo "{name}=$(getprop {key})"' for name, key in PROPERTIES.items())


def facts(properties: str, battery: str, thermal: str) -> Facts:
    """A phone's facts from its properties and `dumpsys battery` and `thermalservice`."""
    said: Mapping[str, str] = dict(
        (name, printable(value)) for name, _, value in map(_halves, properties.splitlines())
    )
    known = {name: said.get(name, "") for name in PROPERTIES}
    charge = dict(_BATTERY.findall(battery))
    level, status = charge.get("level"), charge.get("status")
    return Facts(
        **known,
        battery=None if level is None else int(level),
        charging=None if status is None else status in _CHARGING,
        thermal=thermal_status(thermal),
    )


def _halves(line: str) -> tuple[str, str, str]:
    return line.partition("=")


def thermal_status(text: str) -> int | None:
    """Android's thermal status, 0 (none) to 6 (shutdown), in `dumpsys thermalservice`."""
    found = _THERMAL.search(text)
    return int(found[1]) if found else None


def sha256(text: str) -> str | None:
    """The hash that `sha256sum` printed of its input."""
    found = re.findall(r"^([0-9a-f]{64}) +-$", text, re.MULTILINE)
    return found[0] if len(found) == 1 else None


def last_lines(log: str, word: str, count: int = 5) -> tuple[str, ...]:
    """The last lines of a log that mention `word`, safe to print."""
    lines = (line for line in log.splitlines() if word in line)
    return tuple(printable(line)[:300] for line in lines)[-count:]


def printable(text: str) -> str:
    """The text without what could move a terminal's cursor."""
    return "".join(char if char.isprintable() else "?" for char in text.strip())
