"""Reports made of other tools' figures, with nothing claimed that the tool did not say.

The contract has no unknown app, build or platform. Where a tool names none, the report takes the
value that a gate holds to more (a phone, a debug build), calls the rest unknown, and says so in
`errors`, so that it can be looked at and compared by eye but never passes.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable
from pathlib import PurePosixPath
from typing import get_args

from nanoflux_mobile import __version__
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.report import (
    SCHEMA,
    App,
    BundleRef,
    Conditions,
    Device,
    Image,
    LatencyReport,
    Launch,
    Placement,
    Program,
    Runtime,
    Workload,
)
from nanoflux_mobile.spec import ComponentName

UNKNOWN = "unknown"
UNKNOWN_DEVICE = Device("android", UNKNOWN, None, None, UNKNOWN, None, None)
UNKNOWN_CONDITIONS = Conditions(None, None, None, None, None, None, None)
COMPONENTS: tuple[ComponentName, ...] = get_args(ComponentName)


def foreign_report(
    tool: str,
    text: str,
    launches: Iterable[Launch],
    runtime: Runtime,
    placement: tuple[Placement, ...] = (),
    device: Device = UNKNOWN_DEVICE,
    errors: tuple[str, ...] = (),
) -> LatencyReport:
    """The report of what `tool` wrote into `text`; its run_id is the tool and a digest of that."""
    unnamed = ["app build", "bundle"] if device.model != UNKNOWN else ["device", "build", "bundle"]
    doubt = f"{tool} names no {', '.join(unnamed)}: measure with the app for evidence"
    return LatencyReport(
        schema=SCHEMA,
        run_id=f"{tool}-{hashlib.sha256(text.encode('utf-8', 'replace')).hexdigest()[:16]}",
        session=None,
        created_by=Program("nanoflux-mobile", __version__),
        app=App(tool, UNKNOWN, "debug"),
        bundle=BundleRef(None, None, None),
        device=device,
        runtime=runtime,
        workload=Workload(None, None, None),
        launches=tuple(launches),
        placement=placement,
        numerics=None,
        errors=(*errors, doubt),
        complete=True,
    )


def component_of(names: Iterable[str], where: str) -> ComponentName:
    """The graph that the first telling name stands for; names may be paths of any system.

    Raises:
        InputError: none of them names exactly one graph of a student.
    """
    for name in names:
        base = PurePosixPath(name.replace("\\", "/")).name
        if len(found := [component for component in COMPONENTS if component in base]) == 1:
            return found[0]
    raise InputError(
        f"{where} does not say which graph it measured; "
        f"name the graph or the file after one of {', '.join(COMPONENTS)}"
    )


def image(component: ComponentName, ms: float, where: str, warmup: bool = False) -> Image:
    """One run of one graph: a step where the graph is the denoiser.

    Raises:
        InputError: the time is not finite, negative, or longer than a report may hold.
    """
    if not (math.isfinite(ms) and 0 <= ms <= 1e9):
        raise InputError(f"{where} is {ms:g} ms; accepted: 0 to 1e9 ms; measure again")
    text_encoder = ms if component == "text_encoder" else None
    steps = (ms,) if component == "denoiser" else ()
    decoder = ms if component == "decoder" else None
    return Image(warmup, None, None, None, text_encoder, steps, decoder, None)
