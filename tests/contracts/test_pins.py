"""Every dependency has one exact version in constraints.txt, one that pyproject.toml takes."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
PINS = [line.split("==") for line in LINES if not line.startswith("#")]


def test_every_line_is_one_exact_pin_in_order() -> None:
    assert all(len(pin) == 2 and re.fullmatch(r"\d[\w.]*", pin[1]) for pin in PINS)
    names = [name for name, _ in PINS]
    assert names == sorted({canonicalize_name(name) for name in names})


def test_every_requirement_has_a_pin_it_accepts() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    pins = dict(PINS)
    for text in (*project["dependencies"], *(line for extra in extras for line in extra)):
        wanted = Requirement(text)
        pin = pins.get(canonicalize_name(wanted.name))
        assert pin is not None, f"{wanted.name} has no pin"
        assert wanted.specifier.contains(pin), f"{text} does not take the pin {pin}"


def test_the_pins_that_hold_the_converters_together() -> None:
    pins = dict(PINS)
    assert pins["torch"] == "2.13.0"
    assert pins["coremltools"] == "9.0"
    assert tuple(map(int, pins["numpy"].split("."))) < (2, 4)


def test_no_accelerator_package_is_pinned() -> None:
    assert not [name for name, _ in PINS if name.startswith(("nvidia", "triton", "cuda"))]
