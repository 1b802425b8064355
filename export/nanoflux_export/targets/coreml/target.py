"""Core ML: .mlpackage files for the Neural Engine, made, run and checked without a Mac."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Attention, Component, ComponentName, DType, Scheme

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from nanoflux_export.compression.plan import Storage
    from nanoflux_export.graph import Finding, MobileGraph, Precision, Runner, Summary
    from nanoflux_mobile.cost import Cost

NAME = "coreml"
SUFFIX = ".mlpackage"
PROFILES: Mapping[str, str] = {"ane": "cpuAndNeuralEngine"}
ATTENTION: Attention = "batched"
HALF_CONSTANTS = True
PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16")
MAX_BYTES = 1_000_000_000
"""More than this in one file has been refused on iPhones (Anemll issue 28)."""
WIRES: DType = "float16"

_TOOLS = ("coremltools", "torch")


def nearest(scheme: Scheme, profile: str, component: ComponentName) -> tuple[Scheme, str]:
    """How a wish is stored, and why otherwise; see `Target.nearest`."""
    from nanoflux_export.targets.coreml import stored_schemes

    return stored_schemes.nearest(scheme)


def choices(profile: str, component: ComponentName) -> tuple[str, ...]:
    """What a budget chooses from: palettes of every width, as exact as they get."""
    from nanoflux_export.targets.coreml import stored_schemes

    return stored_schemes.CHOICES


def resident_bits(scheme: Scheme, profile: str) -> float:
    """Weights are mapped as they are stored, and unpacked as they are used."""
    return scheme.bits_per_weight


def write(
    graph: MobileGraph,
    storage: Storage,
    out: Path,
    on_segment: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Write the graph with its weights stored as told to `out`; see `link.write`."""
    from nanoflux_export.targets.coreml import link

    link.write(graph, storage, out, on_segment)


def stored(path: Path) -> Callable[[str], NDArray[np.float32]]:
    """A reader of the package's weights by name; see `Target.stored`."""
    from nanoflux_export.targets.coreml.package import open_package
    from nanoflux_export.targets.coreml.program import read_function
    from nanoflux_export.targets.coreml.protos import mangled

    package = open_package(path)
    functions = (read_function(package, name) for name in package.model.mlProgram.functions)
    literals = {key: item for function in functions for key, item in function.literals.items()}
    return lambda name: literals[mangled(name)].read().astype("float32")


def load(
    path: Path, component: Component, *, function: str = "main", precision: Precision = "fp32"
) -> Runner:
    """A function of the package at `path`, ready to run here.

    "fp32" computes in float32 on the stored weights: what then differs from PyTorch is a wrong
    graph or a wrong weight, never a rounding that each phone does in its own way. "fp16" rounds
    every result that the program declares half precision, which foretells a phone.

    Raises:
        InputError: no readable package there, or its inputs and outputs are not the component's.
    """
    from nanoflux_export.targets.coreml import executor

    run = executor.load(path, precision=precision, function=function)
    for specs, declared in ((component.inputs, run.inputs), (component.outputs, run.outputs)):
        wanted = {spec.name: spec.shape for spec in specs}
        found = {name: kind.shape for name, kind in declared.items()}
        if wanted != found:
            raise InputError(
                f"{path} has {found}, but {component.name} has {wanted}; export it again"
            )

    def runner(inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        return run(**inputs)

    return runner


def lint(path: Path, component: str, profile: str = "") -> tuple[Finding, ...]:
    """What would leave the Neural Engine or slow it down; see `lint.lint`."""
    from nanoflux_export.targets.coreml import lint as linting

    return linting.lint(path, component)


def cost(path: Path, component: str) -> Cost:
    """What every block of a saved file computes, reads and writes; see `cost.cost`."""
    from nanoflux_export.targets.coreml import cost as costing

    return costing.cost(path, component)


def summarize(path: Path) -> Summary:
    """What is inside a saved file; see `summary.summarize`."""
    from nanoflux_export.targets.coreml import summary

    return summary.summarize(path)


def tools() -> dict[str, str]:
    """Versions of the packages that made the file."""
    return {name: version(name) for name in _TOOLS}
