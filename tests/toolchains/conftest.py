"""Real tools from outside: found where their scripts put them, else a test skips and says how.

With NANOFLUX_REQUIRE=all a missing tool is a failure.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.toolchains.played import Played, free_port, listens, start, stop, until

HERE = Path(__file__).parent


def toolchains() -> Path:
    """The folder that the scripts here fill."""
    return Path(os.environ.get("NANOFLUX_TOOLCHAINS", "~/.cache/nanoflux-toolchains")).expanduser()


PLACE = toolchains()
"""That folder, before the tests of adb give themselves another home."""


def missing(what: str, how: str) -> None:
    """Skip for want of a tool, or fail where all of them are required."""
    end = pytest.fail if os.environ.get("NANOFLUX_REQUIRE") == "all" else pytest.skip
    end(f"{what}; get it with: {how}")


@pytest.fixture(scope="session")
def adbd_root() -> Path:
    """What adbd.sh unpacked."""
    root = toolchains() / "adbd" / "root"
    if not root.exists():
        missing("Android's adbd is not here", str(HERE / "adbd.sh"))
    for tool in ("unshare", "nsenter", "setpriv"):
        if not shutil.which(tool):
            missing(f"{tool} is not here", "apt-get install util-linux")
    return root


@pytest.fixture(scope="session")
def vulkan() -> Iterator[None]:
    """A Vulkan driver: the one that the environment names, or what vulkan.sh unpacked."""
    gpu = pytest.importorskip("nanoflux_export.targets.litert.gpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("NANOFLUX_TOOLCHAINS", str(PLACE))
        if gpu.driver() is None:
            missing("a Vulkan driver is not here", str(HERE / "vulkan.sh"))
        yield


@pytest.fixture(scope="session")
def adb(adbd_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An adb program ($NANOFLUX_ADB, or the one beside adbd) with a server of its own."""
    program = os.environ.get("NANOFLUX_ADB", str(adbd_root.parent / "adb"))
    home, port = tmp_path_factory.mktemp("adb"), str(free_port())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(home))  # adb keeps its key there
        patch.setenv("NANOFLUX_ADB", program)
        patch.setenv("ANDROID_ADB_SERVER_PORT", port)
        patch.setenv("ADB_LOCAL_TRANSPORT_MAX_PORT", "5554")  # looks for no emulators
        server = start(program, "server", "nodaemon", log=home / "server.log")
        until(lambda: listens(int(port)), "the adb server listens")
        yield program
        stop(server)


@pytest.fixture
def phone(adb: str, adbd_root: Path, tmp_path: Path) -> Iterator[Played]:
    """A phone that is switched on and attached."""
    played = Played(adb, adbd_root, tmp_path)
    try:
        played.power_on()
        played.attach()
        yield played
    finally:
        played.power_off()
