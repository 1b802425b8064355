"""The device files: all load, every figure has a source, and a wrong file is refused in words."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from nanoflux_mobile.device import SHIPPED, Device, Fact, Unit, load_device, shipped_devices
from nanoflux_mobile.errors import InputError

PUBLISHED = (
    "galaxy-s23-ultra",
    "galaxy-s24",
    "galaxy-s25",
    "galaxy-s25-ultra",
    "ipad-pro-m1",
    "ipad-pro-m2",
    "iphone-12-mini",
    "iphone-14-pro-max",
    "iphone-15-pro",
    "iphone-16-pro-max",
    "snapdragon-8-elite-gen-5-qrd",
)
SMALL = """
schema = "device/1"
id = "thing"
name = "Thing"
platform = "android"
models = ["T1"]
soc = "T"

[npu]
name = "NPU"
kind = "hexagon"

[npu.fp16_ops_per_s]
value = 10
source = "a test"
"""


def facts(part: object, where: str = "") -> Iterator[tuple[str, Fact]]:
    for field in dataclasses.fields(part):  # type: ignore[arg-type]
        value = getattr(part, field.name)
        if isinstance(value, Fact):
            yield where + field.name, value
        elif isinstance(value, Unit):
            yield from facts(value, f"{where}{field.name}.")


@pytest.fixture(scope="module")
def devices() -> dict[str, Device]:
    return {name: load_device(name) for name in shipped_devices()}


def test_every_shipped_device_loads_and_those_of_the_study_are_there(
    devices: dict[str, Device],
) -> None:
    assert set(PUBLISHED) <= set(devices)
    assert all(device.id == name for name, device in devices.items())
    assert all(device.models for device in devices.values())


def test_no_model_identifier_belongs_to_two_devices(devices: dict[str, Device]) -> None:
    models = [model for device in devices.values() for model in device.models]
    assert len(models) == len(set(models))


def test_units_are_plausible(devices: dict[str, Device]) -> None:
    """A figure typed in another unit would be off by a thousand."""
    ranges = {
        "ram_bytes": (2e9, 32e9),
        "app_bytes": (1e9, 32e9),
        "memory_bytes_per_s": (20e9, 200e9),
        "storage_bytes_per_s": (0.5e9, 10e9),
        "fp16_ops_per_s": (1e12, 40e12),
        "fp32_ops_per_s": (0.5e12, 10e12),
        "int8_ops_per_s": (5e12, 80e12),
        "cache_bytes": (1e6, 100e6),
        "dispatch_s": (1e-6, 2e-3),
    }
    for device in devices.values():
        for where, fact in facts(device):
            low, high = ranges[where.rpartition(".")[2]]
            assert low <= fact.value <= high, f"{device.id} {where}"
            assert len(fact.source) > 8, f"{device.id} {where}"


def test_what_nobody_states_is_absent_rather_than_guessed(devices: dict[str, Device]) -> None:
    unknown = devices["pixel-9-pro"]
    assert unknown.npu is not None
    assert unknown.npu.fp16_ops_per_s is None
    assert devices["galaxy-s25-ultra"].app_bytes is None


def test_the_shortest_file_loads_and_leaves_the_rest_unknown(tmp_path: Path) -> None:
    path = tmp_path / "thing.toml"
    path.write_text(SMALL)
    device = load_device(str(path))
    assert device.npu == Unit("NPU", "hexagon", Fact(10.0, "a test"))
    assert device.gpu is None
    assert device.ram_bytes is None


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("value = 10", "value = -10", "npu.fp16_ops_per_s: value is -10"),
        ("value = 10", "value = inf", "value is inf"),
        ("value = 10", "value = nan", "value is nan"),
        ("value = 10", 'value = "10"', "npu.fp16_ops_per_s.value must be float"),
        ("value = 10", "value = true", "must be float"),
        ('source = "a test"', "", "npu.fp16_ops_per_s lacks source"),
        ('source = "a test"', 'source = " "', "source is empty"),
        ('kind = "hexagon"', 'kind = "tpu"', "npu.kind is 'tpu'; known: neural_engine"),
        ('platform = "android"', 'platform = "windows"', "known: ios, android"),
        ('soc = "T"', 'soc = "T"\nspeed = 3', "has no field 'speed'"),
        ('models = ["T1"]', "", "lacks models"),
        ('id = "thing"', 'id = "other"', "name the file other.toml"),
        ("device/1", "device/2", "known: device/1"),
        ("[npu]", "[npu", "is not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_with_its_field(
    tmp_path: Path, old: str, new: str, told: str
) -> None:
    path = tmp_path / "thing.toml"
    assert old in SMALL
    path.write_text(SMALL.replace(old, new))
    with pytest.raises(InputError, match=re.escape(told)):
        load_device(str(path))


def test_an_unknown_device_lists_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"unknown device 'nokia'; known: .*iphone-16-pro-max"):
        load_device("nokia")
    with pytest.raises(InputError, match="cannot be read"):
        load_device("nowhere/nokia.toml")


def test_device_files_hold_no_other_files() -> None:
    assert {path.name.rpartition(".")[2] for path in SHIPPED.iterdir()} == {"toml"}
