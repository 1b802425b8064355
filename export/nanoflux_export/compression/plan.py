"""How every layer of a graph is stored: one scheme for all, or one for each."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanoflux_mobile.spec import Scheme

Samples = Callable[[Any, Any], Iterator[tuple[np.ndarray, ...]]]
"""What enters a segment of a function on the calibration prompts: (function, segment) -> inputs."""


@dataclass(frozen=True)
class Plan:
    """A scheme for each layer, and what schemes that look at activations need to know.

    Layers are weights by name: `Segment.weights`, a slash, and the parameter's name.

    default: the scheme of layers that `layers` does not name.
    profile: the processor the files are shaped for, one of the target's; empty for its first.
    importance: by layer, the mean square of each of its input channels, float64 (C,).
    ranges: by layer, the least and the greatest value that enters it.
    samples: what enters a segment, for targets that calibrate on it.
    """

    default: Scheme
    layers: Mapping[str, Scheme] = field(default_factory=dict)
    profile: str = ""
    importance: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    ranges: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    samples: Samples | None = None

    def of(self, layer: str) -> Scheme:
        """The scheme of a layer."""
        return self.layers.get(layer, self.default)

    def __str__(self) -> str:
        """How layers are stored, in a word."""
        return "mixed" if self.layers else str(self.default)

    def most_bits(self, weights: str) -> float:
        """The most bits that a weight of a segment takes, by its `Segment.weights`."""
        own = (s for name, s in self.layers.items() if name.startswith(f"{weights}/"))
        return max(s.bits_per_weight for s in (*own, self.default))

    @property
    def key(self) -> dict[str, object]:
        """What of the plan decides the bytes of a file, in plain values."""
        return {
            "default": str(self.default),
            "layers": {name: str(scheme) for name, scheme in sorted(self.layers.items())},
            "profile": self.profile,
            "importance": {
                name: _digest(self.importance[name]) for name in sorted(self.importance)
            },
            "ranges": {name: list(self.ranges[name]) for name in sorted(self.ranges)},
        }


def _digest(values: NDArray[np.float64]) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()


Storage = Scheme | Plan
"""A scheme stands for the plan that stores every layer alike."""


def plan_of(storage: Storage) -> Plan:
    """The plan that a scheme stands for."""
    return storage if isinstance(storage, Plan) else Plan(storage)
