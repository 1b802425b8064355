"""Whatever makes times incomparable is named, and a report in good order has nothing to name."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from nanoflux_benchmarks.budget import load_budget
from nanoflux_benchmarks.validity import Expected, expected, reasons
from nanoflux_mobile.report import Numerics, Workload

WANTED = expected(load_budget("nanoflux-512"), None)


def test_a_report_in_good_order_has_no_reason_against_it(make_report):
    assert reasons(make_report(), WANTED) == ()


CONDITIONS = {
    "warm": ({"thermal_before": "fair"}, "began fair"),
    "no thermal state": ({"thermal_before": None}, "unknown temperature"),
    "low power": ({"low_power": True}, "low power mode: switch it off"),
    "perhaps low power": ({"low_power": None}, "perhaps low power mode"),
    "debugger": ({"debugger": True}, "a debugger"),
    "background": ({"foreground": False}, "the app in the background"),
    "perhaps background": ({"foreground": None}, "perhaps the app in the background"),
}


@pytest.mark.parametrize("case", CONDITIONS)
def test_conditions_of_any_launch_count(case, make_report, with_launch):
    fields, text = CONDITIONS[case]
    for index in (0, 5):
        found = reasons(with_launch(make_report(), index, **fields), WANTED)
        assert len(found) == 1
        assert found[0].startswith(f"launch {index + 1} ")
        assert text in found[0]


@pytest.mark.parametrize("field", ["thermal_before", "low_power", "foreground"])
def test_a_computer_need_not_know_what_only_phones_know(field, make_report, with_launch):
    device = dataclasses.replace(make_report().device, platform="linux")
    report = make_report(device=device, placement=())
    assert reasons(with_launch(report, **{field: None}), WANTED) == ()


def replaced(report: Any, part: str, **fields: Any) -> Any:
    return dataclasses.replace(
        report, **{part: dataclasses.replace(getattr(report, part), **fields)}
    )


WHOLE = {
    "simulator": (lambda r: replaced(r, "device", simulator=True), "simulator"),
    "perhaps a simulator": (lambda r: replaced(r, "device", simulator=None), "perhaps a simul"),
    "debug build": (lambda r: replaced(r, "app", build="debug"), "debug build"),
    "an error": (lambda r: dataclasses.replace(r, errors=("out of memory",)), "out of memory"),
    "no placement": (lambda r: dataclasses.replace(r, placement=()), "where its graphs ran"),
    "no golden run": (lambda r: dataclasses.replace(r, numerics=None), "golden run"),
    "golden run too low": (
        lambda r: dataclasses.replace(r, numerics=Numerics(29.9, 0)),
        "29.9 dB, below 30 dB",
    ),
    "not finite": (lambda r: dataclasses.replace(r, numerics=Numerics(45.0, 3)), "3 values"),
    "other picture": (
        lambda r: dataclasses.replace(r, workload=Workload(256, 10, 0)),
        "image_side is 256, the budget is for 512",
    ),
    "few launches": (lambda r: dataclasses.replace(r, launches=r.launches[:4]), "4 launches"),
    "a copied launch": (
        lambda r: dataclasses.replace(
            r,
            launches=(
                *r.launches,
                dataclasses.replace(r.launches[0], started_at="2026-01-31T12:00:00Z"),
            ),
        ),
        "launches 1 and 7 hold the very same samples",
    ),
    "launches out of order": (
        lambda r: dataclasses.replace(r, launches=r.launches[::-1]),
        "its clock went back",
    ),
}


@pytest.mark.parametrize("case", WHOLE)
def test_what_is_wrong_with_the_whole_is_named(case, make_report):
    change, text = WHOLE[case]
    found = reasons(change(make_report()), WANTED)
    assert any(text in reason for reason in found), found


@pytest.mark.parametrize("accelerated", [False, None])
def test_a_graph_off_the_accelerator_is_named(accelerated, make_report):
    report = make_report()
    fallen = dataclasses.replace(report.placement[1], fully_accelerated=accelerated)
    placement = (report.placement[0], fallen, report.placement[2])
    (found,) = reasons(dataclasses.replace(report, placement=placement), WANTED)
    assert found.startswith("denoiser ")
    assert ("fell off" in found) == (accelerated is False)


def test_the_wrong_bundle_is_named_by_the_start_of_its_digest(make_report):
    wanted = dataclasses.replace(WANTED, digest="b" * 64)
    (found,) = reasons(make_report(), wanted)
    assert "a" * 12 in found
    assert "b" * 12 in found


def moved(report: Any, **clocks: float) -> Any:
    """The fourth image of the first launch, its clocks moved by some milliseconds."""
    first, *rest = report.launches
    images = list(first.images)
    shifted = {name: getattr(images[3], name) + by for name, by in clocks.items()}
    images[3] = dataclasses.replace(images[3], **shifted)
    return dataclasses.replace(
        report, launches=(dataclasses.replace(first, images=tuple(images)), *rest)
    )


CLOCKS = {
    "a pause": ({"uptime_ms": 6000.0, "wall_ms": 6000.0}, "let the accelerator sleep"),
    "a clock that goes back": ({"uptime_ms": -4000.0, "wall_ms": -4000.0}, "its clock went back"),
    "a clock that was set": ({"wall_ms": -60_000.0}, "two clocks disagree"),
    "a sleep": ({"wall_ms": 60_000.0}, "two clocks disagree"),
}


@pytest.mark.parametrize("case", CLOCKS)
def test_clocks_that_tell_of_a_sleep_are_named(case, make_report):
    clocks, text = CLOCKS[case]
    found = reasons(moved(make_report(), **clocks), WANTED)
    assert any(text in reason for reason in found), found


def test_a_pause_before_a_warm_up_is_fine(make_report, with_launch):
    images = list(make_report().launches[0].images)
    images[1:] = [
        dataclasses.replace(i, uptime_ms=i.uptime_ms + 60_000, wall_ms=i.wall_ms + 60_000)
        for i in images[1:]
    ]
    assert reasons(with_launch(make_report(), images=tuple(images)), WANTED) == ()


def test_warm_ups_are_not_images(make_report):
    (found,) = reasons(make_report(images=8), WANTED)
    assert "8 images after the warm-up" in found


def test_a_bundle_brings_its_own_floor(micro):
    from nanoflux_mobile.manifest import read_manifest

    manifest = read_manifest(micro.bundles["litert"])
    wanted = expected(None, manifest)
    assert wanted == Expected(manifest.digest, manifest.image_floors.quality, 5, 10, None, None)
