"""ONNX: models for onnxruntime and the NPUs of Windows machines, made, run and checked anywhere.

A component is a folder `<component>.onnx`: one model for each function, `main.onnx` where there is
one only, and beside them `weights.bin`, which all of them read. A model and its weight file must
never part, so the folder is what is copied, moved and hashed; inside it the paths are what every
ONNX tool expects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Attention, Component, ComponentName, DType, Kind, Scheme

if TYPE_CHECKING:
    import numpy as np

    from nanoflux_export.compression.plan import Storage
    from nanoflux_export.graph import Finding, MobileGraph, Precision, Runner, Summary
    from nanoflux_mobile.cost import Cost

NAME = "onnx"
SUFFIX = ".onnx"
PROFILES: Mapping[str, str] = {"npu": "npu"}
ATTENTION: Attention = "batched"
HALF_CONSTANTS = False
PRECISIONS: tuple[Precision, ...] = ("fp32",)
MAX_BYTES = 2 << 30
"""Tools that pull the weights into the model itself end where protobuf does."""
WIRES: DType = "float32"

_TOOLS = ("onnx", "onnxruntime", "torch")


def nearest(scheme: Scheme, profile: str, component: ComponentName) -> tuple[Scheme, str]:
    """How a wish is stored, and why otherwise; see `Target.nearest`."""
    kind: Kind = "fp16" if scheme.kind == "fp16" else "int"
    stored = Scheme(kind, 16 if kind == "fp16" else 8, rank=scheme.rank)
    met = scheme in (stored, Scheme("bits", 8))
    return stored, "" if met else "ONNX files are written with fp16 and int8 weights only"


def choices(profile: str, component: ComponentName) -> tuple[str, ...]:
    """What a budget chooses from."""
    return ("int8", "fp16")


def resident_bits(scheme: Scheme, profile: str) -> float:
    """Weights are made float32 as the model is loaded."""
    return 32


def write(
    graph: MobileGraph,
    storage: Storage,
    out: Path,
    on_segment: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Write the graph with its weights stored as told to `out`; see `link.write`."""
    from nanoflux_export.targets.onnx import link

    link.write(graph, storage, out, on_segment)


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


def lint(path: Path, component: str, profile: str = "") -> tuple[Finding, ...]:
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
