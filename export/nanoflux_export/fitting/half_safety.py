"""Where half precision would lose a graph's values, and what to do about it.

Networks trained in bfloat16 may hold values of any size; phones compute in half precision, where
they become infinite beyond 65504, and a picture becomes black.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from nanoflux_export.fitting.activations import wire_ranges
from nanoflux_export.fitting.calibration import Calibration
from nanoflux_export.graph import MobileGraph
from nanoflux_export.rewrites.scale_folding import HEADROOM, LIMIT, Folds, Range, find_folds

FOLD = "scale folding brings it down by a power of two, with equal results in float32"
KEEP = (
    "nothing linear follows that could take a factor back, so keep this component in float32 or "
    "clamp the value, as is usual for T5's residual stream"
)


@dataclass(frozen=True)
class Hazard:
    """An operation whose result comes near the limit of half precision, or passes it.

    module: `Segment.weights`, a slash and the path of the innermost module, or the name of an input
        of the graph.
    op: what torch calls the operation; empty for an input.
    most: its greatest magnitude over all prompts and steps.
    foldable: whether scale folding brings it down.
    """

    module: str
    op: str
    most: float
    foldable: bool

    @property
    def overflows(self) -> bool:
        """Whether it passes the limit, rather than being near it."""
        return self.most > LIMIT

    def describe(self) -> str:
        """One sentence for people: the value, the limit, what to do."""
        where = f"{self.op} in {self.module}" if self.op else f"the input {self.module}"
        share = self.most / LIMIT
        far = f"{share:.3g} times" if self.overflows else f"{share:.0%} of"
        what = FOLD if self.foldable else KEEP
        return f"{where} reaches {self.most:.4g}, {far} the {LIMIT:.0f} of half precision; {what}"


def hazards(
    graph: MobileGraph,
    calibration: Calibration,
    headroom: float = HEADROOM,
    *,
    keep: bool = True,
    on_entry: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[Hazard, ...]:
    """What of a graph half precision loses or nearly loses, the greatest first.

    Values are near from `LIMIT / headroom` on. An operation that was already given such a value, or
    an infinite one, is not named again. Other arguments as in `activations.layer_stats`.
    """
    ranges = wire_ranges(graph, calibration, keep=keep, on_entry=on_entry)
    return found_in(ranges, find_folds(graph, ranges, headroom), headroom)


def found_in(
    ranges: Mapping[str, Range], folds: Folds, headroom: float = HEADROOM
) -> tuple[Hazard, ...]:
    """The hazards among measured ranges, given what folding can do about them."""
    found = (
        Hazard(*_place(name), one.most, name in folds.covered)
        for name, one in ranges.items()
        if one.most > LIMIT / headroom and _begins(name, one)
    )
    return tuple(sorted(found, key=lambda hazard: -hazard.most))


def _begins(name: str, one: Range) -> bool:
    """Whether the value arises here: in an operation or an input, from smaller ones in range."""
    return (":" in name or "/" not in name) and one.entering < min(one.most, LIMIT)


def _place(name: str) -> tuple[str, str]:
    module, _, op = name.partition(":")
    return module, op
