"""What flows from a family to a target: a torch module in mobile form, and its static shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from torch import nn

from nanoflux_export.compression.plan import Storage
from nanoflux_mobile.cost import Cost
from nanoflux_mobile.drawing import Runner
from nanoflux_mobile.manifest import Finding
from nanoflux_mobile.spec import Attention, Component, ComponentName, DType, Scheme, TensorSpec

__all__ = [
    "MAIN",
    "STEP_FULL",
    "STEP_LOW",
    "Finding",
    "Function",
    "MobileGraph",
    "Precision",
    "Runner",
    "Segment",
    "Summary",
    "Target",
    "TensorLine",
    "one_segment",
    "rewritten",
]


Precision = Literal["fp32", "fp16"]
MAIN = "main"
"""The only function of a graph that has one."""
STEP_LOW, STEP_FULL = "step_low", "step_full"
"""The functions of a denoiser that runs its first steps at low resolution."""


@dataclass(frozen=True)
class Segment:
    """A stretch of a graph with weights of its own.

    `kind` names the stretch's form: segments of one kind differ in the values of their weights
    alone, so a target converts one of them and stamps the others. `weights` names the values:
    segments of two functions that give the same name share them. `build` makes the float32 module,
    which takes `inputs` in order and returns `outputs` in order (a bare tensor when there is one);
    nothing keeps it, so a graph of any size passes through the memory of one segment. `parameters`
    counts the values of its weights.
    """

    kind: str
    weights: str
    build: Callable[[], nn.Module]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    parameters: int = 0


@dataclass(frozen=True)
class Function:
    """One entry point: what the host passes and gets, and the segments between, in order.

    `wires` holds the shape of every value that one segment makes and another takes.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    segments: tuple[Segment, ...]
    wires: Mapping[str, tuple[int, ...]]

    def shape(self, value: str) -> tuple[int, ...]:
        """The shape of an input, an output or a wire."""
        edges = {spec.name: spec.shape for spec in (*self.inputs, *self.outputs)}
        return edges[value] if value in edges else self.wires[value]


@dataclass(frozen=True)
class MobileGraph:
    """A component, or a chunk of one, as functions over one set of weights.

    `forms` is where a target keeps what it converted of each kind: all chunks of a graph share it.
    """

    name: ComponentName
    functions: Mapping[str, Function]
    forms: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)


def one_segment(component: Component, module: nn.Module) -> MobileGraph:
    """A graph that is one module: it takes the component's inputs and returns its outputs."""
    names = [tuple(spec.name for spec in side) for side in (component.inputs, component.outputs)]
    count = sum(tensor.numel() for tensor in module.parameters())
    segment = Segment(component.name, component.name, lambda: module, names[0], names[1], count)
    function = Function(component.inputs, component.outputs, (segment,), {})
    return MobileGraph(component.name, {MAIN: function})


Change = Callable[[Segment, nn.Module], nn.Module]


def rewritten(
    graph: MobileGraph, change: Change, form: Callable[[Segment], str] = lambda segment: ""
) -> MobileGraph:
    """The graph with every segment's module passed through `change` as it is built.

    `form` names what the change makes of a segment's shape, empty where it only changes values:
    segments of one kind whose forms differ become different kinds.
    """

    def segment(old: Segment) -> Segment:
        tail = form(old)
        return replace(
            old,
            kind=f"{old.kind}~{tail}" if tail else old.kind,
            build=lambda: change(old, old.build()),
        )

    functions = {
        name: replace(function, segments=tuple(map(segment, function.segments)))
        for name, function in graph.functions.items()
    }
    return MobileGraph(graph.name, functions)


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
    PROFILES: Mapping[str, str]
    """Processors that files can be shaped for, the usual one first, and what apps call them."""

    ATTENTION: Attention
    """The way to write attention that suits it best; benchmarks/attention_study has the reasons."""

    HALF_CONSTANTS: bool
    """Whether norms, biases and tables are stored in half precision like the weights."""
    PRECISIONS: tuple[Precision, ...]
    """Arithmetic it can run a file in here: float32, and half as phones compute."""

    MAX_BYTES: int
    """Most weight bytes one file should hold; larger graphs are cut into chunks."""
    WIRES: DType
    """Type of the values that pass from chunk to chunk."""

    def write(
        self,
        graph: MobileGraph,
        storage: Storage,
        out: Path,
        on_segment: Callable[[int, int], None] = lambda done, of: None,
    ) -> None:
        """Write the graph with its weights stored as told to `out`, whole or not at all.

        `on_segment` hears how many segments are done, and of how many.
        """

    def nearest(self, scheme: Scheme, profile: str, component: ComponentName) -> tuple[Scheme, str]:
        """How it stores what a recipe asks for, and, where that is something else, why.

        The answer is a scheme that `write` takes, never worse in quality than the wish where the
        runtime has one; the reason is empty when the wish is honoured.
        """

    def choices(self, profile: str, component: ComponentName) -> tuple[str, ...]:
        """Schemes that a budget chooses from where the recipe names none."""

    def resident_bits(self, scheme: Scheme, profile: str) -> float:
        """Bits that a weight of a scheme takes in memory while the graph runs."""

    def stored(self, path: Path) -> Callable[[str], np.ndarray]:
        """A reader of the weights of a saved file, dense and float32, by `Segment.weights`, a
        slash, and the parameter's name; KeyError for one that the file does not have.
        """

    def load(
        self,
        path: Path,
        component: Component,
        *,
        function: str = MAIN,
        precision: Precision = "fp32",
    ) -> Runner:
        """A function of a saved file, ready to run on this machine in one of PRECISIONS."""

    def lint(self, path: Path, component: str, profile: str = "") -> tuple[Finding, ...]:
        """What a processor would refuse, leave or do slowly; `profile` is one of PROFILES, empty
        for the first.
        """

    def cost(self, path: Path, component: str) -> Cost:
        """What every block of a saved file computes, reads and writes."""

    def summarize(self, path: Path) -> Summary:
        """What is inside a saved file."""

    def tools(self) -> dict[str, str]:
        """Versions of the packages that made the file."""
