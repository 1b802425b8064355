"""A graph as saved files: cut into chunks, each written once and found again by any later run."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nanoflux_export.chunking import cut, stored_bytes
from nanoflux_export.graph import MobileGraph, Target
from nanoflux_export.student import Student
from nanoflux_export.work import WORK, Journal, once
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Recipe, Scheme, parse_scheme

_COPIES = 2
"""A chunk lies in the work folder and in the bundle."""
_TOOLS_BYTES, _BYTES_PER_PARAMETER = 900_000_000, 17
"""Of a process with its converters, and per weight of a segment: in float32 as read, in mobile
form, and what a converter makes of it. Measured on segments of 28 to 106 million weights."""
_MEMINFO = Path("/proc/meminfo")


@dataclass(frozen=True)
class SavedChunk:
    """A chunk of a graph and the package that holds it, in the work folder."""

    graph: MobileGraph
    path: Path


def save_graph(
    student: Student,
    graph: MobileGraph,
    target: Target,
    recipe: Recipe,
    work: Path,
    journal: Journal,
) -> tuple[SavedChunk, ...]:
    """Every chunk of a graph, those that an earlier run finished taken from there."""
    scheme = scheme_of(recipe, target, graph)
    chunks = cut(graph, scheme, target.MAX_BYTES, target.WIRES)
    return tuple(
        _save_chunk(student, chunk, name, target, scheme, work, journal)
        for name, chunk in zip(chunk_names(graph, len(chunks)), chunks, strict=True)
    )


def scheme_of(recipe: Recipe, target: Target, graph: MobileGraph) -> Scheme:
    """How a recipe stores a graph for a target."""
    return parse_scheme(recipe.targets[target.NAME].components[graph.name].scheme)


def chunk_names(graph: MobileGraph, count: int) -> list[str]:
    """denoiser, or denoiser-1-of-3 and so on."""
    return (
        [graph.name] if count == 1 else [f"{graph.name}-{i + 1}-of-{count}" for i in range(count)]
    )


def _save_chunk(
    student: Student,
    chunk: MobileGraph,
    name: str,
    target: Target,
    scheme: Scheme,
    work: Path,
    journal: Journal,
) -> SavedChunk:
    package = f"{name}{target.SUFFIX}"
    said = f"{target.NAME}: write {name} as {scheme}"

    def make(folder: Path) -> None:
        target.write(chunk, scheme, folder / package, journal.part)

    inputs = {"student": student.key, "tools": target.tools(), "functions": _form(chunk)}
    return SavedChunk(chunk, once(work, said, inputs, make, journal) / package)


def _form(chunk: MobileGraph) -> dict[str, list[str]]:
    """What of the graph lies in this chunk: a new cut makes new files."""
    return {name: [s.weights for s in f.segments] for name, f in chunk.functions.items()}


def check_disk(
    graphs: Sequence[MobileGraph], targets: Sequence[Target], recipe: Recipe, out: Path
) -> None:
    """Refuse, before any work, an export that the disk cannot hold; what is made already counts."""
    made = sum(file.stat().st_size for file in (out / WORK).rglob("*") if file.is_file())
    needed = _COPIES * sum(_stored(graphs, targets, recipe)) - made
    place = next(folder for folder in (out, *out.resolve().parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise InputError(
            f"{out} needs about {needed / 1e9:.1f} GB, but its disk has {free / 1e9:.1f} GB free; "
            "free some space, or name a folder on another disk with --out"
        )


def check_memory(graphs: Sequence[MobileGraph]) -> None:
    """Refuse, before any work, an export whose largest segment this machine cannot hold now."""
    largest = max(s.parameters for g in graphs for f in g.functions.values() for s in f.segments)
    needed, free = _TOOLS_BYTES + _BYTES_PER_PARAMETER * largest, _free_memory()
    if free is not None and needed > free:
        raise InputError(
            f"the export needs about {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are "
            "free; close other programs, or run it on a larger machine"
        )


def _free_memory() -> int | None:
    """Bytes that a new process could use; None where the system does not tell."""
    with suppress(OSError, StopIteration, ValueError):
        lines = _MEMINFO.read_text().splitlines()
        told = next(line for line in lines if line.startswith("MemAvailable:"))
        return 1024 * int(told.split()[1])
    return None


def _stored(
    graphs: Sequence[MobileGraph], targets: Sequence[Target], recipe: Recipe
) -> Iterator[int]:
    for target in targets:
        for graph in graphs:
            scheme = scheme_of(recipe, target, graph)
            sizes = {
                segment.weights: stored_bytes(segment, scheme)
                for function in graph.functions.values()
                for segment in function.segments
            }
            yield sum(sizes.values())
