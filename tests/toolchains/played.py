"""Android's real adbd in a container of its own, whose other programs play a phone."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

PROGRAMS = Path(__file__).parent / "phone"
PATH = "/system/bin:/usr/bin:/usr/sbin"
STORAGE_BYTES = 8 << 20
SECONDS = 20.0
"""Longer than anything on loopback takes, even on a busy machine."""
INIT = """
set -e
mount -t proc proc "$1/proc"
mount --rbind /dev "$1/dev"
mount --bind "$2" "$1/system/bin"
for place in data sdcard; do mount -t tmpfs -o size=$3 tmpfs "$1/$place"; done
echo ready
while sleep 1; do :; done
"""


def until(found: Callable[[], object], what: str) -> None:
    """Wait for something; an error after SECONDS."""
    end = time.monotonic() + SECONDS
    while not found():
        assert time.monotonic() < end, f"waited {SECONDS:.0f} s until {what}"
        time.sleep(0.01)


def free_port() -> int:
    """A TCP port of this machine that nobody uses."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def listens(port: int) -> bool:
    """Whether somebody answers at a port of this machine."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def children(pid: int) -> list[int]:
    """The processes that a process has started."""
    with suppress(FileNotFoundError):
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


def start(*command: object, log: Path) -> subprocess.Popen[bytes]:
    """A process that dies with this one, and writes to `log`."""
    words = ["setpriv", "--pdeathsig", "KILL", *map(str, command)]
    with log.open("ab") as out:
        return subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=out, stderr=out)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End it and what it started."""
    for pid in (*children(process.pid), process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, 9)
    process.wait()


@dataclass
class Played:
    """The phone: `scratch` is a folder for its logs, `root` what adbd.sh unpacked."""

    adb: str
    root: Path
    scratch: Path
    port: int = field(default_factory=free_port)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

    @property
    def serial(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def init(self) -> int:
        return children(self.processes["init"].pid)[0]

    def path(self, place: str) -> Path:
        """A place on the phone as this machine sees it."""
        return Path(f"/proc/{self.init}/root{self.root}{place}")

    def power_on(self) -> None:
        """Make its namespaces and its empty storage; nothing of it is seen from outside."""
        log = self.scratch / "init.log"
        unshare = ["unshare", *self._user("--user", "--map-root-user"), "--mount", "--pid"]
        made = [*unshare, "--fork", "--kill-child=KILL", "sh", "-c", INIT, "sh"]
        self.processes["init"] = start(*made, self.root, PROGRAMS, STORAGE_BYTES, log=log)
        gone = self.processes["init"].poll
        until(lambda: b"ready" in log.read_bytes() or gone() is not None, "the container is up")
        assert gone() is None, f"no container, run the tests as root: {log.read_text()}"
        self.path("/data/played").mkdir()
        self.play("ok")

    def attach(self) -> None:
        """Start its adbd, again if it has died, and wait until adb sees it."""
        if "adbd" in self.processes:
            self.vanish()
        user = self._user("--user", "--preserve-credentials")
        inside = ["nsenter", "--target", self.init, *user, "--mount", "--pid"]
        adbd = ["env", "-i", f"PATH={PATH}", f"ADBD_PORT={self.port}", "chroot", self.root, "adbd"]
        self.processes["adbd"] = start(*inside, *adbd, log=self.scratch / "adbd.log")
        until(self._connected, "adb has connected")

    def _connected(self) -> bool:
        self.run("connect", self.serial)
        return f"{self.serial}\tdevice" in self.run("devices")

    def vanish(self) -> None:
        """Pull the cable: adbd dies, the apps and the storage live on."""
        stop(self.processes.pop("adbd"))

    def adbd(self) -> int:
        """The process id of its adbd."""
        return children(self.processes["adbd"].pid)[0]

    def power_off(self) -> None:
        for process in self.processes.values():
            stop(process)
        self.run("disconnect")  # whatever name it was reached by

    def play(self, mode: str) -> None:
        """How the phone and its app behave from now on."""
        self.path("/data/played/mode").write_text(mode)
        self.path("/data/played/log").touch()

    def run(self, *arguments: str) -> str:
        """What adb says."""
        done = subprocess.run(
            [self.adb, *arguments], capture_output=True, text=True, timeout=SECONDS, check=False
        )
        return done.stdout + done.stderr

    def _user(self, *options: str) -> tuple[str, ...]:
        return () if os.geteuid() == 0 else options
