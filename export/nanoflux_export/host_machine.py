"""What this machine tells of itself, in the words of a latency report; None where it is silent."""

from __future__ import annotations

import platform
import sys
from pathlib import Path

from nanoflux_mobile.report import Conditions, Device, Memory

CPUS, MEMORY = Path("/proc/cpuinfo"), Path("/proc/meminfo")
PROCESS = Path("/proc/self/status")
PROFILE = Path("/sys/firmware/acpi/platform_profile")


def device() -> Device:
    """The machine; its model is that of its processor, which decides the speed."""
    return Device(
        platform="macos" if sys.platform == "darwin" else "linux",
        model=_field(CPUS, "model name") or platform.machine(),
        soc=None,
        ram_bytes=_bytes(MEMORY, "MemTotal"),
        os_version=platform.release(),
        os_build=platform.version(),
        simulator=False,
    )


def conditions() -> Conditions:
    """The state of this process and its machine, now.

    Temperatures stay None: what a server calls hot depends on the server, and a report's scale is
    that of phones.
    """
    tracer = _field(PROCESS, "TracerPid")
    watched = None if tracer is None else tracer != "0"
    return Conditions(
        thermal_before=None,
        thermal_after=None,
        battery_level=None,
        charging=None,
        low_power=PROFILE.read_text("utf-8").strip() == "low-power" if PROFILE.is_file() else None,
        debugger=True if sys.gettrace() else watched,
        foreground=None,
    )


def peak_memory() -> Memory | None:
    """The most memory this process has held so far; unlike getrusage, without its parent's."""
    peak = _bytes(PROCESS, "VmHWM")
    return None if peak is None else Memory(peak, "VmHWM")


def _bytes(path: Path, name: str) -> int | None:
    value = _field(path, name)
    return None if value is None else int(value.removesuffix(" kB")) * 1024


def _field(path: Path, name: str) -> str | None:
    """The first `name: value` line of a file that the kernel writes."""
    if not path.is_file():
        return None
    pairs = (line.partition(":") for line in path.read_text("utf-8").splitlines())
    return next((value.strip() for key, _, value in pairs if key.strip() == name), None)
