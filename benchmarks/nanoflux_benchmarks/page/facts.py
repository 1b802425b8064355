"""What was measured, on what, under which conditions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from nanoflux_benchmarks.page.values import STATES, limit_of, measured, median, quantile, state
from nanoflux_benchmarks.page.words import count, figure, outside, worded
from nanoflux_mobile.markup import Markup, element, join, spaced
from nanoflux_mobile.report import LatencyReport

if TYPE_CHECKING:
    from nanoflux_benchmarks.session import Judgement

_YES = {True: "yes", False: "no", None: "not said"}
_INFINITE = float("inf")


def facts(found: Judgement) -> Markup:
    """The few figures that a reader looks for first."""
    shown = (*_times(found), _amount(found.report), _heat(found.report), _memory(found))
    return element("dl", *(_fact(*fact) for fact in shown), class_="facts")


def _fact(name: str, value: str, note: str) -> Markup:
    told = element("dd", spaced(element("b", value), note))
    return element("div", spaced(element("dt", name), told))


def _times(found: Judgement) -> Iterable[tuple[str, str, str]]:
    if images := measured(found.report, "image"):
        yield "image, median", figure(median(images)), _against(limit_of(found, "image"))
        yield "slow image", figure(quantile(images, 0.9)), "one in ten takes longer"
    if steps := measured(found.report, "step"):
        yield "mean step, median", figure(median(steps)), _against(limit_of(found, "step"))


def _against(limit: float) -> str:
    return "no budget" if limit == _INFINITE else f"budget {figure(limit)}"


def _amount(report: LatencyReport) -> tuple[str, str, str]:
    sizes = {len(launch.measured) for launch in report.launches}
    warm = sum(image.warmup for launch in report.launches for image in launch.images)
    images = f"{min(sizes)} to {max(sizes)}" if len(sizes) > 1 else str(*sizes)
    return "launches x images", f"{len(report.launches)} x {images or 0}", count(warm, "warm-up")


def _heat(report: LatencyReport) -> tuple[str, str, str]:
    seen = {state(launch, image) for launch in report.launches for image in launch.images}
    seen |= {launch.conditions.thermal_after or "unknown" for launch in report.launches}
    known = [name for name in STATES if name in seen and name != "unknown"]
    if not known:
        return "thermal state", "not said", "by the report"
    note = "throughout" if len(seen) == 1 else "at its warmest"
    return "thermal state", known[-1], note


def _memory(found: Judgement) -> tuple[str, str, str]:
    peaks = [launch.memory.peak_bytes for launch in found.report.launches if launch.memory]
    limit = limit_of(found, "memory")
    note = "no budget" if limit == _INFINITE else f"budget {figure(limit, 'bytes')}"
    return "peak memory", figure(max(peaks), "bytes") if peaks else "not said", note


def conditions(found: Judgement) -> Markup:
    """The footer: device, software, workload and bundle of both reports."""
    reports = {"Candidate": found.report, "Baseline": found.baseline}
    origins = [_origin(name, report) for name, report in reports.items() if report]
    budget = found.budget
    asked = join(("Budget ", outside(budget.name), ": ", outside(budget.summary))) if budget else ""
    return element(
        "footer",
        element("h2", "Measured on"),
        element("div", *origins, class_="origins"),
        element("p", asked) if asked else "",
    )


def _origin(name: str, report: LatencyReport) -> Markup:
    lines = [
        spaced(element("dt", key), element("dd", outside(value, 200)))
        for key, value in _told(report).items()
    ]
    return element("div", element("h3", name), element("dl", *lines), class_="origin")


def _told(report: LatencyReport) -> dict[str, str]:
    device, bundle, runtime = report.device, report.bundle, report.runtime
    golden = report.numerics.golden_psnr_db if report.numerics else None
    return {
        "device": _joined(device.model, device.soc, _gigabytes(device.ram_bytes)),
        "system": _joined(device.platform, device.os_version, device.os_build),
        "simulator": _YES[device.simulator],
        "runtime": _joined(runtime.name, runtime.version, worded(runtime.compute_units)),
        "threads": str(runtime.threads or "not said"),
        "workload": _workload(report),
        "recipe": _joined(bundle.recipe, bundle.target),
        "bundle digest": bundle.digest or "not said",
        "app": _joined(report.app.id, report.app.version, f"{report.app.build} build"),
        "written by": _joined(report.created_by.name, report.created_by.version),
        "run": _joined(report.run_id, report.session and f"session {report.session}"),
        "began": _began(report),
        "golden run": "not replayed" if golden is None else f"{golden:.1f} dB",
    }


def _joined(*words: str | None) -> str:
    return ", ".join(filter(None, words)) or "not said"


def _gigabytes(size: int | None) -> str:
    return f"{size / (1 << 30):.3g} GiB of memory" if size else ""


def _workload(report: LatencyReport) -> str:
    work = report.workload
    side = f"{work.image_side} px" if work.image_side else "size not said"
    steps = count(work.steps, "step") if work.steps else "steps not said"
    return _joined(side, steps, None if work.seed is None else f"seed {work.seed}")


def _began(report: LatencyReport) -> str:
    starts = [launch.start for launch in report.launches if launch.start]
    return f"{min(starts):%Y-%m-%d %H:%M} UTC" if starts else "not said"
