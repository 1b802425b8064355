"""The phone apps' part, played on this machine: one process is one launch and writes one report.

    python -m nanoflux_export.host_app BUNDLE --images 10 --warmup 2 --seed 0 --run-id ID --out FILE

It checks and loads a LiteRT bundle, replays its golden run, then draws. A golden run of single
steps has no picture to replay, so the report leaves its numerics open; `nanoflux verify` proves
such a bundle. Core ML bundles are refused: what runs them here proves their numbers and says
nothing of their speed.

One thread is the default. Several threads wait for each other, so whatever else the machine does
shows in every step; one repeats best, and leaves the same report on machines with more cores.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn, get_args

import numpy as np
import torch

from nanoflux_export import host_machine
from nanoflux_export.bundle import (
    GOLDEN,
    Bundle,
    graphs_of,
    loaded,
    open_bundle,
    step_tables,
    target_named,
)
from nanoflux_export.golden import Request, Tensors, draw_request, load_golden
from nanoflux_export.pictures import SEEDS
from nanoflux_export.verify import golden_request
from nanoflux_mobile import __version__, plugins
from nanoflux_mobile.drawing import Graphs, Runner
from nanoflux_mobile.errors import InputError, NanofluxError
from nanoflux_mobile.manifest import ComponentEntry, read_manifest
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.report import (
    SCHEMA,
    App,
    BundleRef,
    Image,
    LatencyReport,
    Launch,
    Load,
    LoadState,
    Numerics,
    Placement,
    Program,
    Runtime,
    Workload,
    report_json,
)
from nanoflux_mobile.spec import Component, ComponentName
from nanoflux_mobile.storage import write_file

APP = "nanoflux_export.host_app"
TARGET = "litert"
LOAD_STATES: tuple[LoadState, ...] = ("relaunch", "warm")
"""This runtime keeps nothing between processes, so there is no first launch to tell apart."""
LOWEST_DB = -1000.0
"""Stands in a report for the PSNR of a picture that is not finite."""
MOST_IMAGES = 100_000


@dataclass(frozen=True)
class Order:
    """What one launch draws: `warmup` uncounted images, then `images`, all from one seed."""

    bundle: Path
    images: int
    warmup: int
    seed: int
    threads: int
    run_id: str
    session: str | None


@dataclass(frozen=True)
class Clocks:
    """The two clocks of a launch when it began, in seconds: uptime, and the one on the wall."""

    uptime: float
    wall: float

    def since(self) -> tuple[float, float]:
        """Milliseconds since then by either clock."""
        return 1e3 * (time.perf_counter() - self.uptime), 1e3 * (time.time() - self.wall)

    @property
    def started_at(self) -> str:
        """The beginning as RFC 3339."""
        return datetime.fromtimestamp(self.wall, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure one launch and write its report; the exit code is that of the command line."""
    try:
        order, out = _parsed(arguments)
        write_file(out, report_json(measure(order)))
    except NanofluxError as error:
        return _fail(error)
    except ModuleNotFoundError as error:
        if not (fault := plugins.missing_dependency(error)):
            raise
        return _fail(fault)
    return 0


def _fail(error: NanofluxError) -> int:
    print(f"error: {' '.join(str(error).splitlines())}", file=sys.stderr)
    return error.exit_code


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message} (see python -m {APP} --help)")


def _parsed(arguments: Sequence[str] | None) -> tuple[Order, Path]:
    parser = _Parser(prog=f"python -m {APP}", description="Measure a bundle on this machine.")
    parser.add_argument("bundle", type=Path, help="a LiteRT bundle")
    for name, low, high, words in (
        ("images", 1, MOST_IMAGES, "pictures that count"),
        ("warmup", 0, MOST_IMAGES, "pictures drawn before them"),
        ("seed", 0, SEEDS - 1, "seed of their noise"),
    ):
        parser.add_argument(f"--{name}", type=_whole(low, high), required=True, help=words)
    cores = os.cpu_count() or 1
    parser.add_argument("--threads", type=_whole(1, cores), default=1, help="of the runtime")
    parser.add_argument("--run-id", required=True, help="a name for this report")
    parser.add_argument("--session", help="the same for runs whose launches took turns")
    parser.add_argument("--out", type=Path, required=True, help="the report to write")
    given = vars(parser.parse_args(arguments))
    out = given.pop("out")
    return Order(**given), out


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isascii() and text.isdigit() and low <= int(text) <= high):
            raise argparse.ArgumentTypeError(f"{text[:40]!r} is no whole number, {low} to {high}")
        return int(text)

    return parse


def measure(order: Order) -> LatencyReport:
    """One launch, all of it in this process.

    Raises:
        InputError: a bundle that is not for LiteRT or cannot be loaded, or a run id that is no
            plain name.
        CheckFailed: a file of the bundle is not the one its manifest lists.
    """
    clocks = Clocks(time.perf_counter(), time.time())
    bundle = _opened(order.bundle)
    draft = _draft(order, bundle)
    conditions = host_machine.conditions()
    torch.set_num_threads(order.threads)
    graphs, load = _loaded(bundle)
    request, picture = _golden(bundle)
    numerics = None if picture is None else _replayed(graphs, request, picture)
    wanted = dataclasses.replace(request, seed=order.seed)
    images = tuple(
        _image(graphs, wanted, clocks, warmup=i < order.warmup)
        for i in range(order.warmup + order.images)
    )
    launch = Launch(clocks.started_at, conditions, load, images, host_machine.peak_memory())
    return dataclasses.replace(draft, launches=(launch,), numerics=numerics)


def _opened(path: Path) -> Bundle:
    if (target := read_manifest(path).target) != TARGET:
        raise InputError(
            f"{path} is a {target} bundle, which only proves its numbers here; measure its speed "
            f"on a phone, or measure the {TARGET} bundle"
        )
    return open_bundle(path)


def _draft(order: Order, bundle: Bundle) -> LatencyReport:
    """The report without its samples: a bad name is refused before anything is measured."""
    manifest = bundle.manifest
    try:
        return LatencyReport(
            schema=SCHEMA,
            run_id=order.run_id,
            session=order.session,
            created_by=Program("nanoflux-mobile", __version__),
            app=App(APP, __version__, "release"),
            bundle=BundleRef(manifest.digest, manifest.recipe.name, manifest.target),
            device=host_machine.device(),
            runtime=Runtime(TARGET, version("ai-edge-litert"), "cpu", order.threads),
            workload=Workload(manifest.canvas.image_side, bundle.schedule.steps, order.seed),
            launches=(),
            placement=tuple(_placement(bundle, entry) for entry in manifest.components),
            numerics=None,
            errors=(),
            complete=True,
        )
    except ValueError as error:
        raise InputError(str(error)) from error


def _placement(bundle: Bundle, entry: ComponentEntry) -> Placement:
    """All on the CPU. How many ops its fast kernels took the runtime does not tell."""
    target = target_named(TARGET)
    files = [target.summarize(bundle.path / chunk.path) for chunk in entry.chunks]
    ops = sum(sum(file.ops.values()) for file in files)
    return Placement(entry.name, 0.0, 0.0, 1.0, None, ops, None)


def _loaded(bundle: Bundle) -> tuple[Graphs, tuple[Load, ...]]:
    target = target_named(TARGET)
    runners: dict[tuple[ComponentName, str], Runner] = {}
    loads: list[Load] = []
    for entry in bundle.manifest.components:
        for state in LOAD_STATES:
            for function in entry.functions:
                runners.pop((entry.name, function), None)  # two copies at once count as memory
            begun = time.perf_counter()
            for function in entry.functions:
                run = loaded(bundle, target, entry, function, "fp32")
                # The runtime plans and packs weights when it first runs, so ready means answered.
                run(_zeros(entry.component))
                runners[entry.name, function] = run
            loads.append(Load(entry.name, state, _ms_since(begun)))
    return graphs_of(runners, str(bundle.path)), tuple(loads)


def _zeros(component: Component) -> Tensors:
    return {spec.name: np.zeros(spec.shape, spec.dtype) for spec in component.inputs}


def _ms_since(begun: float) -> float:
    return 1e3 * (time.perf_counter() - begun)


def _golden(bundle: Bundle) -> tuple[Request, np.ndarray | None]:
    """The request of the golden run, and the picture that answers it, if the run drew one."""
    golden, tables = load_golden(bundle.path / GOLDEN), step_tables(bundle)
    try:
        request = golden_request(bundle, golden)
    except KeyError as missing:
        raise InputError(f"{bundle.path}: its golden run lacks {missing}") from missing
    return dataclasses.replace(request, step_tables=tables), golden.get("fp32.image")


def _replayed(graphs: Graphs, request: Request, picture: np.ndarray) -> Numerics:
    drawn = draw_request(graphs, request)
    tensors = drawn.text_states, *drawn.latents, drawn.final_latents, drawn.image
    strange = sum(int(np.count_nonzero(~np.isfinite(tensor))) for tensor in tensors)
    return Numerics(max(LOWEST_DB, psnr_db(drawn.image, picture)), strange)


def _image(graphs: Graphs, request: Request, clocks: Clocks, warmup: bool) -> Image:
    times: Mapping[str, list[float]] = {name: [] for name in get_args(ComponentName)}
    watched = {name: _timed(getattr(graphs, name), taken) for name, taken in times.items()}
    low = graphs.low_denoiser and _timed(graphs.low_denoiser, times["denoiser"])
    uptime, wall = clocks.since()
    begun = time.perf_counter()
    draw_request(Graphs(**watched, low_denoiser=low), request).pixels()
    total = _ms_since(begun)
    (text,), (decoder,) = times["text_encoder"], times["decoder"]
    return Image(warmup, uptime, wall, total, text, tuple(times["denoiser"]), decoder, None)


def _timed(runner: Runner, taken: list[float]) -> Runner:
    def run(inputs: Mapping[str, np.ndarray]) -> Tensors:
        begun = time.perf_counter()
        answer = runner(inputs)
        taken.append(_ms_since(begun))
        return answer

    return run


if __name__ == "__main__":
    sys.exit(main())
