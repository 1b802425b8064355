"""How the files of a bundle do on a GPU: does it take them, and does it compute the same."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from nanoflux_export.graph import STEP_LOW
from nanoflux_export.targets.litert import run
from nanoflux_export.targets.litert.gpu import (
    GpuRefusal,
    GpuRun,
    Tensors,
    required_driver,
    run_on_gpu,
)
from nanoflux_mobile.manifest import ComponentEntry, Manifest
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.spec import Component, ComponentName

UNIT = "gpu"
"""What a manifest calls the processor of components that are for the GPU."""
SLACK_DB = 5.0
"""How far below a component's own floor the GPU may be: the CPU's rounding and the GPU's add up."""
HALF_FLOOR_DB = 35.0
"""Least agreement of half precision with float32. Files that suit it reach 49 dB and more, those
that it computes wrongly 12 to 25 dB."""

_Run = partial[GpuRun]


@dataclass(frozen=True)
class GpuFigure:
    """How one function of a file did on the GPU.

    on_cpu: the delegate's words on what it does not take; empty when every op runs on the GPU.
    fp32_db, half_db: PSNR of the GPU's outputs against XNNPACK's on the same file and inputs, in
        float32 and in half precision; None where it did not run.
    seconds: of the slower run, compiling its shaders included.
    """

    component: ComponentName
    function: str
    path: str
    on_cpu: tuple[str, ...]
    fp32_db: float | None
    half_db: float | None
    fp32_floor_db: float
    half_floor_db: float
    seconds: float
    device: str

    @property
    def fully_accelerated(self) -> bool:
        """Whether every op runs on the GPU."""
        return not self.on_cpu

    @property
    def holds(self) -> bool:
        """Whether it ran, whole or in part, and both figures reach their floors."""
        if self.fp32_db is None or self.half_db is None:
            return False
        return self.fp32_db >= self.fp32_floor_db and self.half_db >= self.half_floor_db


def check(
    bundle: Path,
    manifest: Manifest,
    probes: Mapping[ComponentName, Sequence[Tensors]],
    timeout: float = 600.0,
    on_part: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[GpuFigure, ...]:
    """How every function of every file of a bundle that is for the GPU does there.

    `probes` are inputs of each component, of the first step first (`golden.probes`). Later files of
    a graph take what the CPU made of the earlier ones. Where the delegate does not take some ops,
    the figures are those of a run that leaves them to the CPU. `on_part` hears before each function
    how many are done, of how many.

    Raises:
        InputError: no driver, or one that does not answer.
    """
    required_driver()
    wanted = [
        (entry, function)
        for entry in manifest.components
        if entry.compute_unit == UNIT
        for function in entry.functions
    ]
    found: list[GpuFigure] = []
    for done, (entry, function) in enumerate(wanted):
        on_part(done, len(wanted))
        found += _figures(bundle, entry, function, probes[entry.name], timeout)
    return tuple(found)


def _figures(
    bundle: Path, entry: ComponentEntry, function: str, probes: Sequence[Tensors], timeout: float
) -> Iterator[GpuFigure]:
    known = dict(probes[0 if function == STEP_LOW else -1])
    for chunk in entry.chunks:
        if function in chunk.functions:
            face, path = chunk.functions[function], bundle / chunk.path
            inputs = {spec.name: known[spec.name] for spec in face.inputs}
            part = Component(entry.name, face.inputs, face.outputs)
            expected = run.load(path, part, function)(inputs)
            ask = partial(run_on_gpu, path, inputs, function=function, timeout=timeout)
            yield _figure(entry, function, chunk.path, ask, expected)
            known |= expected


def _figure(
    entry: ComponentEntry, function: str, path: str, ask: _Run, expected: Tensors
) -> GpuFigure:
    words: tuple[str, ...] = ()
    runs: list[GpuRun] = []
    try:
        for half in (False, True):
            runs.append(_run(ask, half))
            words = words or runs[-1].on_cpu
    except GpuRefusal as refusal:
        words = refusal.words
    fp32, half_db = (*(worst_db(ran.outputs, expected) for ran in runs), None, None)[:2]
    floor = entry.floors.graph - SLACK_DB
    return GpuFigure(
        entry.name,
        function,
        path,
        words,
        fp32,
        half_db,
        floor,
        min(floor, HALF_FLOOR_DB),
        max((ran.seconds for ran in runs), default=0.0),
        runs[0].device if runs else "",
    )


def _run(ask: _Run, half: bool) -> GpuRun:
    try:
        return ask(half=half)
    except GpuRefusal as refusal:
        if not refusal.partly:
            raise
        return ask(half=half, rest_on_cpu=True)


def worst_db(outputs: Tensors, expected: Tensors) -> float:
    """The least PSNR of any output."""
    return min(psnr_db(outputs[name], value) for name, value in expected.items())
