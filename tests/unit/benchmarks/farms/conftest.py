"""Jobs whose names would break a careless script, and programs that stand in for a farm's tools."""

from __future__ import annotations

import os
import subprocess
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType

import pytest

from nanoflux_benchmarks.farms import Job, apple, aws, browserstack, firebase

FIXTURES = Path(__file__).parents[3] / "fixtures"
AWKWARD = """it's "$(touch hacked)" `x` & a; é #%*"""
ADDRESSES = {
    "apple": "00008140-000A1B2C3D4E501C",
    "aws": "arn:aws:devicefarm:us-west-2:123456789012:devicepool:aaaa-bbbb/cccc-dddd",
    "browserstack": "Samsung Galaxy S24-14.0",
    "firebase": "model=e3q,version=34",
}
FARMS: dict[str, ModuleType] = {
    "apple": apple,
    "aws": aws,
    "browserstack": browserstack,
    "firebase": firebase,
}
TESTS = {".apk": "-androidTest.apk", ".ipa": "-tests.zip"}


@pytest.fixture
def make_job(tmp_path: Path) -> Callable[..., Job]:
    """A job for an app of this sort, in a folder of this name."""

    def make(suffix: str = ".apk", folder: str = AWKWARD, **fields: object) -> Job:
        root = tmp_path / folder
        bundle, app = root / "bundle", root / f"bench{suffix}"
        bundle.mkdir(parents=True)
        manifest = (FIXTURES / "contract/manifest.json").read_text("utf-8")
        target = "litert" if suffix == ".apk" else "coreml"
        manifest = manifest.replace('"target": "coreml"', f'"target": "{target}"', 1)
        (bundle / "manifest.json").write_text(manifest, "utf-8")
        app.write_text("the app", "utf-8")
        if suffix == ".apk":
            (root / "bench-androidTest.apk").write_text("the tests", "utf-8")
        if suffix == ".ipa":
            with zipfile.ZipFile(root / "bench-tests.zip", "w") as tests:
                tests.write(FIXTURES / "farms/version2.xctestrun", "Bench_iphoneos.xctestrun")
                tests.writestr("Release-iphoneos/NanofluxBenchTests-Runner.app/Info.plist", "plist")
        given = {"launches": 3, "images": 10, "warmup": 2, "seed": 7, "baseline": None}
        return Job(bundle=bundle, app=app, **{**given, **fields})  # type: ignore[arg-type]

    return make


@pytest.fixture
def prepare(make_job: Callable[..., Job], tmp_path: Path) -> Callable[..., tuple[Path, str]]:
    """The folder that a farm prepared, and the one command it gave."""

    def make(farm: str, suffix: str) -> tuple[Path, str]:
        folder = tmp_path / f"hand in {AWKWARD}"
        (command,) = FARMS[farm].prepare(make_job(suffix), ADDRESSES[farm], folder)
        return folder, command

    return make


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., tuple[int, list[str]]]:
    """Run a shell text with stand-ins for programs; the exit code, and every call they got.

    A stand-in is a shell text; `sleep` returns at once. Two farms' real programs never run here.
    """

    def run(
        text: str, tools: Mapping[str, str], environment: Mapping[str, str]
    ) -> tuple[int, list[str]]:
        folder, log = tmp_path / "tools", tmp_path / "calls"
        folder.mkdir(exist_ok=True)
        log.write_text("")
        for name, body in {"sleep": "", **tools}.items():
            program = folder / name
            record = f'#!/bin/sh\necho "{name} $*" >> "$CALLS"\n'
            program.write_text(record + body, "utf-8")
            program.chmod(0o755)
        done = subprocess.run(
            ["bash", "-c", text],
            cwd=tmp_path,
            env={
                "PATH": f"{folder}:{os.environ['PATH']}",
                "CALLS": str(log),
                "STATE": str(tmp_path),
                **environment,
            },
            capture_output=True,
            timeout=60,
            check=False,
        )
        # The names of the job hold commands: none of them may have run.
        assert not list(tmp_path.rglob("hacked"))
        return done.returncode, log.read_text("utf-8").splitlines()

    return run
