"""LiteRT: .tflite files for phone GPUs, made, run and checked on any Linux machine."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Component, Scheme

if TYPE_CHECKING:
    from nanoflux_export.graph import Finding, MobileGraph, Precision, Runner, Summary
    from nanoflux_mobile.cost import Cost

NAME = "litert"
SUFFIX = ".tflite"
COMPUTE_UNIT = "gpu"
SCHEMES = ("fp16", "int")
HALF_CONSTANTS = False
PRECISIONS: tuple[Precision, ...] = ("fp32",)

_TOOLS = ("ai-edge-litert", "ai-edge-quantizer", "litert-converter", "litert-torch", "torch")


def convert(graph: MobileGraph, out: Path) -> None:
    """Write the graph in float32 to `out`; see `convert.convert`."""
    from nanoflux_export.targets.litert import convert as converting

    converting.convert(graph, out)


def compress(source: Path, scheme: Scheme, out: Path) -> None:
    """Write `source` with its weights stored as `scheme` to `out`; see `quantise.compress`."""
    from nanoflux_export.targets.litert import quantise

    quantise.compress(source, scheme, out)


def load(path: Path, component: Component, *, precision: Precision = "fp32") -> Runner:
    """The saved file at `path`, ready to run on this machine's CPU; see `run.load`."""
    from nanoflux_export.targets.litert import run

    if precision not in PRECISIONS:
        raise InputError(f"LiteRT runs here in {', '.join(PRECISIONS)} only, not in {precision}")

    return run.load(path, component)


def lint(path: Path, component: str) -> tuple[Finding, ...]:
    """What would leave the phone's GPU or slow it down; see `lint.lint`."""
    from nanoflux_export.targets.litert import lint as linting

    return linting.lint(path, component)


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
