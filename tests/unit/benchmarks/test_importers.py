"""Every format's fixtures: the good ones hold the numbers written in them, the damaged are refused.

The good litert_benchmark/denoiser.json is what the tool itself wrote for a graph of this product;
the others were composed by hand after their makers' sources.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nanoflux_benchmarks import importers
from nanoflux_benchmarks.importers import read_any
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.plugins import load, names
from nanoflux_mobile.report import Device, Image, LatencyReport, read_report

REPORTS = Path(__file__).parents[2] / "fixtures/reports"
FORMATS = names("nanoflux_benchmarks.importers")
APP = REPORTS / "app/latency-report.json"

DAMAGED = {
    "app/damaged-bytes.json": "is not UTF-8 text",
    "app/damaged-cut.json": "cannot be read as JSON",
    "app/damaged-half-character.json": "half a character",
    "app/damaged-huge.json": ".launches[0].memory.peak_bytes must be int, not inf",
    "app/damaged-incomplete.json": "lacks complete",
    "app/damaged-key-twice.json": "'run_id' comes twice",
    "app/damaged-negative.json": ".launches[0].images[0]: an image is -",
    "app/damaged-nested.json": "nested deeper",
    "app/damaged-not-a-number.json": "NaN is not a JSON number",
    "app/damaged-other-version.json": ".schema is 'latency-report/9'",
    "app/damaged-steps.json": "launches[0].images[0] has 4 steps; workload.steps=5",
    "app/damaged-unknown-field.json": ".workload has no field 'guidance'",
    "log_markers/damaged-altered.txt": "run iphone-1 of 6 chunks does not fit its digest",
    "log_markers/damaged-content.txt": "run iphone-1.device.simulator must be bool",
    "log_markers/damaged-contradicting.txt": "6 chunks has contradicting copies of 3",
    "log_markers/damaged-cut.txt": "run iphone-1 of 6 chunks has 3 cut short",
    "log_markers/damaged-missing.txt": "run iphone-1 of 6 chunks lacks 2, 4-5",
    "log_markers/damaged-other-run.txt": "run iphone-9: run_id is 'iphone-1'",
    "log_markers/damaged-private.txt": "none is legible; log them whole and as public",
    "log_markers/damaged-two-runs.txt": "2 whole reports: iphone-0, iphone-1",
    "xcresult/damaged-cut.json": "cannot be read as JSON",
    "xcresult/damaged-empty.json": "[0].testRuns[0].metrics[0].measurements is empty",
    "xcresult/damaged-lengths.json": "'nanoflux.step': 11, 'nanoflux.decoder': 3",
    "xcresult/damaged-negative.json": "[0].testRuns[0].metrics[3].measurements[1] is -4.0",
    "xcresult/damaged-no-time.json": "has no metric nanoflux.image",
    "xcresult/damaged-parts.json": "total_ms is 1.026, but its parts take",
    "xcresult/damaged-text.json": ".measurements[1] is '161 ms'",
    "xcresult/damaged-twice.json": "metrics[6].identifier is 'nanoflux.image' again",
    "xcresult/damaged-two-devices.json": "holds runs of 2 devices",
    "xcresult/damaged-two-tests.json": "testScroll()'; export one of them with --test-id",
    "xcresult/damaged-unit.json": ".unitOfMeasurement is 'kB'; accepted: s, ms",
    "xcresult/damaged-escaping": "exportedFileName is '../../app/latency-report.json'",
    "xcresult/damaged-absent": "lists '5D3A9B7C.json', which is not beside it",
    "benchmark_model/damaged-cut.txt": "has no timings, so the run failed",
    "benchmark_model/damaged-delegated.txt": "delegated_ops 812 of total_ops 80",
    "benchmark_model/damaged-dry-run.txt": "Inference (avg) is nan ms",
    "benchmark_model/damaged-failed.txt": "has no timings, so the run failed",
    "benchmark_model/damaged-huge.txt": "Inference (avg) is 9e+304 ms",
    "benchmark_model/damaged-negative.txt": "First inference is -0.003 ms",
    "benchmark_model/damaged-other-graph.txt": "does not say which graph it measured",
    "benchmark_model/damaged-two-runs.txt": "holds the timings of 2 runs",
    "litert_benchmark/damaged-cut.json": "cannot be read as JSON",
    "litert_benchmark/damaged-list.json": ".accelerators is 'CPU'; accepted: a list",
    "litert_benchmark/damaged-missing.json": ".latency lacks avg_ms",
    "litert_benchmark/damaged-negative.json": ".latency.avg_ms is -470.41",
    "litert_benchmark/damaged-not-a-number.json": "NaN is not a JSON number",
    "litert_benchmark/damaged-other-graph.json": "does not say which graph it measured",
    "litert_benchmark/damaged-text.json": ".latency.avg_ms is '470.41'",
    "ai_hub/damaged-denoiser-empty.json": "lacks all_inference_times, and an estimate is no",
    "ai_hub/damaged-denoiser-estimate.json": "lacks all_inference_times, and an estimate is no",
    "ai_hub/damaged-denoiser-huge.json": ".all_inference_times[2] is 1000",
    "ai_hub/damaged-denoiser-key-twice.json": "'execution_summary' comes twice",
    "ai_hub/damaged-denoiser-layers.json": ".execution_detail[1] lacks compute_unit",
    "ai_hub/damaged-denoiser-load.json": ".first_load_time: ms is 1000000000000.0",
    "ai_hub/damaged-denoiser-memory.json": "inference_memory_peak_range has 3 entries",
    "ai_hub/damaged-denoiser-negative.json": ".all_inference_times[2] is -1",
    "ai_hub/damaged-denoiser-text.json": ".all_inference_times[2] is '42 ms'",
    "ai_hub/damaged-unnamed.json": "does not say which graph it measured",
}


def fixture(name: str) -> LatencyReport:
    return read_any(REPORTS / name)


def times(images: tuple[Image, ...]) -> list[tuple[bool, float | None, tuple[float, ...]]]:
    return [(image.warmup, image.total_ms or image.decoder_ms, image.step_ms) for image in images]


@pytest.mark.parametrize("name", DAMAGED)
def test_damage_is_named(name: str) -> None:
    with pytest.raises(InputError) as error:
        fixture(name)
    assert DAMAGED[name] in str(error.value)
    assert "\n" not in str(error.value)


def test_every_damaged_fixture_is_listed() -> None:
    found = {str(path.relative_to(REPORTS)) for path in REPORTS.glob("*/damaged-*")}
    assert found == set(DAMAGED)


def test_every_format_has_good_and_damaged_fixtures() -> None:
    assert {path.name for path in REPORTS.iterdir()} == set(FORMATS)
    assert {name.partition("/")[0] for name in DAMAGED} == set(FORMATS)


@pytest.mark.parametrize("path", [p for p in REPORTS.glob("*/*.*") if "damaged" not in p.name])
def test_one_format_recognises_a_good_file(path: Path) -> None:
    text = path.read_text("utf-8")
    found = [name for name in FORMATS if load(importers.__name__, name).recognises(text)]
    assert found == [path.parent.name]


def test_formats_have_distinct_names() -> None:
    assert len({load(importers.__name__, name).NAME for name in FORMATS}) == len(FORMATS)


def test_the_apps_own_file_is_the_contract() -> None:
    assert read_any(APP) == read_report(APP)


def test_the_contract_example_is_read() -> None:
    example = REPORTS.parent / "contract/latency-report.json"
    assert read_any(example) == read_report(example)


@pytest.mark.parametrize("name", ["logcat.txt", "syslog.txt", "stdout.txt"])
def test_a_log_holds_the_very_same_report(name: str) -> None:
    assert fixture(f"log_markers/{name}") == read_report(APP)


def test_an_attached_report_is_read_by_the_manifest() -> None:
    assert fixture("xcresult/attachments") == read_report(APP)


def test_metrics_become_a_launch_for_each_run() -> None:
    report = fixture("xcresult/metrics.json")
    data = json.loads((REPORTS / "xcresult/metrics.json").read_text("utf-8"))
    metrics = {row["identifier"]: row for row in data[0]["testRuns"][0]["metrics"]}
    assert [len(launch.images) for launch in report.launches] == [3, 3]
    second = report.launches[0].images[1]
    assert second.total_ms == pytest.approx(1000 * metrics["nanoflux.image"]["measurements"][1])
    assert second.text_encoder_ms == pytest.approx(15.3)  # 0.0153 s in the file
    assert second.step_ms == tuple(metrics["nanoflux.step"]["measurements"][4:8])
    assert second.decoder_ms == 161.9
    device = ("iPhone 16 Pro Max", None, None, "19.1", "23B85", False)
    assert report.device == Device("ios", *device)


def test_without_our_metrics_the_clock_is_the_whole_image() -> None:
    report = fixture("xcresult/metrics-clock.json")
    assert times(report.launches[0].images) == [(False, 900.0, ()), (False, 800.0, ())]


def test_an_unnamed_platform_is_perhaps_a_simulator() -> None:
    read = load(importers.__name__, "xcresult").read
    data = json.loads((REPORTS / "xcresult/metrics-clock.json").read_text("utf-8"))
    device = data[0]["testRuns"][0]["device"]
    device["platform"] = "iOS Simulator"
    assert read(json.dumps(data), "x").device.simulator is True
    del device["platform"], device["modelName"], device["osBuildNumber"]
    found = read(json.dumps(data), "x").device
    assert found == Device("ios", "unknown", None, None, "19.1", None, None)


def test_benchmark_model_keeps_an_average_and_says_so() -> None:
    report = fixture("benchmark_model/interpreter-gpu.txt")
    (launch,) = report.launches
    assert [image.warmup for image in launch.images] == [True, False]
    assert [image.step_ms[0] for image in launch.images] == pytest.approx([274.02, 233.4112])
    assert launch.load == ()
    assert report.runtime.compute_units == "gpu"
    assert report.runtime.threads == 4
    (place,) = report.placement
    assert (place.component, place.gpu, place.delegated_ops, place.fully_accelerated) == (
        *("denoiser", 1.0, 812),
        True,
    )
    assert "average" in report.errors[0]


def test_a_log_of_a_failed_run_does_not_name_the_graph_of_the_next() -> None:
    report = fixture("benchmark_model/logcat-cpu.txt")
    (launch,) = report.launches
    assert times(launch.images) == [(True, pytest.approx(1041.76), ()), (False, 233.4112, ())]
    (place,) = report.placement
    assert (place.component, place.total_ops, place.fully_accelerated) == ("decoder", 101, False)
    assert report.runtime.compute_units == "cpu"


def test_the_table_of_the_newer_tool_is_in_milliseconds() -> None:
    (launch,) = fixture("benchmark_model/compiled-model.txt").launches
    assert [image.text_encoder_ms for image in launch.images] == [17.90, 15.20]


def test_what_the_tool_itself_wrote_is_read() -> None:
    report = fixture("litert_benchmark/denoiser.json")
    assert times(report.launches[0].images) == [(True, None, (564.12,)), (False, None, (470.41,))]
    assert report.placement[0].fully_accelerated is None  # it says true of the CPU alone
    assert report.runtime.compute_units == "cpu"


def test_full_acceleration_counts_without_the_cpu() -> None:
    report = fixture("litert_benchmark/gpu.json")
    assert report.placement[0].fully_accelerated is True
    assert (report.runtime.compute_units, report.runtime.threads) == ("gpu", 4)


def test_no_warm_up_is_not_a_warm_up_of_nothing() -> None:
    text = (REPORTS / "litert_benchmark/gpu.json").read_text("utf-8")
    data = json.loads(text)
    data["latency"] |= {"num_warmup_runs": 0, "warmup_first_ms": 0}
    report = load(importers.__name__, "litert_benchmark").read(json.dumps(data), "x")
    assert [image.warmup for image in report.launches[0].images] == [False]


def test_ai_hub_samples_are_all_of_them_and_never_the_estimate() -> None:
    report = fixture("ai_hub/denoiser.json")
    (launch,) = report.launches
    steps = [image.step_ms[0] for image in launch.images]
    assert steps == [44.82, 43.011, 42.61, 42.777, 42.905, 47.031, 42.712, 43.1]
    assert [(load.state, load.ms) for load in launch.load] == [
        ("first", 3120.44),
        ("relaunch", 811.22),
    ]
    assert launch.memory
    assert launch.memory.peak_bytes == 1310720000
    (place,) = report.placement
    assert (place.neural_engine, place.gpu, place.cpu) == (0.975, 0.0, 0.025)
    assert (place.delegated_ops, place.total_ops, place.fully_accelerated) == (2, 3, False)


def test_what_a_profile_leaves_out_is_none() -> None:
    report = fixture("ai_hub/decoder.json")
    (launch,) = report.launches
    (place,) = report.placement
    assert (place.neural_engine, place.fully_accelerated) == (None, True)
    assert launch.load == ()
    assert launch.memory
    assert launch.memory.method == "estimated_inference_peak_memory"
    assert launch.conditions.thermal_before is None
    assert report.numerics is None
    assert report.bundle.digest is None


FOREIGN = [
    "xcresult/metrics.json",
    "benchmark_model/interpreter-gpu.txt",
    "litert_benchmark/denoiser.json",
    "ai_hub/denoiser.json",
]


@pytest.mark.parametrize("name", FOREIGN)
def test_a_gate_never_finds_evidence_in_another_tools_figures(name: str) -> None:
    report = fixture(name)
    assert report.errors[-1].endswith("measure with the app for evidence")
    assert report.device.platform in ("ios", "android")
    assert report.app.build == "debug"


@pytest.mark.parametrize("name", FOREIGN)
def test_the_same_result_has_the_same_run_id(name: str, tmp_path: Path) -> None:
    copy = tmp_path / f"denoiser{Path(name).suffix}"
    copy.write_bytes((REPORTS / name).read_bytes())
    assert read_any(copy) == fixture(name)
