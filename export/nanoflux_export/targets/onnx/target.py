"""ONNX: models for onnxruntime and the NPUs of Windows machines, made, run and checked anywhere.

A component is a folder `<component>.onnx`: one model for each function, `main.onnx` where there is
one only, and beside them `weights.bin`, which all of them read. A model and its weight file must
never part, so the folder is what is copied, moved and hashed; inside it the paths are what every
ONNX tool expects.
"""

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

NAME = "onnx"
SUFFIX = ".onnx"
COMPUTE_UNIT = "npu"
SCHEMES = ("fp16", "int")
HALF_CONSTANTS = False
PRECISIONS: tuple[Precision, ...] = ("fp32",)
MAX_BYTES = 2 << 30
"""Tools that pull the weights into the model itself end where protobuf does."""
WIRES: DType = "float32"

_TOOLS = ("onnx", "onnxruntime", "torch")


def write(
    graph: MobileGraph,
    scheme: Scheme,
    out: Path,
    on_segment: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Write the graph with its weights stored as `scheme` to `out`; see `link.write`."""
    from nanoflux_export.targets.onnx import link

    link.write(graph, scheme, out, on_segment)


def stored(path: Path) -> Callable[[str], np.ndarray]:
    """A reader of the weights of a saved file, dense and float32; see `model_file.stored`."""
    from nanoflux_export.targets.onnx import model_file

    return model_file.stored(path)


def load(
    path: Path, component: Component, *, function: str = "main", precision: Precision = "fp32"
) -> Runner:
    """A function of the saved folder, ready to run on this machine's CPU; see `run.load`."""
    from nanoflux_export.targets.onnx import run

    if precision not in PRECISIONS:
        raise InputError(f"ONNX runs here in {', '.join(PRECISIONS)} only, not in {precision}")
    return run.load(path, component, function=function)


def lint(path: Path, component: str) -> tuple[Finding, ...]:
    """What would leave the NPU or be changed by it; see `lint.lint`."""
    from nanoflux_export.targets.onnx import lint as linting

    return linting.lint(path, component)


def cost(path: Path, component: str) -> Cost:
    """What every block of a saved folder computes, reads and writes; see `cost.cost`."""
    from nanoflux_export.targets.onnx import cost as costing

    return costing.cost(path, component)


def summarize(path: Path) -> Summary:
    """What is inside a saved folder; see `summary.summarize`."""
    from nanoflux_export.targets.onnx import summary

    return summary.summarize(path)


def tools() -> dict[str, str]:
    """Versions of the packages that made the file."""
    return {name: version(name) for name in _TOOLS}
