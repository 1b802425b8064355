"""Predictions: by hand, by their promises, and on the published rows they were not fitted to."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import math
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoflux_benchmarks import predict as predicting
from nanoflux_benchmarks.predict import plan_of, predict, predict_bundle
from nanoflux_benchmarks.prediction import Plan, Prediction
from nanoflux_mobile.cost import BlockCost, Cost, cost_json
from nanoflux_mobile.device import Device, Fact, Unit, load_device, shipped_devices
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.manifest import read_manifest
from nanoflux_mobile.roofline import (
    CALIBRATION,
    DEVIATIONS,
    Constants,
    engine,
    times,
    widened,
    work,
)
from nanoflux_mobile.strict_json import to_plain

ROOT = Path(__file__).parents[3]
STUDY = ROOT / "benchmarks" / "prediction_study"
EXACT = 1e-12  # arithmetic in double precision
REFIT = 1e-3  # the constants in the code have four digits
COUNTS = ("macs", "weight_bytes", "activation_bytes", "working_set_bytes")


def fact(value: float) -> Fact:
    return Fact(value, "a test")


def phone(**fields: object) -> Device:
    """A phone of round numbers: 10 T operations a second, 76.8 GB/s of which 60 are reached."""
    npu = Unit("NPU", "neural_engine", fact(10e12), None, fact(20e12), fact(1e6), fact(1e-3))
    base = Device(
        "device/1",
        "round",
        "Round",
        "ios",
        ("R1",),
        "R",
        fact(8e9),
        fact(4e9),
        fact(76.8e9),
        fact(1e9),
        npu,
        Unit("GPU", "gpu", fact(2e12)),
    )
    return dataclasses.replace(base, **fields)  # type: ignore[arg-type]


def block(component: str = "denoiser", name: str = "one", **counts: int) -> BlockCost:
    values = dict.fromkeys(COUNTS, 0) | {"macs": 1_000_000} | counts
    return BlockCost(component, "main", name, ops=10, **values)


def cost(*blocks: BlockCost, crossings: int = 0, target: str = "coreml") -> Cost:
    return Cost("cost/1", target, blocks, crossings)


def plan(steps: int = 4, target: str = "coreml", unit: str = "npu", bits: int = 16) -> Plan:
    names = ("text_encoder", "denoiser", "decoder")
    units = dict.fromkeys(names, unit)
    held = tuple((name, 1_000_000) for name in names)
    return Plan(target, steps, units, dict.fromkeys(names, bits), held)  # type: ignore[arg-type]


def test_two_blocks_by_hand() -> None:
    """One computes: 2 x 5e11 / (1e13 / 2) = 0.2 s; one reads 3e9 + 6e9 / 2 at 60e9 / s: 0.1 s."""
    half = Constants({"neural_engine": 0.5}, {"neural_engine": 0.5}, 0.0)
    blocks = (
        block(name="computes", macs=500_000_000_000, weight_bytes=6_000_000),
        block(
            name="reads",
            weight_bytes=3_000_000_000,
            activation_bytes=6_000_000_000,
            working_set_bytes=2_000_000,
        ),
    )
    found = times(work(blocks), engine(phone(), "npu"), half)
    assert found.compute == pytest.approx([0.2, 4e-7], rel=EXACT)
    assert found.memory == pytest.approx([1e-4, 0.1], rel=EXACT)
    assert found.total == pytest.approx(0.3, rel=EXACT)
    small = dataclasses.replace(blocks[1], working_set_bytes=1_000_000)
    fits = times(work((small,)), engine(phone(), "npu"), half)
    assert fits.memory == pytest.approx([0.05], rel=EXACT), "values that fit stay on the chip"


def test_weights_beyond_what_an_app_gets_are_read_from_storage() -> None:
    """5 GB do not fit into 4: 5 s from storage at 1 GB/s; 3 GB do, and take 50 ms of memory."""
    large, small = (block(weight_bytes=n * 10**9) for n in (5, 3))
    on = engine(phone(), "npu")
    assert times(work((large,)), on, CALIBRATION).total == pytest.approx(5.0, rel=EXACT)
    assert times(work((small,)), on, CALIBRATION).total == pytest.approx(0.05, rel=EXACT)
    told = predict(cost(large), plan(), phone())
    assert told.calls[0].limit == "storage"


def test_a_range_is_the_spread_on_either_side() -> None:
    said = widened(lambda guess: {"fast": 1.0, "likely": 2.0, "slow": 3.0}[guess], 0.1)
    factor = math.exp(DEVIATIONS * 0.1)
    assert (said.low, said.mid, said.high) == pytest.approx((1 / factor, 2.0, 3 * factor))


def test_a_picture_is_all_runs_of_all_graphs() -> None:
    blocks = (
        block("text_encoder", weight_bytes=60_000_000),
        block("denoiser", weight_bytes=600_000_000),
        block("decoder", weight_bytes=120_000_000),
    )
    told = predict(cost(*blocks), plan(steps=4), phone())
    start = 0.001
    text, step, decoder = (call.seconds.mid for call in told.calls)
    assert (text, step, decoder) == pytest.approx((0.001 + start, 0.01 + start, 0.002 + start))
    assert told.image.mid == pytest.approx(text + 4 * step + decoder, rel=EXACT)
    assert told.step.mid == pytest.approx(step, rel=EXACT)
    assert [call.runs for call in told.calls] == [1, 4, 1]
    assert told.image.low < told.image.mid < told.image.high


def test_a_student_of_two_resolutions_runs_low_for_as_many_steps_as_its_schedule_says() -> None:
    low, full = (
        dataclasses.replace(block(weight_bytes=size), function=name)
        for name, size in (("step_low", 60_000_000), ("step_full", 600_000_000))
    )
    there = dataclasses.replace(plan(steps=5), low_steps=3)
    told = predict(cost(low, full), there, phone())
    assert {call.function: call.runs for call in told.calls} == {"step_low": 3, "step_full": 2}
    assert told.step.mid == pytest.approx((3 * 0.002 + 2 * 0.011) / 5, rel=EXACT)
    halved = dataclasses.replace(plan(steps=2), low_steps=1)  # 3 of 5 steps, as near as it goes
    by_name = {advice.change: advice.image_s for advice in told.advice}
    expected = predict(cost(low, full), halved, phone()).image.mid
    assert by_name["half as many steps"] == pytest.approx(expected, rel=EXACT)
    odd = dataclasses.replace(low, function="step_tiny")
    with pytest.raises(InputError, match="accepted: one function, or step_full and step_low"):
        predict(cost(odd, full), plan(), phone())


@pytest.mark.parametrize(("low_steps", "left_out"), [(0, "step_low"), (4, "step_full")])
def test_a_function_that_no_step_runs_costs_nothing(low_steps: int, left_out: str) -> None:
    functions = [
        dataclasses.replace(block(weight_bytes=60_000_000), function=name)
        for name in ("step_low", "step_full")
    ]
    used = [b for b in functions if b.function != left_out]
    there = dataclasses.replace(plan(steps=4), low_steps=low_steps)
    told = predict(cost(*functions, crossings=2), there, phone())
    alone = predict(cost(*used, crossings=2), plan(steps=4), phone())
    assert [call.function for call in told.calls] == [b.function for b in used]
    assert told.image == alone.image


def test_limits_are_named() -> None:
    blocks = (
        block(name="computes", macs=10**12),
        block(name="reads", weight_bytes=10**8),
    )
    told = predict(cost(*blocks), plan(), phone())
    assert [b.limit for b in told.calls[0].blocks] == ["compute", "memory bandwidth"]
    assert told.calls[0].limit == "compute"
    tiny = predict(cost(block(macs=1)), plan(), phone())
    assert tiny.calls[0].limit == "dispatch"
    without = dataclasses.replace(phone().npu, dispatch_s=None)  # type: ignore[type-var]
    crossing = predict(cost(block(macs=1), crossings=3), plan(), phone(npu=without))
    assert crossing.calls[0].limit == "crossings"


def test_crossings_count_once_likely_and_in_every_step_at_worst() -> None:
    graphs = (block("text_encoder"), block("denoiser"), block("decoder"))
    none, two = (predict(cost(*graphs, crossings=n), plan(steps=4), phone()) for n in (0, 2))
    each = 2 * (predicting.CROSSING_S + 0.001)  # the boundary, and starting the graph again
    factor = math.exp(DEVIATIONS * CALIBRATION.spread)
    assert two.image.mid - none.image.mid == pytest.approx(each, rel=1e-9)
    assert two.image.high - none.image.high == pytest.approx(5 * each * factor, rel=1e-9)
    assert all(c.seconds.low <= c.seconds.mid <= c.seconds.high for c in two.calls)
    assert any("crossings" in note for note in two.notes)


GROWTH = st.floats(1.0, 50.0)
SIZES = st.integers(0, 10**10)


@given(
    counts=st.lists(st.tuples(SIZES, SIZES, SIZES, SIZES), min_size=1, max_size=4),
    field=st.sampled_from(COUNTS),
    growth=GROWTH,
    kind=st.sampled_from(["neural_engine", "hexagon", "gpu"]),
)
@settings(max_examples=60, deadline=None)
def test_more_work_is_never_faster(
    counts: list[tuple[int, int, int, int]], field: str, growth: float, kind: str
) -> None:
    unit = dataclasses.replace(phone().npu, kind=kind)  # type: ignore[type-var]
    on = engine(phone(npu=unit), "npu")
    less = [block(name=str(i), **dict(zip(COUNTS, c, strict=True))) for i, c in enumerate(counts)]
    more = [dataclasses.replace(b, **{field: int(getattr(b, field) * growth)}) for b in less]
    times_of = [times(work(blocks), on, CALIBRATION).total for blocks in (less, more)]
    assert times_of[0] <= times_of[1]


@given(
    counts=st.tuples(SIZES, SIZES, SIZES, SIZES),
    growth=GROWTH,
    field=st.sampled_from(
        ["memory_bytes_per_s", "storage_bytes_per_s", "app_bytes", "fp16_ops_per_s", "cache_bytes"]
    ),
)
@settings(max_examples=60, deadline=None)
def test_a_better_phone_is_never_slower(
    counts: tuple[int, int, int, int], growth: float, field: str
) -> None:
    worse = phone()
    assert worse.npu is not None
    if hasattr(worse, field):
        better = dataclasses.replace(worse, **{field: fact(getattr(worse, field).value * growth)})
    else:
        unit = {field: fact(getattr(worse.npu, field).value * growth)}
        better = phone(npu=dataclasses.replace(worse.npu, **unit))
    done = work([block(**dict(zip(COUNTS, counts, strict=True)))])
    slow, fast = (times(done, engine(d, "npu"), CALIBRATION).total for d in (worse, better))
    assert fast <= slow


def test_memory_is_weights_by_the_plan_and_the_values_of_who_works() -> None:
    blocks = (
        block("text_encoder", working_set_bytes=7_000_000),
        block("denoiser", working_set_bytes=2_000_000),
    )
    held = (("text_encoder", 100_000_000), ("denoiser", 900_000_000))
    there = dataclasses.replace(plan(), resident=held)
    told = predict(cost(*blocks), there, phone())
    assert told.memory.peak_bytes == 902_000_000
    assert told.memory.app_bytes == 4_000_000_000
    assert told.memory.fits is True
    assert predict(cost(*blocks), there, phone(app_bytes=fact(9e8))).memory.fits is False


@pytest.mark.parametrize(
    ("ram", "fits"), [(3e9, True), (2e9, None), (1.3e9, None), (1.1e9, False), (None, None)]
)
def test_whether_it_fits_is_not_known_where_the_limit_is_not(
    ram: float | None, fits: bool | None
) -> None:
    """An app was seen to get from 37.5 to 75 % of all memory; the peak here is 0.9 GB."""
    there = dataclasses.replace(plan(), resident=(("denoiser", 900_000_000),))
    device = phone(app_bytes=None, ram_bytes=ram and fact(ram))
    told = predict(cost(block()), there, device)
    assert told.memory.fits is fits
    assert any(note.startswith("app_bytes is not known") for note in told.notes)


def test_what_is_not_known_widens_the_range() -> None:
    busy = cost(block(activation_bytes=10**9, working_set_bytes=2_000_000, macs=10**9))
    known = predict(busy, plan(), phone())
    unit = dataclasses.replace(phone().npu, cache_bytes=None)  # type: ignore[type-var]
    unknown = predict(busy, plan(), phone(npu=unit))
    assert unknown.step.mid == pytest.approx(known.step.mid, rel=EXACT)
    assert unknown.step.low < known.step.low / 2
    assert unknown.step.high == pytest.approx(known.step.high, rel=EXACT)
    assert any("npu.cache_bytes is not known" in note for note in unknown.notes)


def test_a_gpu_of_known_single_precision_computes_halves_once_to_twice_as_fast() -> None:
    android = phone(platform="android", gpu=Unit("GPU", "gpu", None, fact(2e12)))
    there = plan(target="litert", unit="gpu")
    told = predict(cost(block(macs=10**12), target="litert"), there, android).calls[0].seconds
    factor = math.exp(DEVIATIONS * CALIBRATION.spread)
    assert told.mid / told.low == pytest.approx(factor * 2**0.5, rel=1e-9)
    assert told.high / told.mid == pytest.approx(factor * 2**0.5, rel=1e-9)


def test_litert_values_take_half_the_bytes_the_file_declares() -> None:
    gpu = Unit("GPU", "gpu", fact(2e12), cache_bytes=fact(1e6))
    device = phone(platform="android", gpu=gpu)
    wide = block(macs=0, activation_bytes=8 * 10**9, working_set_bytes=1_500_000_000)
    told = predict(cost(wide, target="litert"), plan(target="litert", unit="gpu"), device)
    expected = 4e9 * CALIBRATION.spilled["gpu"] / 60e9
    assert told.calls[0].seconds.mid == pytest.approx(expected, rel=EXACT)
    assert told.memory.peak_bytes == 750_000_000 + 1_000_000


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"npu": None}, r"Round does not state \[npu\]"),
        ({"npu": Unit("NPU", "neural_engine")}, "does not state npu.fp16_ops_per_s"),
        ({"memory_bytes_per_s": None}, "does not state memory_bytes_per_s"),
        ({"npu": Unit("TPU", "other", fact(1e12))}, "no measurement of a TPU is known"),
        ({"platform": "android"}, "Round is android, where a coreml bundle does not run"),
    ],
)
def test_what_a_prediction_cannot_do_without_is_named(fields: dict[str, object], told: str) -> None:
    with pytest.raises(InputError, match=told):
        predict(cost(block()), plan(), phone(**fields))


def test_advice_is_what_predicting_the_change_shows() -> None:
    blocks = (
        block("text_encoder", weight_bytes=10_000_000),
        block(
            "denoiser",
            macs=10**10,
            weight_bytes=1_000_000_000,
            activation_bytes=10**8,
            working_set_bytes=2_000_000,
        ),
    )
    told = predict(cost(*blocks, crossings=1), plan(steps=4), phone())
    by_name = {advice.change: advice for advice in told.advice}
    assert next(iter(by_name)) in ("weights of 4 bits", "half as many steps")
    assert [a.image_s for a in told.advice] == sorted(a.image_s for a in told.advice)
    lighter = [dataclasses.replace(b, weight_bytes=b.weight_bytes // 4) for b in blocks]
    by_hand = predict(cost(*lighter, crossings=1), plan(steps=4), phone())
    assert by_name["weights of 4 bits"].image_s == pytest.approx(by_hand.image.mid, rel=EXACT)
    halved = predict(cost(*blocks, crossings=1), plan(steps=2), phone())
    assert by_name["half as many steps"].image_s == pytest.approx(halved.image.mid, rel=EXACT)
    straight = predict(cost(*blocks), plan(steps=4), phone())
    name = "no crossing to another processor"
    assert name not in by_name or by_name[name].image_s == pytest.approx(straight.image.mid)
    assert by_name["weights of 4 bits"].peak_bytes < told.memory.peak_bytes


def test_advice_that_would_not_help_is_not_given() -> None:
    told = predict(cost(block(macs=10**12)), plan(bits=4), phone())
    names = {advice.change for advice in told.advice}
    assert "weights of 4 bits" not in names, "they have four already"
    assert "no crossing to another processor" not in names, "there is none"
    assert {"half as many steps", "half as many tokens in the denoiser"} <= names
    assert "values of 8 bits, computed as integers" in names, "the NPU is twice as fast with them"


def test_a_bundle_is_predicted_from_its_own_files(tmp_path: Path) -> None:
    text = (ROOT / "tests" / "fixtures" / "contract" / "manifest.json").read_text("utf-8")
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=r"cost\.json"):
        predict_bundle(tmp_path, phone())
    graphs = tuple(block(entry["name"]) for entry in json.loads(text)["components"])
    (tmp_path / "cost.json").write_text(cost_json(cost(*graphs)))
    told = predict_bundle(tmp_path, load_device("iphone-16-pro-max"))
    manifest = read_manifest(tmp_path)
    assert told.steps == len(manifest.sigmas) - 1
    assert plan_of(dataclasses.replace(manifest, low_steps=2)).low_steps == 2
    assert {call.component for call in told.calls} == {e.name for e in manifest.components}
    strange = dataclasses.replace(manifest.components[0], compute_unit="abacus")
    with pytest.raises(InputError, match="compute unit 'abacus' is unknown"):
        plan_of(dataclasses.replace(manifest, components=(strange,)))


def test_every_shipped_device_predicts_or_says_what_it_lacks() -> None:
    outcomes = {}
    for name in shipped_devices():
        device = load_device(name)
        target, unit = ("coreml", "npu") if device.platform == "ios" else ("litert", "gpu")
        graph = block(activation_bytes=10**8, working_set_bytes=10**8, weight_bytes=10**8)
        try:
            told = predict(cost(graph, target=target), plan(target=target, unit=unit), device)
            outcomes[name] = 0 < told.image.low < told.image.mid < told.image.high < 10
        except InputError as error:
            assert "does not state" in str(error)
    assert all(outcomes.values())
    assert len(outcomes) >= 20


def test_a_prediction_cannot_become_a_verdict() -> None:
    """It says what it is, and neither its modules nor the gate's import the other's."""
    package = ROOT / "benchmarks" / "nanoflux_benchmarks"
    judging = {"verdict", "gate", "budget", "validity", "session", "render", "stats"}
    foreseeing = {"prediction", "predict", "advice"}
    for names, others in ((judging, foreseeing | {"roofline"}), (foreseeing, judging)):
        for path in (package / f"{name}.py" for name in sorted(names)):
            imported = {
                part
                for node in ast.walk(ast.parse(path.read_text("utf-8")))
                if isinstance(node, ast.ImportFrom)
                for part in (*(node.module or "").split("."), *(a.name for a in node.names))
            }
            assert not imported & others, f"{path.name} imports {imported & others}"
    told = predict(cost(block()), plan(), phone())
    assert told.kind == "prediction"
    assert {f.name for f in dataclasses.fields(Prediction)}.isdisjoint({"outcome", "checks"})
    assert json.loads(json.dumps(to_plain(told), allow_nan=False))["kind"] == "prediction"
    assert any("no gate" in note for note in told.notes)


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(STUDY))
    return importlib.import_module("leave_one_out")


def test_the_constants_are_those_the_published_rows_give(study: ModuleType) -> None:
    cases = [study.case(row) for row in study.read_rows()]
    found = study.fit(cases)
    assert found.compute == pytest.approx(CALIBRATION.compute, rel=REFIT)
    assert found.spread == pytest.approx(CALIBRATION.spread, rel=REFIT)
    for kind, share in found.spilled.items():
        assert share == pytest.approx(CALIBRATION.spilled[kind], abs=REFIT)


def test_the_rows_are_those_that_were_promised(study: ModuleType) -> None:
    rows = study.read_rows()
    systems = [row.system for row in rows]
    assert len(study.FREE) * 3 < len(rows), "few constants, many rows"
    assert systems.count("NanoFLUX") >= 6
    assert {row.device for row in rows if row.system == "SD 2.1, Core ML"} >= {
        "iphone-12-mini",
        "iphone-13",
        "iphone-14",
        "iphone-14-pro-max",
        "ipad-pro-m1",
        "ipad-pro-m2",
    }
    assert len({row.device for row in rows if row.system == "SD 2.1, AI Hub"}) == 4
    assert systems.count("SnapGen++") == 3
    assert all(row.source for row in rows)


def test_a_left_out_row_is_not_in_its_fit(study: ModuleType) -> None:
    """Ten times its time would move a constant it is fitted by, but not its own prediction."""
    cases = [study.case(row) for row in study.read_rows() if row.system == "SD 2.1, Core ML"]
    gpu = [study.case(row) for row in study.read_rows() if row.unit == "gpu"]
    hexagon = [study.case(row) for row in study.read_rows() if row.system == "SD 2.1, AI Hub"]
    some = [*cases[:4], *gpu[:2], *hexagon[:4]]
    wrong = dataclasses.replace(some[0].row, seconds=some[0].row.seconds * 10)
    changed = [dataclasses.replace(some[0], row=wrong), *some[1:]]
    before, after = study.leave_out(some), study.leave_out(changed)
    assert after[0].alone.mid == pytest.approx(before[0].alone.mid, rel=1e-9)
    assert after[1].alone.mid > before[1].alone.mid


def test_left_out_rows_are_predicted_within_the_promise(study: ModuleType) -> None:
    """A third of the rows, every third one: the whole table is the study's own script."""
    cases = [study.case(row) for row in study.read_rows()]
    left = []
    for here in cases[::3]:
        constants = study.fit([c for c in cases if c is not here])
        left.append((here.row, here.predicted(constants)))
    sizes = [abs(study.error(row, said)) for row, said in left]
    assert np.median(sizes) <= study.MOST_MEDIAN_ERROR
    assert all(study.inside(row, said) for row, said in left)
