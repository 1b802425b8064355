"""The wheel brings three packages with their data, and nothing else into site-packages."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from nanoflux_mobile import __version__

ROOT = Path(__file__).parents[2]
PACKAGES = {
    "nanoflux_mobile": ROOT / "nanoflux_mobile",
    "nanoflux_export": ROOT / "export" / "nanoflux_export",
    "nanoflux_benchmarks": ROOT / "benchmarks" / "nanoflux_benchmarks",
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel and the sdist, built offline by the backend itself."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-t", "sdist"]
    done = subprocess.run(
        [*command, "-d", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(next(built.glob("*.whl")))


def test_the_top_level_names_are_the_three_packages(wheel: zipfile.ZipFile) -> None:
    tops = {name.partition("/")[0] for name in wheel.namelist()}
    assert tops == {*PACKAGES, f"nanoflux_mobile-{__version__}.dist-info"}


@pytest.mark.parametrize("package", PACKAGES)
def test_every_file_of_a_package_is_inside(wheel: zipfile.ZipFile, package: str) -> None:
    inside = {name for name in wheel.namelist() if name.startswith(f"{package}/")}
    on_disk = {
        f"{package}/{path.relative_to(PACKAGES[package]).as_posix()}"
        for path in PACKAGES[package].rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert inside == on_disk


def test_recipes_and_the_tiny_teacher_are_inside(wheel: zipfile.ZipFile) -> None:
    names = wheel.namelist()
    recipes = [n for n in names if n.startswith("nanoflux_export/recipes/")]
    assets = [n for n in names if n.startswith("nanoflux_mobile/assets/")]
    assert any(name.endswith(".toml") for name in recipes)
    assert any(name.endswith(".safetensors") for name in assets)
    assert any(name.endswith(".json") for name in assets)


def test_the_wheel_says_what_it_is(wheel: zipfile.ZipFile) -> None:
    info = f"nanoflux_mobile-{__version__}.dist-info"
    metadata = wheel.read(f"{info}/METADATA").decode()
    entry_points = wheel.read(f"{info}/entry_points.txt").decode()
    assert "nanoflux = nanoflux_mobile.cli:main" in entry_points
    assert "License-Expression: Apache-2.0" in metadata
    assert f"{info}/licenses/LICENSE" in wheel.namelist()
    for extra in ("coreml", "litert", "onnx", "tensorflow", "teacher", "train", "dev"):
        assert f"Provides-Extra: {extra}" in metadata


def test_the_sdist_can_run_its_own_tests(built: Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    wanted = {"pyproject.toml", "constraints.txt", "Makefile", "LICENSE", "README.md"}
    assert wanted | {"tests/contracts/test_wheel.py"} <= names
    assert not any(name.startswith((".venv", "build", "dist")) for name in names)
