"""What a student's graphs do on the calibration prompts, recorded once and kept in the work folder.

Graphs are told apart by their component's name: all targets and recipes plan the same student.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from nanoflux_export.compression.plan import Samples
from nanoflux_export.fitting import calibration as recording
from nanoflux_export.fitting.activations import LayerStats, layer_stats, wire_ranges
from nanoflux_export.fitting.calibration import Calibration
from nanoflux_export.graph import Function, MobileGraph, Segment
from nanoflux_export.rewrites.scale_folding import Range
from nanoflux_export.student import Student
from nanoflux_export.torch_run import torch_runner
from nanoflux_export.work import Journal, once
from nanoflux_mobile.spec import Recipe, TensorSpec, content_digest

_CALIBRATION, _RANGES = "calibration.safetensors", "ranges.json"


@dataclass(frozen=True)
class Activity:
    """Calibration of a student under a recipe, and what follows from it, each made when asked."""

    student: Student
    recipe: Recipe
    work: Path
    journal: Journal
    _made: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What decides all of it."""
        return content_digest([self.student.key, self.recipe.proof])

    @property
    def _keep(self) -> bool:
        """Whether modules may stay in memory."""
        return self.recipe.proof == "image"

    def calibration(self) -> Calibration:
        """What enters every graph."""

        def make(folder: Path) -> None:
            recording.save(recording.record(self.student, self.recipe), folder / _CALIBRATION)

        def load() -> Calibration:
            return recording.load(self._once("draw the calibration prompts", make) / _CALIBRATION)

        return self._first("calibration", load)

    def stats(self, graph: MobileGraph) -> dict[str, LayerStats]:
        """What enters every layer of a graph."""

        def measure() -> dict[str, LayerStats]:
            recorded = self.calibration()
            with self.journal.step(f"what enters the layers of {graph.name}"):
                return layer_stats(graph, recorded, keep=self._keep, on_entry=self.journal.part)

        return self._first(f"stats of {graph.name}", measure)

    def ranges(self, graph: MobileGraph) -> dict[str, Range]:
        """How large the values get that a graph computes."""

        def make(folder: Path) -> None:
            found = wire_ranges(
                graph, self.calibration(), keep=self._keep, on_entry=self.journal.part
            )
            plain = {name: [one.entering, one.most] for name, one in found.items()}
            (folder / _RANGES).write_text(json.dumps(plain), "utf-8")

        def load() -> dict[str, Range]:
            name = f"how large the values of {graph.name} get"
            path = self._once(name, make, kinds=kinds) / _RANGES
            return {name: Range(*both) for name, both in json.loads(path.read_text()).items()}

        # Values are named after operations, which differ from one form of attention to another.
        kinds = sorted({s.kind for f in graph.functions.values() for s in f.segments})
        return self._first(f"ranges of {graph.name} {kinds}", load)

    def _once(self, name: str, make: Callable[[Path], None], **inputs: object) -> Path:
        return once(self.work, name, {"activity": self.key, **inputs}, make, self.journal)

    def _first(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._made:
            self._made[name] = make()
        return self._made[name]


def samples_of(graph: MobileGraph, recorded: Calibration) -> Samples:
    """What enters any segment of a graph, or of a chunk of it, on the calibration prompts."""

    def samples(_: Function, segment: Segment) -> Iterator[tuple[np.ndarray, ...]]:
        for name, function in graph.functions.items():
            before = _before(function, segment)
            if before is not None:
                run = torch_runner(before)
                for inputs in recorded.inputs[graph.name, name]:
                    values = {**inputs, **run(inputs)}
                    yield tuple(values[value] for value in segment.inputs)

    return samples


def _before(function: Function, segment: Segment) -> Function | None:
    """The part of a function that makes what a segment takes; None where it has no such segment."""
    places = [
        i
        for i, one in enumerate(function.segments)
        if (one.weights, one.inputs) == (segment.weights, segment.inputs)
    ]
    if not places:
        return None
    given = {spec.name for spec in function.inputs}
    made = [name for name in segment.inputs if name not in given]
    outputs = tuple(
        TensorSpec(name, ("",) * len(function.shape(name)), function.shape(name), "float32")
        for name in made
    )
    return replace(function, segments=function.segments[: places[0]], outputs=outputs)
