"""`nanoflux gate` from files: exit codes, every output, and one sentence for whatever is wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as xml

import pytest

from nanoflux_mobile.cli import main
from nanoflux_mobile.report import report_json
from nanoflux_mobile.storage import write_file


@pytest.fixture
def gate(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the verb; gives the exit code, standard output and standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main(["gate", *map(str, arguments)])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(end.value.code or 0), out, err

    return run


@pytest.fixture
def file(tmp_path: Path, make_report) -> Callable[..., Path]:
    """A report in a file."""

    def write(name: str, *arguments, **fields) -> Path:
        write_file(tmp_path / name, report_json(make_report(*arguments, **fields)))
        return tmp_path / name

    return write


def test_the_mission_is_the_budget_when_nothing_else_is_said(gate, file):
    assert gate(file("good.json"))[0] == 0
    assert gate(file("slow.json", scale=1.3))[0] == 1
    assert gate(file("few.json", launches=3))[0] == 2


def test_a_baseline_alone_needs_no_budget(gate, file):
    before = file("before.json", 1, 1.15, launches=8)
    assert gate(file("same.json", 2, 1.15, launches=8), "--baseline", before)[0] == 0
    code, _, err = gate(file("slower.json", 2, 1.3, launches=8), "--baseline", before)
    assert code == 1
    assert "equal runs differ by up to" in err


def test_every_output_says_the_same(gate, file, tmp_path):
    outputs = {name: tmp_path / f"out.{name}" for name in ("html", "markdown", "junit")}
    options = [part for name, path in outputs.items() for part in (f"--{name}", path)]
    code, out, err = gate(file("slow.json", scale=1.3), "--json", *options)
    assert code == 1
    told = json.loads(out)
    assert told["outcome"] == "fail"
    assert {check["stage"] for check in told["checks"]} == {"image", "step"}
    assert "FAIL: image within budget" in err
    assert "FAIL" in outputs["markdown"].read_text()
    assert xml.fromstring(outputs["junit"].read_bytes()).get("failures") == "2"
    assert "<html" in outputs["html"].read_text()


def test_reasons_are_read_out(gate, file, make_report, with_launch, tmp_path):
    write_file(tmp_path / "r.json", report_json(with_launch(make_report(), debugger=True)))
    code, _, err = gate(tmp_path / "r.json")
    assert code == 2
    assert "launch 1 ran with a debugger: start the app without one" in err


def test_the_bundle_that_was_meant_is_checked(gate, file, micro):
    code, _, err = gate(file("r.json"), "--bundle", micro.bundles["litert"])
    assert code == 2
    assert f"it measured bundle {'a' * 12}" in err


def test_numbers_of_any_size_are_judged_without_a_traceback(gate, make_report, tmp_path):
    """Two launches, one 1e15 times as slow as the other."""
    report = make_report(launches=2)
    text = json.dumps(json.loads(_text(report, tmp_path)), allow_nan=False)
    data = json.loads(text)
    for image in data["launches"][0]["images"]:
        image.update(total_ms=1e9, step_ms=[1e-6], text_encoder_ms=1e-6, decoder_ms=1e-6)
    data["workload"]["steps"] = 1
    for image in data["launches"][1]["images"]:
        image.update(total_ms=1e-5, step_ms=[1e-6], text_encoder_ms=1e-6, decoder_ms=1e-6)
    (tmp_path / "wild.json").write_text(json.dumps(data))
    wild = tmp_path / "wild.json"
    code, out, _ = gate(wild, "--baseline", wild, "--json", "--html", tmp_path / "w.html")
    assert code == 2
    assert json.loads(out)["outcome"] == "no_evidence"


def _text(report, folder: Path) -> str:
    write_file(folder / "plain.json", report_json(report))
    return (folder / "plain.json").read_text()


BAD = {
    "absent": (None, "no/report.json"),
    "empty": ("", "r.json"),
    "not ours": ('{"a": 1}', "r.json"),
    "cut off": ('{"schema": "latency-report/1", ', "r.json"),
    "another version": ('{"schema": "latency-report/9"}', "r.json"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_report_is_bad_input(case, gate, tmp_path):
    text, name = BAD[case]
    path = tmp_path / name
    if text is not None:
        path.write_text(text)
    code, out, err = gate(path)
    assert code == 3
    assert out == ""
    assert err.startswith("error: ")
    assert name.rpartition("/")[2] in err


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--budget", "fast", "unknown budget 'fast'"),
        ("--bundle", "nowhere", "is not a bundle"),
        ("--baseline", "nowhere.json", "nowhere.json"),
    ],
)
def test_a_bad_option_is_bad_input(option, value, words, gate, file):
    code, _, err = gate(file("r.json"), option, value)
    assert code == 3
    assert words in err
