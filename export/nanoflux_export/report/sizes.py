"""Bytes: what each graph takes on disk in every bundle, and what is resident when."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from nanoflux_export.console import size
from nanoflux_export.report.words import bundle_name
from nanoflux_mobile.manifest import Manifest, MemoryStep
from nanoflux_mobile.markup import (
    Markup,
    bar,
    block,
    element,
    head,
    join,
    percent,
    scroller,
    section,
    spaced,
)

WHOLE = "whole bundle"
_COLUMNS = ("Bundle", "Weights", "Size", "Of fp16", "Bytes", "")
_NUMERIC = ("Size", "Of fp16", "Bytes")

Key = tuple[str, str, str, str]
"""What sizes are comparable under: family, source checkpoint, target, component."""


@dataclass(frozen=True)
class Size:
    """One graph, or the whole, of one bundle."""

    key: Key
    bundle: str
    scheme: str
    bytes: int


def bundle_bytes(manifest: Manifest) -> int:
    """All files of a bundle that its manifest lists."""
    return sum(file.bytes for file in manifest.files)


def sizes_of(manifest: Manifest) -> tuple[Size, ...]:
    """Every graph of a bundle, then the whole of it."""
    name, group = bundle_name(manifest), (manifest.family, manifest.source_sha256, manifest.target)
    graphs = tuple(
        Size((*group, entry.name), name, entry.stored, entry.weight_bytes)
        for entry in manifest.components
    )
    schemes = {graph.scheme for graph in graphs}
    scheme = schemes.pop() if len(schemes) == 1 else "mixed"
    return (*graphs, Size((*group, WHOLE), name, scheme, bundle_bytes(manifest)))


def size_table(manifests: Sequence[Manifest]) -> Markup:
    """The section with the table of sizes, one block per graph."""
    lead = (
        "Each graph as it is stored in each bundle. The share is of the fp16 file of the same "
        "graph for the same runtime, where this page has one; the whole bundle counts tokenizer, "
        "step tables and golden run as well."
    )
    sizes = [one for manifest in manifests for one in sizes_of(manifest)]
    names = sorted({one.key[-1] for one in sizes}, key=[one.key[-1] for one in sizes].index)
    dense = {one.key: one.bytes for one in sizes if one.scheme == "fp16"}
    largest = max((one.bytes for one in sizes), default=0) or 1
    blocks = [
        _block(name, [one for one in sizes if one.key[-1] == name], dense, largest)
        for name in sorted(names, key=WHOLE.__eq__)
    ]
    table = element("table", head(_COLUMNS, _NUMERIC), *blocks, class_="sizes")
    return section("sizes", "Sizes", lead, scroller("Sizes", table))


def _block(name: str, sizes: Sequence[Size], dense: Mapping[Key, int], largest: int) -> Markup:
    return block(name, len(_COLUMNS), (_cells(one, dense.get(one.key), largest) for one in sizes))


def _cells(one: Size, dense: int | None, largest: int) -> Markup:
    share = f"{one.bytes / dense:.0%}" if dense else "none here"
    texts = [element("td", one.bundle), element("td", one.scheme)]
    numbers = [
        element("td", text, class_="number") for text in (size(one.bytes), share, f"{one.bytes:,}")
    ]
    return join((*texts, *numbers, element("td", bar(one.bytes / largest), class_="wide")))


def memory_plan(manifests: Sequence[Manifest]) -> Markup:
    """The section with the load order of every bundle and the weights resident at each step."""
    lead = (
        "The order in which an app loads, runs and drops the graphs, and how many bytes of "
        "weights are resident at each step. Planned from file sizes: activations and what a "
        "runtime keeps for itself come on top, and only a phone can tell how much."
    )
    largest = max((step.peak_bytes for m in manifests for step in m.memory_plan), default=0) or 1
    plans = element("div", *(_plan(manifest, largest) for manifest in manifests), class_="plans")
    return section("memory", "Memory plan", lead, plans)


def _plan(manifest: Manifest, largest: int) -> Markup:
    peak = max((step.peak_bytes for step in manifest.memory_plan), default=0)
    note = f"peak {size(peak)}" if manifest.memory_plan else "no plan stated"
    title = element("h3", spaced(bundle_name(manifest), element("small", note)))
    parts = groupby(manifest.memory_plan, key=lambda step: step.component)
    turns = [_turn(component, list(steps), largest) for component, steps in parts]
    label = f"Memory plan of {bundle_name(manifest)}"
    return element("div", title, scroller(label, element("ol", *turns)), class_="plan")


def _turn(component: str, steps: Sequence[MemoryStep], largest: int) -> Markup:
    """Steps in a row that are about one graph."""
    bars = element("ol", *(_memory_step(step, largest) for step in steps))
    return element("li", element("b", component), bars, style=f"flex-grow:{len(steps)}")


def _memory_step(step: MemoryStep, largest: int) -> Markup:
    height = f"height:{percent(step.peak_bytes / largest)}"
    parts = spaced(
        element("span", element("span", style=height), class_="column", aria_hidden="true"),
        element("span", step.action),
        element("span", size(step.peak_bytes), class_="value"),
    )
    return element("li", parts)
