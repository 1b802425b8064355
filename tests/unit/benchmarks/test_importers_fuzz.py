"""Whatever a file holds, an importer gives a report that can be written again, or an InputError."""

from __future__ import annotations

import json
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanoflux_benchmarks import importers
from nanoflux_benchmarks.importers import read_any
from nanoflux_benchmarks.importers.log_markers import CHUNK, marker_lines, read
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.plugins import load, names
from nanoflux_mobile.report import LatencyReport, parse_report, report_json

REPORTS = Path(__file__).parents[2] / "fixtures/reports"
FORMATS = names(importers.__name__)
GOOD = sorted(path for path in REPORTS.glob("*/*.*") if "damaged" not in path.name)
JSONS = [path for path in GOOD if path.suffix == ".json"]
APP_TEXT = (REPORTS / "app/latency-report.json").read_text("utf-8")
fast = settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])

TOKENS = ["NaN", "-Infinity", "-1", "1e999", "9" * 400, "null", "true", '""', "[]", "{}", '"', "0"]
TOKENS += ["\\", "\\ud800", "\0", "\x1b[31m", "\r\n", "[" * 2000, '{"a":' * 100, " kB", ":", ","]
LOST = object()
scalars = st.none() | st.booleans() | st.integers() | st.just(10**400) | st.floats() | st.text()
anything = st.recursive(
    scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8
)
Edit = Callable[[str], str]


def edits() -> st.SearchStrategy[Edit]:
    """Cut a part out, put it in twice, or put something else in its place."""
    places = st.tuples(st.floats(0, 1), st.integers(0, 60))
    fill = st.sampled_from(["", "twice", *TOKENS]) | st.text(max_size=5)

    def edit(place: tuple[float, int], what: str) -> Edit:
        def apply(text: str) -> str:
            at = int(place[0] * len(text))
            part = text[at : at + place[1]]
            return text[:at] + (2 * part if what == "twice" else what) + text[at + place[1] :]

        return apply

    return st.builds(edit, places, fill)


def check(act: Callable[[], LatencyReport]) -> None:
    """A report that its file can hold, or an InputError of one line."""
    try:
        report = act()
    except InputError as error:
        assert str(error)
        assert "\n" not in str(error)
        return
    assert parse_report(report_json(report).encode().decode(), "again") == report


@fast
@given(st.text() | st.sampled_from(TOKENS), st.text(max_size=30))
@pytest.mark.parametrize("name", FORMATS)
def test_any_text(name: str, text: str, where: str) -> None:
    module = load(importers.__name__, name)
    assert module.recognises(text) in (True, False)
    with pytest.raises(InputError):
        module.read(text, where)


@fast
@given(st.lists(edits(), min_size=1, max_size=3))
@pytest.mark.parametrize("path", GOOD, ids=lambda path: path.name)
def test_edited_files(path: Path, changes: list[Edit]) -> None:
    text = path.read_text("utf-8")
    for change in changes:
        text = change(text)
    check(lambda: load(importers.__name__, path.parent.name).read(text, path.name))


def spots(value: Any) -> list[tuple[Any, Any]]:
    """Every table or list in a JSON value with every key or index in it."""
    rows = list(value.items() if isinstance(value, dict) else enumerate(value))
    deeper = [spots(item) for _, item in rows if isinstance(item, dict | list)]
    return [(value, key) for key, _ in rows] + [spot for found in deeper for spot in found]


@settings(fast, max_examples=40)
@given(st.randoms(use_true_random=False), anything | st.just(LOST))
@pytest.mark.parametrize("path", JSONS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_replaced_and_lost_values(path: Path, rng: random.Random, value: object) -> None:
    data = json.loads(path.read_text("utf-8"))
    table, key = rng.choice(spots(data))
    if value is LOST:
        del table[key]
    else:
        table[key] = value
    text = json.dumps(data)
    check(lambda: load(importers.__name__, path.parent.name).read(text, path.name))


@fast
@given(st.randoms(use_true_random=False), anything)
@pytest.mark.parametrize("path", JSONS, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_unknown_keys_matter_only_in_our_own_contract(
    path: Path, rng: random.Random, value: object
) -> None:
    module = load(importers.__name__, path.parent.name)
    data = json.loads(path.read_text("utf-8"))
    rng.choice([table for table, _ in spots(data) if isinstance(table, dict)])["vendor.new"] = value
    try:
        text = json.dumps(data, allow_nan=False)
    except ValueError:
        return
    if path.parent.name == "app":
        with pytest.raises(InputError, match=r"no field 'vendor\.new'|nested deeper"):
            module.read(text, path.name)
    else:
        plain, more = (module.read(t, path.name) for t in (path.read_text("utf-8"), text))
        assert (more.launches, more.placement) == (plain.launches, plain.placement)
        assert (more.device, more.runtime) == (plain.device, plain.runtime)


@fast
@given(st.binary() | st.builds(lambda data: b"PK\x03\x04" + data, st.binary()))
def test_any_bytes(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    with pytest.raises(InputError):
        read_any(path)


@settings(fast, max_examples=100)
@given(st.lists(st.tuples(st.floats(0, 1), st.binary(max_size=3)), min_size=1, max_size=4))
def test_damaged_zips(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[float, bytes]]
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/b.json", APP_TEXT[:100])
        archive.writestr("latency-report.json", APP_TEXT)
    data = bytearray(path.read_bytes())
    for place, new in changes:
        at = int(place * len(data))
        data[at : at + len(new)] = new
    path.write_bytes(bytes(data))
    check(lambda: read_any(path))


texts = st.text(max_size=40).map(lambda text: text.replace("NANOFLUX", ""))


def report_of(run_id: str, note: str) -> str:
    return APP_TEXT.replace("iphone-1", run_id).replace('"NanoFluxApp"', json.dumps(note))


@given(
    st.from_regex(r"[\w.-]{1,64}", fullmatch=True, alphabet=st.characters(max_codepoint=126)),
    st.text(),
    st.randoms(use_true_random=False),
    st.lists(texts, max_size=5),
)
@settings(fast)
def test_a_run_survives_what_logs_do(
    run_id: str, note: str, rng: random.Random, noise: list[str]
) -> None:
    """Shuffled, doubled, cut copies, prefixed, among the lines of a run that is not whole."""
    text = report_of(run_id, note)
    lines = marker_lines(text, run_id)
    other = list(marker_lines(report_of("other-run", note), "other-run"))
    del other[rng.randrange(len(other))]
    copies = [line[: rng.randrange(len(line))] for line in lines] + rng.choices(lines, k=3)
    log = [*lines, *other, *copies, *noise]
    rng.shuffle(log)
    dressed = (
        rng.choice(["", "01-31 10:05 I App: ", "\x1b[32m", "<6>\t"])
        + line
        + rng.choice(["\n", "\r\n", "\x1b[0m\n", " <end>\n"])
        for line in log
    )
    assert read("".join(dressed), "log") == parse_report(text, "file")


@fast
@given(st.text(min_size=1), st.sets(st.integers(0, 40)))
def test_missing_lines_are_named(text: str, lost: set[int]) -> None:
    lines = marker_lines(text * (1 + 1500 // len(text)), "run")
    kept = [line for i, line in enumerate(lines) if i not in lost]
    missing = sorted({i + 1 for i in lost if i < len(lines)})
    if not kept or not missing:
        return
    with pytest.raises(InputError, match="no whole report") as error:
        read("\n".join(kept), "log")
    assert f"run run of {len(lines)} chunks lacks {missing[0]}" in str(error.value)


@fast
@given(st.text(min_size=1), st.integers(1, 64))
def test_lines_fit_every_log(text: str, length: int) -> None:
    lines = marker_lines(50 * text, "r" * length)
    assert all(line.isascii() and len(line) <= 833 for line in lines)
    assert all(len(line.split()[-1]) == CHUNK for line in lines[:-1])


def test_a_run_that_claims_a_million_lines_is_cheap_to_refuse() -> None:
    lines = [f"NANOFLUX_REPORT r{i} 1/999999 {'0' * 16} {'A' * CHUNK}" for i in range(5000)]
    with pytest.raises(InputError, match=r"lacks 2-999999; .*and 4995 more runs"):
        read("\n".join(lines), "log")


@pytest.mark.parametrize("run_id", ["", "a b", "x" * 65, "a/b", "ä", "a\n"])
def test_a_run_id_must_be_plain(run_id: str) -> None:
    with pytest.raises(InputError, match="use up to 64 letters"):
        marker_lines("{}", run_id)
