"""The profile of a Qualcomm AI Hub job: the table `job.download_profile()` gives, as JSON.

Times are microseconds. The samples are `execution_summary.all_inference_times`, in their order and
with nothing left out; `estimated_inference_time` is one figure made of them, close to the fastest,
and is never read. `execution_detail` says of every layer where it ran and, on some runtimes, how
long. First and later load of the app are `first_load_time` and `warm_load_time`.

The keys were checked against quic/ai-hub-models and against programs that read them.
"""

from __future__ import annotations

from collections.abc import Iterator

from nanoflux_benchmarks.importers._fields import Field, fields
from nanoflux_benchmarks.importers._foreign import (
    UNKNOWN,
    UNKNOWN_CONDITIONS,
    component_of,
    foreign_report,
    image,
)
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.report import (
    LatencyReport,
    Launch,
    Load,
    LoadState,
    Memory,
    Placement,
    Runtime,
)
from nanoflux_mobile.spec import ComponentName

NAME = "profile JSON of Qualcomm AI Hub"

_LOADS: tuple[tuple[str, LoadState], ...] = (
    ("first_load_time", "first"),
    ("warm_load_time", "relaunch"),
)
_UNITS = ("NPU", "GPU", "CPU")


def recognises(head: str) -> bool:
    """Whether a text is a JSON table with a profile's summary."""
    return head.lstrip()[:1] == "{" and '"execution_summary"' in head


def read(text: str, where: str) -> LatencyReport:
    """A report of one graph, one launch: every inference in its order.

    Raises:
        InputError: a field is missing or wrong, there are no samples, or neither the file's name
            nor anything else says which graph was profiled.
    """
    profile = fields(text, where)
    summary = profile["execution_summary"]
    times = summary.get("all_inference_times")
    if times is None or not times.rows():
        raise InputError(
            f"{where}.execution_summary lacks all_inference_times, and an estimate is no sample; "
            "profile again with a newer qai_hub"
        )
    component = component_of([where], where)
    images = tuple(image(component, us.number() / 1000, us.where) for us in times.rows())
    loads = tuple(_loads(summary, component))
    return foreign_report(
        "ai_hub",
        text,
        [Launch(None, UNKNOWN_CONDITIONS, loads, images, _memory(summary))],
        Runtime(UNKNOWN, UNKNOWN, UNKNOWN, None),
        placement=_placement(profile, component),
    )


def _loads(summary: Field, component: ComponentName) -> Iterator[Load]:
    for name, state in _LOADS:
        if us := summary.get(name):
            try:
                yield Load(component, state, us.number() / 1000)
            except ValueError as error:
                raise InputError(f"{us.where}: {error}; profile again") from error


def _memory(summary: Field) -> Memory | None:
    """The upper end of what inference took at its peak; older profiles hold one figure."""
    peak = summary.get("inference_memory_peak_range")
    method = "inference_memory_peak_range"
    if peak:
        if len(ends := peak.rows()) != 2:
            raise InputError(f"{peak.where} has {len(ends)} entries; accepted: lowest and highest")
        peak = ends[1]
    else:
        method = "estimated_inference_peak_memory"
        peak = summary.get(method)
    if peak is None or not peak.number():
        return None
    try:
        return Memory(int(peak.number()), method)
    except ValueError as error:
        raise InputError(f"{peak.where}: {error}; profile again") from error


def _placement(profile: Field, component: ComponentName) -> tuple[Placement, ...]:
    """Where the layers ran: counted, and weighed by time where the profile has it."""
    listed = profile.get("execution_detail")
    layers = listed.rows() if listed and listed.value else ()
    if not layers:
        return ()
    units = [layer["compute_unit"].text().upper() for layer in layers]
    costs = [us.number() if (us := layer.get("execution_time")) else None for layer in layers]
    total = sum(cost for cost in costs if cost is not None)
    known = total > 0 and None not in costs and set(units) <= set(_UNITS)
    shares = [
        sum(cost or 0.0 for cost, own in zip(costs, units, strict=True) if own == unit) / total
        if known
        else None
        for unit in _UNITS
    ]
    off = sum(unit not in ("NPU", "GPU") for unit in units)
    npu, gpu, cpu = shares
    return (Placement(component, npu, gpu, cpu, len(units) - off, len(units), off == 0),)
