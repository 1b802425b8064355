"""`nanoflux bench` and `nanoflux predict` from end to end, on this machine and on paper."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from nanoflux_mobile.cli import main
from nanoflux_mobile.report import read_report

FEW = ("--launches", "2", "--images", "2", "--warmup", "1")


@pytest.fixture
def nanoflux(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run a verb; gives the exit code, standard output and standard error."""

    def run(*arguments: str | Path) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return int(end.value.code or 0), out, err

    return run


def test_this_machine_measures_and_too_few_launches_are_no_evidence(nanoflux, micro, tmp_path):
    bundle, report = micro.bundles["litert"], tmp_path / "report.json"
    code, out, _ = nanoflux("bench", bundle, *FEW, "--out", report, "--json")
    assert code == 0
    assert json.loads(out) == {"files": [str(report)], "commands": []}
    measured = read_report(report)
    assert [len(launch.measured) for launch in measured.launches] == [2, 2]
    page = tmp_path / "gate.html"
    code, _, err = nanoflux("gate", report, "--bundle", bundle, "--html", page)
    assert code == 2
    assert "it has 2 launches" in err
    assert "golden" not in err, "the bundle's own floor holds"
    assert page.read_text().startswith("<!DOCTYPE html>")


def test_a_farm_elsewhere_gets_its_hand_in(nanoflux, micro, tmp_path):
    (tmp_path / "bench.apk").write_bytes(b"app")
    (tmp_path / "bench-androidTest.apk").write_bytes(b"tests")
    device = "firebase:model=husky,version=34"
    options = ("--app", tmp_path / "bench.apk", "--out", tmp_path / "handin", "--json")
    code, out, err = nanoflux("bench", micro.bundles["litert"], "--device", device, *options)
    assert code == 0, err
    told = json.loads(out)
    assert told["files"]
    assert all(Path(file).is_file() for file in told["files"])
    assert all(command in err for command in told["commands"])


def test_a_prediction_is_a_range_and_says_what_it_is(nanoflux, micro):
    code, out, err = nanoflux(
        "predict", micro.bundles["coreml"], "--device", "iphone-16-pro-max", "--json"
    )
    assert code == 0
    assert "a prediction, not a measurement" in err
    told = json.loads(out)
    assert told["kind"] == "prediction"
    assert 0 < told["image"]["low"] < told["image"]["mid"] < told["image"]["high"]
    assert {call["component"] for call in told["calls"]} == {"text_encoder", "denoiser", "decoder"}


def test_the_page_shows_the_roofline_of_a_known_phone(nanoflux, micro, make_report, tmp_path):
    from nanoflux_mobile.report import report_json

    (tmp_path / "r.json").write_text(report_json(make_report()))
    page = tmp_path / "gate.html"
    nanoflux("gate", tmp_path / "r.json", "--bundle", micro.bundles["coreml"], "--html", page)
    text = page.read_text()
    assert 'id="roofline"' in text
    assert "No prediction takes part in the verdict" in text
    nanoflux("gate", tmp_path / "r.json", "--html", page)
    assert "roofline" not in page.read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("bench", "nowhere", "--device", "host"), "nowhere"),
        (("bench", "nowhere", "--device", "moon"), "unknown farm 'moon'; known: adb, apple"),
        (("bench", "nowhere", "--device", "replay:nothing.zip"), "nowhere is not a bundle"),
        (("predict", "nowhere", "--device", "iphone-16-pro-max"), "nowhere"),
        (("predict", "nowhere", "--device", "nokia-3310"), "unknown device 'nokia-3310'"),
    ],
)
def test_bad_input_is_one_sentence(arguments, words, nanoflux, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = nanoflux(*arguments)
    assert code == 3
    assert out == ""
    assert words in err
    assert not list(tmp_path.iterdir())
