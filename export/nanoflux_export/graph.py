"""What flows from a family to a target: a torch module in mobile form, and its static shapes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torch import nn

from nanoflux_mobile.cost import Cost
from nanoflux_mobile.drawing import Runner
from nanoflux_mobile.manifest import Finding
from nanoflux_mobile.spec import Component, Scheme

__all__ = ["Finding", "MobileGraph", "Precision", "Runner", "Summary", "Target", "TensorLine"]


Precision = Literal["fp32", "fp16"]


@dataclass(frozen=True)
class MobileGraph:
    """A component and the float32 module that computes it.

    The module takes `component.inputs` in order and returns `component.outputs` in order (a bare
    tensor when there is one).
    """

    component: Component
    module: nn.Module


@dataclass(frozen=True)
class TensorLine:
    """An input or output as a saved file declares it; None is a size known only at run time."""

    name: str
    dtype: str
    shape: tuple[int | None, ...]


@dataclass(frozen=True)
class Summary:
    """What is inside a saved file: op counts, and how many weights are stored in which way."""

    format: str
    bytes: int
    functions: tuple[str, ...]
    inputs: tuple[TensorLine, ...]
    outputs: tuple[TensorLine, ...]
    ops: Mapping[str, int]
    storage: Mapping[str, int]


class Target(Protocol):
    """A runtime: the module `targets/<name>/target.py` has these functions and constants."""

    NAME: str
    SUFFIX: str
    COMPUTE_UNIT: str
    SCHEMES: tuple[str, ...]
    """Kinds of `Scheme` it can store."""

    HALF_CONSTANTS: bool
    """Whether norms, biases and tables are stored in half precision like the weights."""
    PRECISIONS: tuple[Precision, ...]
    """Arithmetic it can run a file in here: float32, and half as phones compute."""

    def convert(self, graph: MobileGraph, out: Path) -> None:
        """Write the graph, uncompressed, to `out`."""

    def compress(self, source: Path, scheme: Scheme, out: Path) -> None:
        """Write `source` with its weights stored as `scheme` to `out`."""

    def load(self, path: Path, component: Component, *, precision: Precision = "fp32") -> Runner:
        """A saved file, ready to run on this machine in one of PRECISIONS."""

    def lint(self, path: Path, component: str) -> tuple[Finding, ...]:
        """What would leave the accelerator or slow it down."""

    def cost(self, path: Path, component: str) -> Cost:
        """What every block of a saved file computes, reads and writes."""

    def summarize(self, path: Path) -> Summary:
        """What is inside a saved file."""

    def tools(self) -> dict[str, str]:
        """Versions of the packages that made the file."""
