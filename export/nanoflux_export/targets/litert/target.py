"""LiteRT: .tflite files for phone GPUs, made, run and checked on any Linux machine."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Component, DType, Scheme

if TYPE_CHECKING:
    import numpy as np

    from nanoflux_export.graph import Finding, MobileGraph, Precision, Runner, Summary
    from nanoflux_mobile.cost import Cost

NAME = "litert"
SUFFIX = ".tflite"
COMPUTE_UNIT = "gpu"
SCHEMES = ("fp16", "int")
HALF_CONSTANTS = False
PRECISIONS: tuple[Precision, ...] = ("fp32",)
MAX_BYTES = 1_000_000_000
WIRES: DType = "float32"

_TOOLS = ("ai-edge-litert", "ai-edge-quantizer", "litert-converter", "litert-torch", "torch")


def write(
    graph: MobileGraph,
    scheme: Scheme,
    out: Path,
    on_segment: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Write the graph with its weights stored as `scheme` to `out`; see `write.write`."""
    from nanoflux_export.targets.litert import write as writing

    writing.write(graph, scheme, out, on_segment)


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
