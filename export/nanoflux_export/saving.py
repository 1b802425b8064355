"""A graph as saved files: cut into chunks, each written once and found again by any later run."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from nanoflux_export.chunking import cut, stored_bytes
from nanoflux_export.graph import MobileGraph, Target
from nanoflux_export.planning import Planned
from nanoflux_export.student import Student
from nanoflux_export.work import WORK, Journal, once
from nanoflux_mobile.errors import InputError

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
    student: Student, planned: Planned, target: Target, work: Path, journal: Journal
) -> tuple[SavedChunk, ...]:
    """Every chunk of a graph, those that an earlier run finished taken from there."""
    chunks = cut(planned.graph, planned.plan, target.MAX_BYTES, target.WIRES)
    names = chunk_names(planned.graph, len(chunks))
    return tuple(
        _save_chunk(student, chunk, name, target, planned, work, journal)
        for name, chunk in zip(names, chunks, strict=True)
    )


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
    planned: Planned,
    work: Path,
    journal: Journal,
) -> SavedChunk:
    package = f"{name}{target.SUFFIX}"
    said = f"{target.NAME}: write {name} as {planned.plan}"

    def make(folder: Path) -> None:
        target.write(chunk, planned.plan, folder / package, journal.part)

    inputs = {
        "student": student.key,
        "tools": target.tools(),
        "functions": _form(chunk),
        "plan": planned.key,
    }
    return SavedChunk(chunk, once(work, said, inputs, make, journal) / package)


def _form(chunk: MobileGraph) -> dict[str, list[str]]:
    """What of the graph lies in this chunk: a new cut makes new files."""
    return {name: [s.weights for s in f.segments] for name, f in chunk.functions.items()}


def check_disk(plans: Sequence[Planned], out: Path) -> None:
    """Refuse, before any work, an export that the disk cannot hold; what is made already counts."""
    made = sum(file.stat().st_size for file in (out / WORK).rglob("*") if file.is_file())
    needed = _COPIES * sum(map(_stored, plans)) - made
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


def _stored(planned: Planned) -> int:
    sizes = {
        segment.weights: stored_bytes(segment, planned.plan)
        for function in planned.graph.functions.values()
        for segment in function.segments
    }
    return sum(sizes.values())
