"""LiteRT: .tflite files for phone GPUs, made, run and checked on any Linux machine."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Attention, Component, ComponentName, DType, Scheme

if TYPE_CHECKING:
    import numpy as np

    from nanoflux_export.compression.plan import Storage
    from nanoflux_export.graph import Finding, MobileGraph, Precision, Runner, Summary
    from nanoflux_mobile.cost import Cost

NAME = "litert"
SUFFIX = ".tflite"
PROFILES: Mapping[str, str] = {"gpu": "gpu", "cpu": "cpu"}
ATTENTION: Attention = "batched"
HALF_CONSTANTS = False
PRECISIONS: tuple[Precision, ...] = ("fp32",)
MAX_BYTES = 1_000_000_000
WIRES: DType = "float32"

_TOOLS = ("ai-edge-litert", "ai-edge-quantizer", "litert-converter", "litert-torch", "torch")


def nearest(scheme: Scheme, profile: str, component: ComponentName) -> tuple[Scheme, str]:
    """How a wish is stored, and why otherwise; see `schemes.nearest`."""
    from nanoflux_export.targets.litert import schemes

    return schemes.nearest(scheme, profile, component)


def choices(profile: str, component: ComponentName) -> tuple[str, ...]:
    """What a budget chooses from; see `schemes.choices`."""
    from nanoflux_export.targets.litert import schemes

    return schemes.choices(profile, component)


def resident_bits(scheme: Scheme, profile: str) -> float:
    """As stored, but processors without half precision unpack to float32."""
    return 32.0 if profile == "cpu" and scheme.kind == "fp16" else scheme.bits_per_weight


def write(
    graph: MobileGraph,
    storage: Storage,
    out: Path,
    on_segment: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Write the graph with its weights stored as told to `out`; see `write.write`."""
    from nanoflux_export.targets.litert import write as writing

    writing.write(graph, storage, out, on_segment)


def load(
    path: Path, component: Component, *, function: str = "main", precision: Precision = "fp32"
) -> Runner:
    """The saved file at `path`, ready to run on this machine's CPU; see `run.load`."""
    from nanoflux_export.targets.litert import run

    if precision not in PRECISIONS:
        raise InputError(f"LiteRT runs here in {', '.join(PRECISIONS)} only, not in {precision}")

    return run.load(path, component, function)


def stored(path: Path) -> Callable[[str], np.ndarray]:
    """A reader of the weights of a saved file; see `stored.stored`."""
    from nanoflux_export.targets.litert import stored as reading

    return reading.stored(path)


def lint(path: Path, component: str, profile: str = "") -> tuple[Finding, ...]:
    """What a phone's processor would refuse or do slowly; see `lint.lint`."""
    from nanoflux_export.targets.litert import lint as linting

    return linting.lint(path, component, profile)


def cost(path: Path, component: str) -> Cost:
    """What every block of a saved file computes, reads and writes; see `cost.cost`."""
    from nanoflux_export.targets.litert import cost as costing

    return costing.cost(path, component)


def summarize(path: Path) -> Summary:
    """What is inside a saved file; see `summary.summarize`."""
    from nanoflux_export.targets.litert import summary

    return summary.summarize(path)


def tools() -> dict[str, str]:
    """Versions of the packages that made the file."""
    return {name: version(name) for name in _TOOLS}
