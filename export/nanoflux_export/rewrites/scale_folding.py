"""Powers of two moved between the parts of a graph, so that half precision holds what is between.

Half precision ends at 65504, far below bfloat16, which most networks are trained in. Dividing by a
power of two changes no digit of a number, so a graph whose norms square x / s instead of x, or
whose layers make values s times smaller and whose next layers take them s times larger, gives equal
results in float32, and finite ones in half precision.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from nanoflux_export.graph import MobileGraph, Segment, rewritten
from nanoflux_export.rewrites.replacing import with_parts
from nanoflux_mobile.spec import content_digest

LIMIT = 65504.0
"""The greatest number of half precision."""
HEADROOM = 4.0
"""How far from the limit values stay: prompts that were not measured may give larger ones."""


@dataclass(frozen=True)
class Range:
    """The greatest magnitude that enters an operation or a module, and the greatest it gives."""

    entering: float
    most: float


@dataclass(frozen=True)
class LinearPath:
    """Layers of a module with nothing but linear functions between them, or ReLU.

    A module names its own as `linear_paths`. What `makers` give, scaled down, is what `takers` take
    scaled down; with `leading` it is only the first of their input channels, as many as each maker
    gives.
    """

    makers: tuple[str, ...]
    takers: tuple[str, ...]
    leading: bool = False


@dataclass(frozen=True)
class Folds:
    """What to scale, all by powers of two.

    divisors: of norms, by kind of segment and path of the norm's module.
    scales: of linear paths, by the names of their makers and takers: `Segment.weights`, a slash and
        the layer's path; what makers give is divided, what takers take is multiplied.
    covered: names of the ranges that this brings down.
    """

    divisors: Mapping[tuple[str, str], float] = field(default_factory=dict)
    scales: Mapping[tuple[str, LinearPath], float] = field(default_factory=dict)
    covered: frozenset[str] = frozenset()

    @property
    def key(self) -> dict[str, object]:
        """What is done to the graph, in plain values."""
        divisors = {" ".join(where): by for where, by in self.divisors.items()}
        scales = {" ".join((own, *line.makers)): by for (own, line), by in self.scales.items()}
        return {"divisors": dict(sorted(divisors.items())), "scales": dict(sorted(scales.items()))}


def find_folds(
    graph: MobileGraph, ranges: Mapping[str, Range], headroom: float = HEADROOM
) -> Folds:
    """What brings a graph's values to at most `LIMIT / headroom`, where anything does.

    `ranges` are named as `fitting.activations.wire_ranges` does. Only segments with a value beyond
    that are built, one by one. What enters a norm as infinity stays lost.
    """
    most = LIMIT / headroom
    weights = {name.partition("/")[0] for name, one in ranges.items() if one.most > most}
    segments = {
        (segment.kind, segment.weights): segment
        for function in graph.functions.values()
        for segment in function.segments
        if segment.weights in weights
    }
    divisors: dict[tuple[str, str], float] = {}
    scales: dict[tuple[str, LinearPath], float] = {}
    covered: set[str] = set()
    for segment in segments.values():
        own = _Own(segment.weights, ranges)
        for path, part in segment.build().named_modules():
            if hasattr(part, "divisor") and most < own.square(path).most and own.enters(path):
                least = _power_of_two(math.sqrt(own.square(path).most / most))
                divisors[segment.kind, path] = max(least, divisors.get((segment.kind, path), 1.0))
                covered.add(f"{segment.weights}/{path}:square")
            for line in _lines(path, part):
                if most < own.greatest(line):
                    scales[segment.weights, line] = _power_of_two(own.greatest(line) / most)
                    covered.update(own.along(path, line))
    return Folds(divisors, scales, frozenset(covered))


def _power_of_two(least: float) -> float:
    return 2.0 ** math.ceil(math.log2(least))


def _lines(path: str, part: nn.Module) -> Iterator[LinearPath]:
    """A module's linear paths, with paths from the segment's module on."""
    stem = f"{path}." if path else ""
    paths: tuple[LinearPath, ...] = getattr(part, "linear_paths", ())
    for line in paths:
        makers, takers = ([stem + name for name in side] for side in (line.makers, line.takers))
        yield LinearPath(tuple(makers), tuple(takers), line.leading)


@dataclass(frozen=True)
class _Own:
    """The ranges of one segment, by path."""

    weights: str
    ranges: Mapping[str, Range]

    def of(self, path: str) -> Range:
        return self.ranges.get(f"{self.weights}/{path}", Range(0.0, 0.0))

    def square(self, path: str) -> Range:
        return self.of(f"{path}:square")

    def enters(self, path: str) -> bool:
        """Whether half precision holds what enters a module."""
        return self.of(path).entering <= LIMIT

    def greatest(self, line: LinearPath) -> float:
        """Along the path, of values that scale with it; 0 for infinities, which nothing mends."""
        made = max(self.of(path).most for path in line.makers)
        taken = 0.0 if line.leading else max(self.of(path).entering for path in line.takers)
        greatest = max(made, taken)
        return greatest if math.isfinite(greatest) else 0.0

    def along(self, owner: str, line: LinearPath) -> Iterator[str]:
        """Names of the ranges on the path: what makers do, and what the owner makes for takers."""
        ends = {self.of(path).entering for path in line.takers}
        makers = tuple(f"{self.weights}/{path}:" for path in line.makers)
        for name, one in self.ranges.items():
            made_for_takers = name.startswith(f"{self.weights}/{owner}:") and one.most in ends
            if name.startswith(makers) or made_for_takers:
                yield name


def folded(graph: MobileGraph, folds: Folds) -> MobileGraph:
    """The graph with these powers of two moved; in float32 it gives the same numbers.

    Scaled weights leave a segment's kind as it is. Norms with a divisor are other operations, so
    kinds that have one get a new name.
    """

    def divisors(segment: Segment) -> dict[str, float]:
        return {path: by for (kind, path), by in folds.divisors.items() if kind == segment.kind}

    def change(segment: Segment, module: nn.Module) -> nn.Module:
        lines = {line: by for (name, line), by in folds.scales.items() if name == segment.weights}
        if not lines and not divisors(segment):
            return module
        copy = with_parts(module, {})
        for path, by in divisors(segment).items():
            _part(copy, path).divisor = by
        for line, by in lines.items():
            _scale(copy, line, by)
        return copy

    def form(segment: Segment) -> str:
        own = divisors(segment)
        return f"divided-{content_digest(own)[:8]}" if own else ""

    return rewritten(graph, change, form)


@torch.no_grad()
def _scale(module: nn.Module, line: LinearPath, by: float) -> None:
    made = 0
    for path in line.makers:
        maker = _part(module, path)
        made = maker.weight.shape[0]
        maker.weight = _fixed(maker.weight / by)
        if maker.bias is not None:
            maker.bias = _fixed(maker.bias / by)
    for path in line.takers:
        taker = _part(module, path)
        weight = taker.weight.clone()
        weight[:, : made if line.leading else None] *= by
        taker.weight = _fixed(weight)


def _part(module: nn.Module, path: str) -> Any:
    return module.get_submodule(path)


def _fixed(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
