"""Saving a graph: every chunk is written once, found again, and refused where no disk holds it."""

from __future__ import annotations

import shutil
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from nanoflux_export import saving
from nanoflux_export.chunking import stored_bytes
from nanoflux_export.compression.plan import Plan
from nanoflux_export.graph import MAIN, STEP_FULL, STEP_LOW, Function, MobileGraph, Segment
from nanoflux_export.planning import Planned
from nanoflux_export.saving import check_disk, check_memory, chunk_names, save_graph
from nanoflux_export.student import Student
from nanoflux_export.work import Journal
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import TensorSpec, parse_scheme

AXES, SHAPE = ("batch", "channels", "one", "tokens"), (1, 2, 1, 3)
LATENTS, VELOCITY = (TensorSpec(name, AXES, SHAPE, "float32") for name in ("latents", "velocity"))
STUDENT = Student(None, None, (), "source", "key")


def chain(count: int = 4, parameters: int = 100, name: str = "block") -> MobileGraph:
    """Segments in a row, each with so many weights."""
    values = ["latents", *(f"x_{i}" for i in range(1, count)), "velocity"]
    segments = tuple(
        Segment(name, f"{name}.{i}", nn.Identity, (values[i],), (values[i + 1],), parameters)
        for i in range(count)
    )
    wires = dict.fromkeys(values[1:-1], SHAPE)
    return MobileGraph("denoiser", {MAIN: Function((LATENTS,), (VELOCITY,), segments, wires)})


@dataclass
class Writer:
    """A target that writes down the names of the segments it was given."""

    NAME: str = "paper"
    SUFFIX: str = ".txt"
    MAX_BYTES: int = 420
    WIRES: str = "float16"
    version: str = "1"
    fails_at: int | None = None
    wrote: list[str] = field(default_factory=list)

    def write(
        self, graph: MobileGraph, plan: Plan, out: Path, on_segment: Callable[[int, int], None]
    ) -> None:
        if len(self.wrote) == self.fails_at:
            raise RuntimeError("the pen broke")
        self.wrote.append(out.name)
        segments = graph.functions[MAIN].segments
        for i in range(len(segments)):
            on_segment(i + 1, len(segments))
        out.write_text(f"{plan.default}: {' '.join(s.weights for s in segments)}", "utf-8")

    def tools(self) -> dict[str, str]:
        return {"paper": self.version}


def planned(graph: MobileGraph | None = None, scheme: str = "fp16") -> Planned:
    return Planned(graph or chain(), Plan(parse_scheme(scheme)))


def saved(work: Path, target: Any, journal: Journal | None = None, **changed: Any) -> list[Path]:
    wanted = {"student": STUDENT, "planned": planned()} | changed
    chunks = save_graph(target=target, work=work, journal=journal or Journal(), **wanted)
    return [chunk.path for chunk in chunks]


def test_a_graph_of_one_file_has_its_own_name_and_chunks_are_counted() -> None:
    assert chunk_names(chain(), 1) == ["denoiser"]
    assert chunk_names(chain(), 3) == ["denoiser-1-of-3", "denoiser-2-of-3", "denoiser-3-of-3"]


def test_every_chunk_is_a_file_that_says_what_is_in_it(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    journal = Journal(part=lambda done, of: told.append((done, of)))
    chunks = save_graph(STUDENT, planned(), Writer(), tmp_path, journal)  # type: ignore[arg-type]
    assert [chunk.path.name for chunk in chunks] == [f"denoiser-{i}-of-2.txt" for i in (1, 2)]
    assert [chunk.path.read_text("utf-8") for chunk in chunks] == [
        "fp16: block.0 block.1",
        "fp16: block.2 block.3",
    ]
    assert [s.name for s in chunks[0].graph.functions[MAIN].outputs] == ["x_2"]
    assert [s.name for s in chunks[1].graph.functions[MAIN].inputs] == ["x_2"]
    assert told == [(1, 2), (2, 2)] * 2
    names = [step.name for step in journal.steps]
    assert names == [f"paper: write denoiser-{i}-of-2 as fp16" for i in (1, 2)]
    assert saved(tmp_path, Writer(MAX_BYTES=10_000))[0].name == "denoiser.txt"


def test_a_second_run_writes_nothing(tmp_path: Path) -> None:
    target, journal = Writer(), Journal()
    first = saved(tmp_path, target)
    assert saved(tmp_path, target, journal) == first
    assert target.wrote == [path.name for path in first]
    assert [step.reused for step in journal.steps] == [True, True]


@pytest.mark.parametrize(
    "changed",
    [
        {"student": replace(STUDENT, key="other")},
        {"planned": planned(chain(name="other"))},
        {"planned": planned(scheme="palette8")},
        {"target": Writer(version="2")},
        {"target": Writer(MAX_BYTES=210)},
    ],
    ids=["weights", "cut", "scheme", "tools", "size of a file"],
)
def test_what_changes_a_file_makes_new_ones(tmp_path: Path, changed: dict[str, Any]) -> None:
    first = saved(tmp_path, Writer())
    target = changed.pop("target", Writer())
    second = saved(tmp_path, target, **changed)
    assert not set(first) & set(second)
    assert target.wrote == [path.name for path in second]
    assert all(path.exists() for path in first)


def test_a_run_that_failed_is_resumed_at_the_chunk_it_failed_in(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="the pen broke"):
        saved(tmp_path, Writer(MAX_BYTES=210, fails_at=2))
    target, journal = Writer(MAX_BYTES=210), Journal()
    saved(tmp_path, target, journal)
    assert [step.reused for step in journal.steps] == [True, True, False, False]
    assert target.wrote == ["denoiser-3-of-4.txt", "denoiser-4-of-4.txt"]


# The disk

Usage = namedtuple("Usage", "total used free")  # what shutil.disk_usage gives


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[Path]]:
    """Lets every disk have so many bytes free; gives the folders that were asked about."""

    def of(free: int) -> list[Path]:
        asked: list[Path] = []
        monkeypatch.setattr(
            saving.shutil, "disk_usage", lambda path: asked.append(path) or Usage(free, 0, free)
        )
        return asked

    return of


def shared() -> MobileGraph:
    """Two functions over one set of weights, and one more block in the first."""
    whole, part = chain(4).functions[MAIN], chain(3).functions[MAIN]
    return MobileGraph("denoiser", {STEP_LOW: whole, STEP_FULL: part})


@pytest.mark.parametrize("graph", [chain(4), shared()], ids=["one function", "two"])
@pytest.mark.parametrize("scheme", ["fp16", "palette4", "palette8"])
def test_an_export_needs_room_for_its_work_folder_and_its_bundle(
    tmp_path: Path, disk, graph: MobileGraph, scheme: str
) -> None:
    segment = chain(1).functions[MAIN].segments[0]
    needed = 2 * 4 * stored_bytes(segment, parse_scheme(scheme))
    plans = [planned(graph, scheme)]
    disk(needed)
    check_disk(plans, tmp_path)
    disk(needed - 1)
    with pytest.raises(InputError, match=r"needs about 0\.0 GB.*another disk with --out"):
        check_disk(plans, tmp_path)


def test_the_needs_of_all_graphs_and_targets_are_added_up(tmp_path: Path, disk) -> None:
    graph = chain(1, parameters=10**9)
    disk(int(4 * 2 * 2.05e9))
    with pytest.raises(InputError, match=r"needs about 16\.5 GB, but its disk has 16\.4 GB free"):
        check_disk([planned(graph)] * 4, tmp_path)


def test_the_disk_is_that_of_the_nearest_folder_there_is(tmp_path: Path, disk) -> None:
    asked = disk(10**9)
    check_disk([planned()], tmp_path / "new" / "deeper")
    assert asked == [tmp_path]
    assert shutil.disk_usage(tmp_path).free == 10**9  # the name above is the module's own
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kilobytes", "held"), [(1_100_000, True), (1_000_000, False)])
def test_too_little_memory_is_said_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kilobytes: int, held: bool
) -> None:
    told = tmp_path / "meminfo"
    told.write_text(f"MemTotal: 1 kB\nMemAvailable: {kilobytes} kB\n", "utf-8")
    monkeypatch.setattr(saving, "_MEMINFO", told)
    graph = chain(parameters=10_000_000)  # 0.9 GB and 17 bytes a weight: 1.07 GB
    if held:
        return check_memory([graph])
    with pytest.raises(InputError, match=r"needs about 1\.1 GB of memory and 1\.0 GB are free"):
        check_memory([graph])
    return None


def test_a_system_that_does_not_tell_its_memory_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "_MEMINFO", tmp_path / "nothing")
    check_memory([chain(parameters=10**15)])
