"""latency-report/1: contradictory, hostile and damaged files are refused with the field's place."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.report import parse_report, read_report, report_json
from nanoflux_mobile.storage import write_file

EXAMPLE = Path(__file__).parents[1] / "fixtures" / "contract" / "latency-report.json"
DATA = json.loads(EXAMPLE.read_text("utf-8"))


def changed(*place: str | int, value: Any) -> dict[str, Any]:
    data = copy.deepcopy(DATA)
    holder = data
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    return data


def refused(data: object) -> str:
    with pytest.raises(InputError) as error:
        parse_report(json.dumps(data), "r.json")
    return str(error.value)


def test_a_written_report_reads_back_the_same(tmp_path):
    report = read_report(EXAMPLE)
    write_file(tmp_path / "copy.json", report_json(report))
    assert read_report(tmp_path / "copy.json") == report
    assert json.loads(report_json(report)) == DATA


IMAGE = ("launches", 0, "images", 1)
CONTRADICTIONS = {
    "parts longer than the whole": (
        changed(*IMAGE, "total_ms", value=50.0),
        "r.json.launches[0].images[1]: total_ms is 50.0, but its parts take",
    ),
    "a step too few": (
        changed(*IMAGE, "step_ms", value=[21.0]),
        "launches[0].images[1] has 1 steps; workload.steps=",
    ),
    "nothing measured": (
        {
            **DATA,
            "launches": [
                {
                    **DATA["launches"][0],
                    "images": [
                        {
                            **DATA["launches"][0]["images"][0],
                            "total_ms": None,
                            "text_encoder_ms": None,
                            "decoder_ms": None,
                            "step_ms": [],
                        }
                    ],
                }
            ],
        },
        "no time at all",
    ),
    "more delegated than there are": (
        changed("placement", 0, value={**DATA["placement"][0], "delegated_ops": 5, "total_ops": 4}),
        "delegated_ops 5 of total_ops 4",
    ),
    "more than the whole": (
        changed("placement", 0, value={**DATA["placement"][0], "gpu": 0.5}),
        "add up to more than 1",
    ),
    "the thirtieth of February": (
        changed("launches", 0, "started_at", value="2026-02-30T12:00:00Z"),
        "r.json.launches[0]: day is out of range",
    ),
    "a path for a name": (changed("run_id", value="../../etc"), "run_id is '../../etc'"),
    "a misspelt field": ({**DATA, "lanches": []}, "no field 'lanches'"),
    "text for a time": (
        changed(*IMAGE, "total_ms", value="250 ms"),
        "r.json.launches[0].images[1].total_ms must be float, not '250 ms'",
    ),
    "true for a time": (changed(*IMAGE, "total_ms", value=True), "must be float, not True"),
    "negative": (changed(*IMAGE, "decoder_ms", value=-3.0), "is -3.0; accepted: 0 to 1e9"),
    "too large for a float": (changed(*IMAGE, "total_ms", value=10**400), "too large"),
    "not finished": (changed("complete", value=False), "r.json.complete is False"),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_contradiction_is_named_with_its_place(case):
    data, text = CONTRADICTIONS[case]
    assert text in refused(data)


TEXTS = {
    "empty": ("", "cannot be read as JSON"),
    "cut off": (EXAMPLE.read_text()[:-40], "cannot be read as JSON"),
    "a list": ("[]", "must be a table"),
    "not a number": (EXAMPLE.read_text().replace("48.25", "NaN"), "NaN is not a JSON number"),
    "infinite": (EXAMPLE.read_text().replace("48.25", "-Infinity"), "-Infinity is not"),
    "overflowing": (EXAMPLE.read_text().replace("48.25", "1e999"), "golden_psnr_db is inf"),
    "a key twice": (
        EXAMPLE.read_text().replace('"errors"', '"errors": [], "errors"'),
        "key 'errors' comes twice",
    ),
    "deep": ("[" * 100_000, "nested deeper"),
    "many digits": (EXAMPLE.read_text().replace("48.25", "9" * 5000), "r.json"),
}


@pytest.mark.parametrize("case", TEXTS)
def test_a_hostile_text_is_one_sentence(case):
    text, words = TEXTS[case]
    with pytest.raises(InputError) as error:
        parse_report(text, "r.json")
    assert words in str(error.value)
    assert len(str(error.value)) < 400


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "picture").write_bytes(b"\x89PNG\xff")
    with (tmp_path / "huge").open("wb") as huge:
        huge.truncate(65 << 20)
    for name, words in (
        ("absent", "No such file"),
        ("folder", "Is a directory"),
        ("picture", "not UTF-8"),
        ("huge", "over 64 MiB"),
    ):
        with pytest.raises(InputError, match=words):
            read_report(tmp_path / name)


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a JSON value."""
    inner = data.items() if isinstance(data, dict) else enumerate(data)
    below = [
        found
        for key, value in inner
        if isinstance(value, dict | list)
        for found in places(value, (*path, key))
    ]
    keys = list(data) if isinstance(data, dict) else range(len(data))
    return [(*path, key) for key in keys] + below


@given(place=st.sampled_from(places(DATA)), value=values)
def test_any_value_in_any_place_is_taken_or_refused_in_a_sentence(place, value):
    text = json.dumps(changed(*place, value=value))
    try:
        report = parse_report(text, "r.json")
    except InputError as error:
        assert str(error).startswith("r.json")
    else:
        assert parse_report(report_json(report), "again") == report


@given(at=st.integers(0, len(EXAMPLE.read_text()) - 1), byte=st.integers(0, 127))
def test_any_byte_changed_is_taken_or_refused_in_a_sentence(at, byte):
    text = EXAMPLE.read_text()
    try:
        parse_report(text[:at] + chr(byte) + text[at + 1 :], "r.json")
    except InputError as error:
        assert str(error).startswith("r.json")
