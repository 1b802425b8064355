"""Verdicts: known-good reports pass, known-bad ones fail, weak ones are no evidence."""

from __future__ import annotations

import dataclasses

import pytest

from nanoflux_benchmarks.budget import Budget, Limits, load_budget
from nanoflux_benchmarks.gate import interleaved, judge, samples
from nanoflux_benchmarks.validity import expected

BUDGET = load_budget("nanoflux-512")
WANTED = expected(BUDGET, None)
CALM = expected(None, None)
ABBA = ((0, 3, 4, 7, 8, 11, 12, 15), (1, 2, 5, 6, 9, 10, 13, 14))
"""Minutes at which launches of a baseline and of a candidate begin."""


def by_stage(verdict):
    return {(check.stage, check.unit): check for check in verdict.checks}


def test_within_the_budget_passes(make_report):
    verdict = judge(make_report(), BUDGET, WANTED)
    assert verdict.outcome == "pass"
    assert verdict.reasons == ()
    checks = by_stage(verdict)
    assert set(checks) == {("image", "ms"), ("step", "ms")}
    # The generator's own centre: 15 + 10 x 210 + 160 + 5 ms, launches differing by 2 %.
    found = checks["image", "ms"].found
    assert found.low < 2280 < found.high
    assert found.high - found.low < 0.08 * 2280


def test_over_the_budget_fails(make_report):
    verdict = judge(make_report(scale=1.25), BUDGET, WANTED)
    assert verdict.outcome == "fail"
    assert {check.outcome for check in verdict.checks} == {"fail"}


def test_around_the_budget_is_undecided(make_report):
    report = make_report(scale=2500 / 2280)
    verdict = judge(report, BUDGET, WANTED)
    assert by_stage(verdict)["image", "ms"].outcome == "no_evidence"
    assert "the limit lies inside" in by_stage(verdict)["image", "ms"].why


def test_a_slow_tail_fails_though_the_median_keeps_the_limit(make_report, with_launch):
    report = make_report()
    for index, launch in enumerate(report.launches):
        slow = [
            dataclasses.replace(image, total_ms=3000.0) if i % 5 == 3 else image
            for i, image in enumerate(launch.images)
        ]
        report = with_launch(report, index, images=tuple(slow))
    check = by_stage(judge(report, BUDGET, WANTED))["image", "ms"]
    assert check.outcome == "fail"
    assert "one image in ten" in check.why


def test_a_fast_report_with_a_flaw_is_no_evidence(make_report, with_launch):
    fast = make_report(scale=0.5)
    assert judge(fast, BUDGET, WANTED).outcome == "pass"
    verdict = judge(with_launch(fast, thermal_before="serious"), BUDGET, WANTED)
    assert verdict.outcome == "no_evidence"
    assert {check.outcome for check in verdict.checks} == {"pass"}


def test_a_slow_report_with_a_flaw_is_no_evidence_either(make_report, with_launch):
    verdict = judge(with_launch(make_report(scale=2), low_power=True), BUDGET, WANTED)
    assert verdict.outcome == "no_evidence"


@pytest.mark.parametrize("limits", [{"load_relaunch_ms": 5000}, {"load_first_ms": 5000}])
def test_what_was_not_measured_is_not_within_the_budget(limits, make_report, with_launch):
    report = make_report()
    for index in range(len(report.launches)):
        report = with_launch(report, index, load=())
    budget = dataclasses.replace(BUDGET, limits=Limits(**limits, image_ms=2500))
    verdict = judge(report, budget, WANTED)
    assert verdict.outcome == "no_evidence"
    (check,) = (check for check in verdict.checks if check.found is None)
    assert check.stage == next(iter(limits)).removesuffix("_ms")


@pytest.mark.parametrize(("limit", "outcome"), [(1200, "pass"), (1199, "fail")])
def test_the_only_first_load_is_judged_as_it_is(limit, outcome, make_report):
    budget = Budget("budget/1", "first load", Limits(load_first_ms=limit))
    assert judge(make_report(), budget, CALM).outcome == outcome


def test_nothing_to_check_is_no_evidence(make_report):
    nothing = Budget("budget/1", "nothing", Limits())
    assert judge(make_report(), nothing, CALM).outcome == "no_evidence"


@pytest.mark.parametrize(("limit", "outcome"), [(1.5e9, "pass"), (1.5e9 - 1, "fail")])
def test_memory_is_the_most_of_any_launch(limit, outcome, make_report):
    budget = Budget("budget/1", "memory", Limits(peak_bytes=limit))
    assert judge(make_report(), budget, CALM).outcome == outcome


def test_loads_add_up_over_graphs_and_states_stay_apart(make_report):
    report = make_report()
    assert samples(report, "load_first") == [[1200.0]]
    assert samples(report, "load_relaunch") == [[1200.0]] * 5


def test_steps_are_means_of_an_image_and_warm_ups_are_left_out(make_report):
    report = make_report(launches=5, images=10)
    rows = samples(report, "step")
    assert [len(row) for row in rows] == [10] * 5
    image = report.launches[2].images[2]
    assert rows[2][0] == pytest.approx(sum(image.step_ms) / 10)


# Against a baseline


def test_an_unchanged_version_passes_and_says_what_it_could_have_seen(make_report):
    verdict = judge(make_report(1, launches=8), None, CALM, make_report(2, launches=8))
    assert verdict.outcome == "pass"
    assert {check.stage for check in verdict.checks} == {"image", "text_encoder", "step", "decoder"}
    for power in verdict.power:
        assert 1.0 <= power.noise_floor < power.smallest_caught < 1.15


def test_a_tenth_slower_fails(make_report):
    verdict = judge(make_report(1, 1.1, launches=8), None, CALM, make_report(2, launches=8))
    assert verdict.outcome == "fail"
    check = by_stage(verdict)["image", "ratio"]
    assert 1.05 < check.found.low < 1.1 < check.found.high < 1.15


def test_a_small_slowdown_between_two_sessions_is_undecided(make_report):
    """Days differ by about as much: benchmarks/gate_study has the share of false alarms."""
    verdict = judge(make_report(1, 1.042, launches=8), None, CALM, make_report(2, launches=8))
    check = by_stage(verdict)["image", "ratio"]
    assert 1.0 < check.found.low < 1.03 < check.found.value
    assert check.outcome == "no_evidence"
    assert "bench --baseline" in check.why


def test_a_tenth_faster_passes(make_report):
    verdict = judge(make_report(1, 0.9, launches=8), None, CALM, make_report(2, launches=8))
    assert verdict.outcome == "pass"


def pair(make_report, scale=1.0, drift=0.0):
    """Baseline and candidate of one session, the device slowing down by `drift` over it."""
    reports = []
    for seed, (minutes, factor) in enumerate(zip(ABBA, (1.0, scale), strict=True)):
        launches = [
            make_report(10 * seed + k, factor * (1 + drift * minute / 15), minutes=(minute,))
            for k, minute in enumerate(minutes)
        ]
        merged = tuple(report.launches[0] for report in launches)
        reports.append(dataclasses.replace(launches[0], launches=merged, session="s"))
    return reports


def test_interleaved_launches_pair_up(make_report):
    baseline, candidate = pair(make_report)
    assert interleaved(candidate, baseline)
    assert not interleaved(candidate, dataclasses.replace(baseline, session="other"))
    alone = dataclasses.replace(baseline, session=None)
    assert not interleaved(dataclasses.replace(candidate, session=None), alone)
    assert not interleaved(make_report(1, session="s"), make_report(2, session="s"))


def test_pairs_see_a_change_that_drift_hides(make_report):
    baseline, candidate = pair(make_report, scale=1.06, drift=0.25)
    verdict = judge(candidate, None, CALM, baseline)
    assert by_stage(verdict)["image", "ratio"].outcome == "fail"
    assert "slower by" in by_stage(verdict)["image", "ratio"].why
    apart = judge(
        dataclasses.replace(candidate, session=None),
        None,
        CALM,
        dataclasses.replace(baseline, session=None),
    )
    assert apart.outcome != "fail"


def test_reports_of_two_devices_are_not_compared(make_report):
    other = make_report(2, device=dataclasses.replace(make_report().device, model="iPhone16,2"))
    verdict = judge(make_report(1), None, CALM, other)
    assert verdict.outcome == "no_evidence"
    assert any("device.model is 'iPhone17,2'" in reason for reason in verdict.reasons)


def test_flaws_of_the_baseline_count(make_report, with_launch):
    flawed = with_launch(make_report(2), debugger=True)
    (reason,) = judge(make_report(1), None, CALM, flawed).reasons
    assert reason.startswith("baseline: launch 1 ran with a debugger")
