"""Folders and zips: one report found in them, launches put together, hostile ones refused."""

from __future__ import annotations

import dataclasses
import io
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nanoflux_benchmarks.importers import _texts, merge, read_any
from nanoflux_benchmarks.importers.log_markers import marker_lines
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.report import (
    BundleRef,
    LatencyReport,
    Numerics,
    Placement,
    read_report,
    report_json,
)
from nanoflux_mobile.storage import write_file

REPORTS = Path(__file__).parents[2] / "fixtures/reports"
APP = REPORTS / "app/latency-report.json"
Make = Callable[..., LatencyReport]


@pytest.fixture
def split(make_report: Make) -> list[LatencyReport]:
    """One run of three launches as an app writes it: a file for each, not in time order."""
    whole = make_report(launches=3, images=2)
    return [
        dataclasses.replace(whole, run_id=f"run-{i}", launches=(whole.launches[i],))
        for i in (2, 0, 1)
    ]


def zipped(path: Path, *files: tuple[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in files:
            archive.writestr(name, data)
    return path


def refusal(path: Path) -> str:
    with pytest.raises(InputError) as error:
        read_any(path)
    return str(error.value)


def test_a_report_among_other_files(tmp_path: Path) -> None:
    shutil.copy(APP, tmp_path / "anything.txt")
    (tmp_path / "notes.txt").write_text("run 3 on the left phone")
    (tmp_path / "screen.png").write_bytes(b"\x89PNG\0\0")
    shutil.copytree(REPORTS / "benchmark_model", tmp_path / "other-tools")
    assert read_any(tmp_path) == read_report(APP)


def test_a_report_deep_in_a_zip(tmp_path: Path) -> None:
    files = [
        ("run/Host_Files/latency-report.json", APP.read_bytes()),
        ("run/video.mp4", b"\0" * 1000),
    ]
    assert read_any(zipped(tmp_path / "results", *files)) == read_report(APP)


def test_entry_names_are_never_paths(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    files = [("../../out.json", APP.read_bytes()), ("/etc/\x1b[31m\nx", b"hello")]
    assert read_any(zipped(folder / "a.zip", *files)) == read_report(APP)
    assert [path.name for path in tmp_path.rglob("*")] == ["in", "a.zip"]


def test_names_from_outside_cannot_colour_the_terminal(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", ("\x1b[31m\nx", b'{"schema": "latency-report/1"'))
    assert "a.zip:?[31m?x cannot be read as JSON" in refusal(path)


def test_a_file_and_a_log_of_one_run_agree(tmp_path: Path) -> None:
    shutil.copy(APP, tmp_path)
    shutil.copy(REPORTS / "log_markers/damaged-cut.txt", tmp_path)
    assert read_any(tmp_path) == read_report(APP)


def test_logs_complete_each_other(tmp_path: Path) -> None:
    lines = marker_lines(APP.read_text("utf-8"), "iphone-1")
    (tmp_path / "main.log").write_text("\n".join(lines[::2]))
    (tmp_path / "crash.log").write_text("\n".join(lines[1::2]))
    assert read_any(tmp_path) == read_report(APP)


def test_a_marker_far_down_a_long_log(tmp_path: Path) -> None:
    path = tmp_path / "logcat.txt"
    noise = "I ActivityManager: \xff nothing\n" * 5000
    text = noise + "\n".join(marker_lines(APP.read_text("utf-8"), "iphone-1"))
    path.write_bytes(text.encode("latin-1"))
    assert read_any(path) == read_report(APP)


def test_a_log_that_powershell_wrote(tmp_path: Path) -> None:
    path = tmp_path / "logcat.txt"
    path.write_bytes((REPORTS / "log_markers/logcat.txt").read_text("utf-8").encode("utf-16"))
    assert read_any(path) == read_report(APP)


def test_schema_as_the_last_key_of_a_long_file(tmp_path: Path, make_report: Make) -> None:
    report = make_report(launches=40)
    first, *rest = report_json(report).strip().strip("{}").split(",\n", 1)
    path = tmp_path / "sorted.json"
    path.write_text("{" + rest[0] + "," + first + "}")
    assert path.stat().st_size > 2 * _texts.HEAD
    assert read_any(path) == report


def test_launches_in_a_file_each_become_one_report(
    tmp_path: Path, split: list[LatencyReport], make_report: Make
) -> None:
    for i, report in enumerate(split):
        write_file(tmp_path / f"{i}.json", report_json(report))
    write_file(tmp_path / "copy.json", report_json(split[1]))
    merged = read_any(tmp_path)
    assert merged.run_id == split[0].run_id
    assert merged.launches == make_report(launches=3, images=2).launches
    archive = zipped(
        tmp_path / "a.zip", *((f"{r.run_id}.json", report_json(r).encode()) for r in split)
    )
    assert set(read_any(archive).launches) == set(merged.launches)


def test_launches_without_a_start_keep_their_order(split: list[LatencyReport]) -> None:
    bare = [
        dataclasses.replace(r, launches=(dataclasses.replace(r.launches[0], started_at=None),))
        for r in split
    ]
    assert merge(bare).launches == tuple(report.launches[0] for report in bare)


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"session": "abba-1"}, "session is None in one and 'abba-1' in the other"),
        ({"bundle": BundleRef("b" * 64, "nanoflux-small", "coreml")}, "bundle.digest is 'aaa"),
        ({"device": ("os_version", "18.0")}, "device.os_version is '19.1' in one and '18.0'"),
        ({"device": ("model", "iPhone16,1")}, "device.model is"),
        ({"runtime": ("compute_units", "all")}, "runtime.compute_units is"),
        ({"workload": ("seed", 9)}, "workload.seed is 0 in one and 9"),
        ({"app": ("version", "2.0")}, "app.version is"),
        ({"run_id": "run-2"}, "two reports of run run-2 differ"),
    ],
)
def test_merging_unlike_reports_names_the_field(
    split: list[LatencyReport], fields: dict[str, object], named: str
) -> None:
    ((name, value),) = fields.items()
    if isinstance(value, tuple):
        value = dataclasses.replace(getattr(split[1], name), **{value[0]: value[1]})
    split[1] = dataclasses.replace(split[1], **{name: value})
    with pytest.raises(InputError, match=r"differ|cannot be merged") as error:
        merge(split)
    assert named in str(error.value)


def test_merging_keeps_the_worst_and_every_doubt(split: list[LatencyReport]) -> None:
    off = Placement("denoiser", 0.4, 0.0, 0.6, None, None, False)
    split[1] = dataclasses.replace(
        split[1], numerics=Numerics(31.5, 2), placement=(off,), errors=("one image failed",)
    )
    merged = merge(split)
    assert merged.numerics == Numerics(31.5, 2)
    assert merged.placement == (*split[0].placement, off)
    assert merged.errors == ("one image failed",)
    blind = dataclasses.replace(split[0], run_id="run-9", numerics=None)
    assert merge([*split, blind]).numerics is None


def test_nothing_to_merge_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no report to merge"):
        merge([])


def test_several_results_of_other_tools_are_named(tmp_path: Path) -> None:
    for name in ("interpreter-gpu.txt", "compiled-model.txt"):
        shutil.copy(REPORTS / "benchmark_model" / name, tmp_path)
    assert "name one of compiled-model.txt, interpreter-gpu.txt" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello", b"\0\1\2", b"{}", b"[]", b"PK"])
def test_no_report_lists_what_is_accepted(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.json"
    path.write_bytes(content)
    told = refusal(path)
    for accepted in ("latency-report.json", "NANOFLUX_REPORT", "AI Hub", "folder or zip"):
        assert accepted in told


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    assert "no file or folder" in refusal(tmp_path / "absent")
    assert "cannot read" in refusal(tmp_path / ("x" * 300))
    os.mkfifo(tmp_path / "pipe")
    assert "no file or folder" in refusal(tmp_path / "pipe")
    assert "holds no latency report" in refusal(tmp_path)


def test_links_in_a_folder_are_not_followed(tmp_path: Path) -> None:
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "a.json").symlink_to(APP)
    (folder / "deeper").symlink_to(APP.parent)
    assert "holds no latency report" in refusal(folder)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", ("a.json", APP.read_bytes()))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(bytes(data))
    assert "is encrypted; unpack it" in refusal(path)


def test_a_rare_packing_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", ("a", b"x" * 99), method=zipfile.ZIP_BZIP2)
    assert "packed in a rare way" in refusal(path)


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_texts, "MOST_BYTES", 1 << 20)
    path = zipped(tmp_path / "a.zip", ("log.txt", b"a" * (1 << 24)))
    assert path.stat().st_size < 1 << 15
    assert "log.txt has over 1 MiB" in refusal(path)


def test_many_small_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_texts, "MOST_TOTAL", 1 << 20)
    path = zipped(tmp_path / "a.zip", *((f"{i}.txt", b"a" * (1 << 18)) for i in range(5)))
    assert "over 1 MiB of text" in refusal(path)
    monkeypatch.setattr(_texts, "MOST_TOTAL", 100)
    assert "unpack it and name the report" in refusal(path)


def test_too_many_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_texts, "MOST_FILES", 3)
    path = zipped(tmp_path / "a.zip", *((f"{i}", b"x") for i in range(4)))
    assert "over 3 files" in refusal(path)


def test_a_zip_within_a_zip_stays_closed(tmp_path: Path) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("latency-report.json", APP.read_bytes())
    path = zipped(tmp_path / "a.zip", ("inner.zip", inner.getvalue()))
    assert "holds no latency report" in refusal(path)


def test_a_cut_zip_is_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path / "a.zip", ("a.json", APP.read_bytes()))
    path.write_bytes(path.read_bytes()[:-30])
    assert "as a zip" in refusal(path)


def test_a_manifest_of_a_bundle_is_no_list_of_attachments(tmp_path: Path) -> None:
    shutil.copy(REPORTS.parent / "contract/manifest.json", tmp_path)
    shutil.copy(APP, tmp_path)
    assert read_any(tmp_path) == read_report(APP)


def test_a_folder_of_zips_as_device_farm_leaves_it(tmp_path: Path) -> None:
    zipped(tmp_path / "job-CUSTOMER_ARTIFACT.zip", ("out/latency-report.json", APP.read_bytes()))
    zipped(tmp_path / "job-VIDEO.zip", ("film.mp4", b"\0\0\0\x18ftyp"))
    assert read_any(tmp_path) == read_report(APP)


def test_a_zip_inside_of_a_zip_stays_closed(tmp_path: Path) -> None:
    inner = zipped(tmp_path / "inner.zip", ("latency-report.json", APP.read_bytes()))
    outer = zipped(tmp_path / "outer.zip", ("inner.zip", inner.read_bytes()))
    assert "outer.zip holds no latency report" in refusal(outer)
