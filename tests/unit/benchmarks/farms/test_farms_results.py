"""What farms give back: reports are found wherever they lie, and nothing in there is trusted."""

from __future__ import annotations

import dataclasses
import json
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from nanoflux_benchmarks.farms import Job, apple, aws, browserstack, firebase, replay
from nanoflux_benchmarks.importers import _texts, read_any
from nanoflux_benchmarks.importers.log_markers import marker_lines
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.manifest import read_manifest
from nanoflux_mobile.report import BundleRef, LatencyReport, parse_report, report_json

FARMS = [apple, aws, browserstack, firebase]
ATTACHMENTS = Path(__file__).parents[3] / "fixtures/reports/xcresult/attachments"


@pytest.fixture
def text(make_report: Callable[..., LatencyReport]) -> str:
    return report_json(make_report(run_id="run-1"))


@pytest.fixture
def log(text: str) -> str:
    lines = (f"I/nanoflux(1234): {line}" for line in marker_lines(text, "run-1"))
    return "\n".join(["--------- beginning of main", *lines, "D/other: end"])


def pack(path: Path, entries: Mapping[str, str | bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return path


def lay(folder: Path, entries: Mapping[str, str | bytes]) -> Path:
    for name, content in entries.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def test_aws_artifacts(text, tmp_path):
    inside = "Host_Machine_Files/$DEVICEFARM_LOG_DIR"
    pack(
        tmp_path / "1-CUSTOMER_ARTIFACT.zip",
        {f"{inside}/latency-report-1.json": text, f"{inside}/logcat.txt": "boot", "a.png": b"\0"},
    )
    (tmp_path / "2-TESTSPEC_OUTPUT.txt").write_text("[DeviceFarm] adb shell ...")
    assert list(aws.collect(tmp_path)) == [("1-CUSTOMER_ARTIFACT.zip:latency-report-1.json", text)]


def test_aws_artifacts_of_an_ios_run(text, tmp_path):
    exported = {path.name: path.read_bytes() for path in ATTACHMENTS.iterdir()}
    inside = {f"logs/attachments/{name}": data for name, data in exported.items()}
    (found,) = aws.collect(pack(tmp_path / "results.zip", {**inside, "logs/x.xcresult": b"\0"}))
    assert parse_report(found[1], found[0]) == read_any(ATTACHMENTS)


def test_a_firebase_bucket(text, log, tmp_path):
    device = "run-1/e3q-34-en_US-portrait"
    pulled = f"{device}/artifacts/sdcard/Android/data/io.nanoflux.mobile/files"
    results = lay(
        tmp_path,
        {
            f"{pulled}/latency-report.json": text,
            f"{device}/logcat": log,
            f"{device}/test_result_1.xml": "<testsuites/>",
            f"{device}/video.mp4": b"\0\0",
        },
    )
    found = dict(firebase.collect(results))
    assert found == {f"{pulled}/latency-report.json": text, f"{device}/logcat": log}
    assert read_any(results) == parse_report(text, "")


def test_browserstack_logs(text, log, tmp_path):
    results = lay(tmp_path, {"1.log": "OK (1 test)", "2.log": log})
    assert list(browserstack.collect(results)) == [("2.log", log)]
    assert read_any(results) == parse_report(text, "")


def test_what_came_from_an_iphone(text, tmp_path):
    results = lay(tmp_path, {"latency-report-1.json": text, "notes.json": "{}"})
    assert list(apple.collect(results)) == [("latency-report-1.json", text)]
    shutil.copytree(ATTACHMENTS, tmp_path / "attachments")
    assert {name for name, _ in apple.collect(results)} == {
        "attachments/5D3A9B7C.json",
        "latency-report-1.json",
    }


@pytest.mark.parametrize("farm", FARMS, ids=lambda farm: farm.__name__.rpartition(".")[2])
def test_results_without_a_report_are_refused(farm, tmp_path):
    results = lay(tmp_path / "results", {"run.log": "the app crashed", "report.json": "{}"})
    with pytest.raises(InputError, match=r"holds no latency-report\.json and no log with"):
        list(farm.collect(results))
    with pytest.raises(InputError, match="no file or folder"):
        list(farm.collect(tmp_path / "absent"))


def test_names_inside_of_archives_are_never_paths(text, tmp_path):
    names = [
        "../../latency-report.json",
        "/etc/latency-report.json",
        "a\x1b[2J/latency-report.json",
    ]
    before = pack(tmp_path / "in/results.zip", dict.fromkeys(names, text))
    found = list(aws.collect(tmp_path / "in"))
    assert [content for _, content in found] == [text] * 3
    assert all(name.isprintable() for name, _ in found)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [before]


def test_a_manifest_of_attachments_cannot_lead_elsewhere(text, tmp_path):
    manifest = json.loads((ATTACHMENTS / "manifest.json").read_text("utf-8"))
    manifest[0]["attachments"][1]["exportedFileName"] = "../secret.json"
    results = lay(tmp_path, {"in/manifest.json": json.dumps(manifest), "secret.json": text})
    with pytest.raises(InputError, match="plain file name"):
        list(apple.collect(results / "in"))


def test_links_are_left_out(text, tmp_path):
    outside = lay(tmp_path / "outside", {"latency-report.json": text})
    results = lay(tmp_path / "results", {"a.log": ""})
    (results / "latency-report.json").symlink_to(outside / "latency-report.json")
    (results / "b.zip").symlink_to(pack(outside / "c.zip", {"latency-report.json": text}))
    with pytest.raises(InputError, match="holds no"):
        list(aws.collect(results))


def test_a_damaged_archive_is_refused(text, tmp_path):
    path = pack(tmp_path / "results.zip", {"latency-report.json": text})
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match="as a zip"):
        list(aws.collect(path))


def test_an_archive_that_inflates_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_texts, "MOST_BYTES", 1 << 20)  # of 64, for the sake of speed
    path = pack(tmp_path / "results.zip", {"latency-report.json": b" " * (2 << 20)})
    assert path.stat().st_size < 1 << 14
    with pytest.raises(InputError, match="over 1 MiB"):
        list(aws.collect(path))


@pytest.fixture
def stored(make_job: Callable[..., Job], make_report: Callable[..., LatencyReport], tmp_path: Path):
    """A job, and the report of its bundle in a file."""
    job = make_job()
    reference = BundleRef(read_manifest(job.bundle).digest, "tiny", "litert")
    report = make_report(bundle=reference)
    (tmp_path / "report.json").write_text(report_json(report), "utf-8")
    return job, report, tmp_path / "report.json"


def test_a_stored_report_is_judged_again(stored):
    job, report, path = stored
    told: list[str] = []
    assert replay.run(job, str(path), told.append) == (report,)
    assert str(path) in told[0]


@pytest.mark.parametrize("digest", ["b" * 64, None])
def test_a_stored_report_of_another_bundle_is_refused(digest, stored):
    job, report, path = stored
    other = dataclasses.replace(report, bundle=BundleRef(digest, None, None))
    path.write_text(report_json(other), "utf-8")
    with pytest.raises(InputError, match=f"names bundle {(digest or 'none')[:12]}, not"):
        replay.run(job, str(path), print)


def test_replay_needs_a_path_and_takes_no_baseline(stored):
    job, _, path = stored
    with pytest.raises(InputError, match="replay:PATH"):
        replay.run(job, "", print)
    with pytest.raises(InputError, match="gate --baseline"):
        replay.run(dataclasses.replace(job, baseline=job.bundle), str(path), print)
