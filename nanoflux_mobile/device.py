"""What is known of a phone, each figure with where it comes from; what is not known is absent."""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Literal

from nanoflux_mobile import shipped_toml
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.strict_json import from_plain

SHIPPED = resources.files("nanoflux_mobile") / "devices"
Kind = Literal["neural_engine", "hexagon", "gpu", "other"]


@dataclass(frozen=True)
class Fact:
    """A figure in the unit its field names, and who says so."""

    value: float
    source: str

    def __post_init__(self) -> None:
        """A figure is finite and above zero, and somebody said it."""
        if not (math.isfinite(self.value) and self.value > 0):
            raise ValueError(f"value is {self.value}; accepted: a number above 0")
        if not self.source.strip():
            raise ValueError("source is empty; say where the value comes from")


@dataclass(frozen=True)
class Unit:
    """A processor that runs graphs.

    Rates are operations per second, two for a multiply-accumulate. `cache_bytes` is the memory on
    the chip that holds its activations; `dispatch_s` the least time that one run of a graph takes.
    """

    name: str
    kind: Kind
    fp16_ops_per_s: Fact | None = None
    fp32_ops_per_s: Fact | None = None
    int8_ops_per_s: Fact | None = None
    cache_bytes: Fact | None = None
    dispatch_s: Fact | None = None


@dataclass(frozen=True)
class Device:
    """One phone or tablet. `models` are the maker's identifiers, as latency reports name them.

    `app_bytes` is what the system lets one app use; bandwidths are nominal, in bytes per second.
    """

    schema: Literal["device/1"]
    id: str
    name: str
    platform: Literal["ios", "android"]
    models: tuple[str, ...]
    soc: str
    ram_bytes: Fact | None = None
    app_bytes: Fact | None = None
    memory_bytes_per_s: Fact | None = None
    storage_bytes_per_s: Fact | None = None
    npu: Unit | None = None
    gpu: Unit | None = None


def shipped_devices() -> tuple[str, ...]:
    """Names of the devices that come with the package."""
    return shipped_toml.shipped(SHIPPED)


def load_device(name: str) -> Device:
    """A shipped device by name, or any .toml file by path.

    Raises:
        InputError: an unknown name, no TOML, an unknown, missing or wrong field, or a file named
            otherwise than the device in it.
    """
    data, where = shipped_toml.load_toml(SHIPPED, "device", name)
    device = from_plain(Device, data, where)
    if device.id != Path(name).name.removesuffix(".toml"):
        raise InputError(f"{where} says id = {device.id!r}; name the file {device.id}.toml")
    return device


def device_of(model: str) -> Device | None:
    """The shipped device that a maker's identifier names; None where none does."""
    every = (load_device(name) for name in shipped_devices())
    return next((device for device in every if model in device.models), None)
