"""A graph's segments written down in the order they run."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from nanoflux_export.graph import Function, Segment
from nanoflux_mobile.spec import TensorSpec


@dataclass(frozen=True)
class Lazy:
    """A float32 module that is made when asked, and how many weights it will have."""

    build: Callable[[], nn.Module]
    parameters: int = 0


@dataclass
class Tape:
    """The segments so far, and the shape of every value they make."""

    segments: list[Segment] = field(default_factory=list)
    wires: dict[str, tuple[int, ...]] = field(default_factory=dict)

    def put(
        self,
        weights: str,
        lazy: Lazy,
        takes: tuple[str, ...],
        kind: str = "",
        /,
        **makes: tuple[int, ...],
    ) -> None:
        """Write down one segment: `takes` values made before and `makes` new ones, with shapes.

        Its kind is by default its name without the number, as in doubles.3.
        """
        form = kind or re.sub(r"\.\d+$", "", weights)
        self.segments.append(
            Segment(
                form, weights, lambda: lazy.build().eval(), takes, tuple(makes), lazy.parameters
            )
        )
        self.wires |= makes

    def function(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> Function:
        """What was written, between these inputs and outputs."""
        outer = {spec.name for spec in outputs}
        wires = {name: shape for name, shape in self.wires.items() if name not in outer}
        return Function(inputs, outputs, tuple(self.segments), wires)
