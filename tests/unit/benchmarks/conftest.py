"""Reports as a phone would write them, from a seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nanoflux_mobile.report import (
    App,
    BundleRef,
    Conditions,
    Device,
    Image,
    LatencyReport,
    Launch,
    Load,
    Memory,
    Numerics,
    Placement,
    Program,
    Runtime,
    Workload,
)

GRAPHS = ("text_encoder", "denoiser", "decoder")
STEPS = 10
COOL = Conditions("nominal", "nominal", 0.9, False, False, False, True)
PHONE = Device("ios", "iPhone17,2", "A18 Pro", 8 << 30, "19.1", "23B85", False)


def image(rng: np.random.Generator, scale: float, began_ms: float, warmup: bool) -> Image:
    noise = scale * rng.normal(1.0, 0.015, STEPS + 2)
    text, *steps, decoder = noise * np.array([15.0, *[210.0] * STEPS, 160.0])
    total = text + sum(steps) + decoder + 5.0
    return Image(warmup, began_ms, began_ms, total, text, tuple(steps), decoder, "nominal")


def launch(rng: np.random.Generator, scale: float, minute: int, images: int) -> Launch:
    own = scale * rng.normal(1.0, 0.02)
    drawn = [image(rng, own, 1000 + 3000.0 * i, i < 2) for i in range(images + 2)]
    load = tuple(Load(name, "first" if minute == 0 else "relaunch", 400.0) for name in GRAPHS)
    start = f"2026-01-31T{10 + minute // 60:02}:{minute % 60:02}:00Z"
    return Launch(start, COOL, load, tuple(drawn), Memory(1_500_000_000, "phys_footprint"))


@pytest.fixture
def make_report() -> Callable[..., LatencyReport]:
    """A report of a device in good order; `scale` slows it down, any field may be replaced."""

    def make(
        seed: int = 0,
        scale: float = 1.0,
        launches: int = 6,
        images: int = 10,
        minutes: tuple[int, ...] = (),
        **fields: Any,
    ) -> LatencyReport:
        rng = np.random.default_rng(seed)
        starts = minutes or tuple(2 * i for i in range(launches))
        report = LatencyReport(
            schema="latency-report/1",
            run_id=f"run-{seed}",
            session=None,
            created_by=Program("test", "1"),
            app=App("io.nanoflux.mobile", "1.0", "release"),
            bundle=BundleRef("a" * 64, "nanoflux-small", "coreml"),
            device=PHONE,
            runtime=Runtime("coreml", "19.1", "cpu_and_ne", None),
            workload=Workload(512, STEPS, 0),
            launches=tuple(launch(rng, scale, minute, images) for minute in starts),
            placement=tuple(Placement(name, 1.0, 0.0, 0.0, None, None, True) for name in GRAPHS),
            numerics=Numerics(45.0, 0),
            errors=(),
            complete=True,
        )
        return dataclasses.replace(report, **fields)

    return make


@pytest.fixture
def with_launch() -> Callable[..., LatencyReport]:
    """A report with some fields of one launch (its `conditions` too) replaced."""

    def change(report: LatencyReport, index: int = 0, **fields: Any) -> LatencyReport:
        launches = list(report.launches)
        names = {field.name for field in dataclasses.fields(Conditions)}
        state = {name: fields.pop(name) for name in list(fields) if name in names}
        conditions = dataclasses.replace(launches[index].conditions, **state)
        launches[index] = dataclasses.replace(
            launches[index], **{"conditions": conditions, **fields}
        )
        return dataclasses.replace(report, launches=tuple(launches))

    return change
