"""Operations, multiply-accumulates and bytes: what every graph asks of a device, by its file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby

from nanoflux_export.console import size
from nanoflux_mobile.cost import BlockCost, Cost
from nanoflux_mobile.markup import Markup, block, element, head, join, scroller, section

_COLUMNS = ("Bundle", "Function", "Operations", "MACs", "Weights read", "Values moved", "Crossings")


def work_table(costs: Mapping[str, Cost]) -> Markup:
    """The section with one block per graph; empty without costs, which go by the bundles' names."""
    if not costs:
        return Markup("")
    lead = (
        "What one run of each function is made of, counted in the saved files: operations other "
        "than those that only give a value another shape, multiply-accumulates, and the bytes that "
        "are read and written. A crossing is a pass between the accelerator and another processor, "
        "over all graphs of a bundle."
    )
    names = list(dict.fromkeys(one.component for cost in costs.values() for one in cost.blocks))
    blocks = [
        block(name, len(_COLUMNS), [row for item in costs.items() for row in _rows(*item, name)])
        for name in names
    ]
    table = element("table", head(_COLUMNS, _COLUMNS[2:]), *blocks, class_="sizes")
    return section("work", "Work", lead, scroller("Work", table))


def _rows(bundle: str, cost: Cost, component: str) -> list[Markup]:
    own = [one for one in cost.blocks if one.component == component]
    functions = groupby(own, key=lambda one: one.function)
    return [_cells(bundle, name, list(blocks), cost.crossings) for name, blocks in functions]


def _cells(bundle: str, function: str, blocks: Sequence[BlockCost], crossings: int) -> Markup:
    numbers = (
        f"{sum(one.ops for one in blocks):,}",
        f"{sum(one.macs for one in blocks):,}",
        size(sum(one.weight_bytes for one in blocks)),
        size(sum(one.activation_bytes for one in blocks)),
        f"{crossings}",
    )
    told = [element("td", text, class_="number") for text in numbers]
    return join((element("td", bundle), element("td", function), *told))
