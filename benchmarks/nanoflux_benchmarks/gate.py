"""Judge a report: against a budget, against a baseline, or both; or say that it proves nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import get_args

from nanoflux_benchmarks import stats
from nanoflux_benchmarks.budget import Budget
from nanoflux_benchmarks.validity import Expected, reasons
from nanoflux_benchmarks.verdict import Check, Interval, Outcome, Power, Stage, Unit, Verdict
from nanoflux_mobile.report import LatencyReport, Launch, Part

TAIL = 1.1
"""How far the slowest tenth may exceed a limit that the median keeps."""
RULED_OUT = 1.10
"""A comparison that cannot rule out a slowdown this large is no evidence of none."""

WORST: tuple[Stage, ...] = ("memory", "load_first")
"""Stages of which a session has one or few: the worst is judged, not the middle."""

Samples = list[list[float]]


def samples(report: LatencyReport, stage: Stage) -> Samples:
    """Values of one stage, a row for each launch in time order: ms, or bytes for memory."""
    rows = [_values(launch, stage) for launch in report.launches]
    return [row for row in rows if row]


def _values(launch: Launch, stage: Stage) -> list[float]:
    if stage == "memory":
        return [float(launch.memory.peak_bytes)] if launch.memory else []
    if stage == "image" or stage == "text_encoder" or stage == "step" or stage == "decoder":
        return [ms for image in launch.measured if (ms := image.ms(stage)) is not None]
    loads = [load.ms for load in launch.load if load.state == stage.removeprefix("load_")]
    return [sum(loads)] if loads else []


def judge(
    report: LatencyReport,
    budget: Budget | None,
    wanted: Expected,
    baseline: LatencyReport | None = None,
) -> Verdict:
    """The verdict on `report`; at least one of `budget` and `baseline` must be given.

    Reasons against the evidence, of the report or of the baseline, come first; then any failed
    check; then any check that could not be decided.
    """
    why = list(reasons(report, wanted))
    checks = list(_budget_checks(report, budget)) if budget else []
    power: list[Power] = []
    if baseline:
        why += [f"baseline: {text}" for text in reasons(baseline, _of_baseline(wanted))]
        why += _incomparable(report, baseline)
        compared, power = _compare(report, baseline)
        checks += compared
    return Verdict(_outcome(why, checks), tuple(why), tuple(checks), tuple(power))


def _outcome(why: Sequence[str], checks: Sequence[Check]) -> Outcome:
    found = {check.outcome for check in checks}
    if why or not checks:
        return "no_evidence"
    return "fail" if "fail" in found else "no_evidence" if "no_evidence" in found else "pass"


def _of_baseline(wanted: Expected) -> Expected:
    sizes = wanted.launches, wanted.images, wanted.image_side, wanted.steps
    return Expected(None, wanted.golden_psnr_db, *sizes)


def _incomparable(report: LatencyReport, baseline: LatencyReport) -> Iterator[str]:
    for name in ("device", "runtime", "workload"):
        ours, theirs = getattr(report, name), getattr(baseline, name)
        for field in vars(ours):
            a, b = getattr(ours, field), getattr(theirs, field)
            if a != b:
                yield f"{name}.{field} is {a!r}, the baseline's is {b!r}: compare like with like"


def _budget_checks(report: LatencyReport, budget: Budget) -> Iterator[Check]:
    limits = budget.limits_for(report.device.model)
    for stage in get_args(Stage):
        if (limit := limits.of(stage)) is not None:
            check = _worst_check if stage in WORST else _time_check
            yield check(samples(report, stage), stage, limit)


def _worst_check(rows: Samples, stage: Stage, limit: float) -> Check:
    unit: Unit = "bytes" if stage == "memory" else "ms"
    if not rows:
        return _unmeasured(stage, unit, limit)
    most = max(max(row) for row in rows)
    outcome: Outcome = "pass" if most <= limit else "fail"
    found = Interval(most, most, most)
    return Check(_within(stage), stage, unit, found, limit, outcome, "the most of any launch")


def _within(stage: Stage) -> str:
    return f"{stage.replace('_', ' ')} within budget"


def _unmeasured(stage: Stage, unit: Unit, limit: float) -> Check:
    why = "fewer than two launches measured it" if unit == "ms" else "no launch measured it"
    return Check(_within(stage), stage, unit, None, limit, "no_evidence", why)


def _time_check(rows: Samples, stage: Stage, limit: float) -> Check:
    if len(rows) < 2:
        return _unmeasured(stage, "ms", limit)
    median, tail = stats.quantile_interval(rows, 0.5), stats.quantile_interval(rows, 0.9)
    outcome: Outcome = "no_evidence"
    why = f"between {median.low:.4g} and {median.high:.4g} ms: the limit lies inside; run again"
    if median.low > limit:
        outcome, why = "fail", f"even the lower bound, {median.low:.4g} ms, is over the limit"
    elif median.high <= limit and tail.value > TAIL * limit:
        outcome, why = "fail", f"one image in ten takes over {tail.value:.4g} ms"
    elif median.high <= limit:
        outcome, why = "pass", f"even the upper bound, {median.high:.4g} ms, is within the limit"
    return Check(_within(stage), stage, "ms", median, limit, outcome, why)


def _compare(report: LatencyReport, baseline: LatencyReport) -> tuple[list[Check], list[Power]]:
    checks, power = [], []
    for stage in get_args(Part):
        ours, theirs = samples(report, stage), samples(baseline, stage)
        if len(ours) < 2 or len(theirs) < 2:
            continue
        whole = len(ours) == len(report.launches) == len(theirs) == len(baseline.launches)
        paired = whole and interleaved(report, baseline)
        ratio = (stats.compare_pairs if paired else stats.compare)(theirs, ours)
        checks.append(_ratio_check(ratio, stage, paired))
        power.append(stats.power(theirs, ours, stage, paired, stats.MIN_EFFECT))
    return checks, power


def _ratio_check(ratio: Interval, stage: Stage, paired: bool) -> Check:
    outcome: Outcome = "pass"
    why = "measured in turns" if paired else "measured apart"
    slower = f"slower by {ratio.value - 1:.1%}, at least by {ratio.low - 1:.1%}"
    if stats.regressed(ratio) and (paired or ratio.low > 1 + stats.MIN_EFFECT):
        outcome, why = "fail", slower
    elif stats.regressed(ratio):
        outcome = "no_evidence"
        why = f"{slower}: two sessions may differ as much; measure in turns (bench --baseline)"
    elif ratio.high > RULED_OUT:
        outcome = "no_evidence"
        why = f"too noisy: a slowdown of {ratio.high - 1:.0%} cannot be ruled out; run again"
    name = f"{stage.replace('_', ' ')} against the baseline"
    return Check(name, stage, "ratio", ratio, 1 + stats.MIN_EFFECT, outcome, why)


def interleaved(report: LatencyReport, baseline: LatencyReport) -> bool:
    """Whether both come from one session and their launches alternated A B B A."""
    if report.session is None or report.session != baseline.session:
        return False
    named = [("A", baseline), ("B", report)]
    starts = [(launch.start, side) for side, each in named for launch in each.launches]
    if any(start is None for start, _ in starts):
        return False
    order = [side for _, side in sorted(starts)]
    pairs = list(zip(order[::2], order[1::2], strict=False))
    return all(set(pair) == {"A", "B"} for pair in pairs) and all(
        a != b for a, b in pairwise(pairs)
    )
