"""A verdict in every form says the same, and nothing in a report becomes markup."""

from __future__ import annotations

import dataclasses
import io
from xml.etree import ElementTree as xml

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from nanoflux_benchmarks.render import figure, headline, junit, markdown, power_text, table
from nanoflux_benchmarks.verdict import EXIT_CODES, Check, Interval, Power, Verdict

CHECKS = (
    Check("image within budget", "image", "ms", Interval(2280, 2250.4, 2310), 2500, "pass", "fine"),
    Check("step over", "step", "ms", Interval(240, 238, 242), 233, "fail", "even the lower bound"),
    Check("decoder", "decoder", "ratio", Interval(1.02, 0.98, 1.2), 1.03, "no_evidence", "noisy"),
    Check("peak memory", "memory", "bytes", Interval(1e9, 1e9, 1e9), 2e9, "pass", "the most"),
    Check("load", "load_first", "ms", None, 5000, "no_evidence", "no such sample"),
)
VERDICT = Verdict("fail", (), CHECKS, (Power("image", 1.012, 1.034),))


def test_exit_codes_are_the_contract():
    assert EXIT_CODES == {"pass": 0, "fail": 1, "no_evidence": 2}


def test_figures_have_units():
    assert figure(2279.6, "ms") == "2280 ms"
    assert figure(1.0449, "ratio") == "1.045x"
    assert figure(1_234_567_890, "bytes") == "1234.6 MB"


def test_power_is_a_sentence():
    expected = "image: equal runs differ by up to 1.2%; a slowdown of 3.4% is caught"
    assert power_text(VERDICT.power[0]) == expected


def test_the_table_holds_every_check_and_its_outcome():
    out = io.StringIO()
    Console(file=out, width=200).print(table(VERDICT))
    text = out.getvalue()
    assert text.startswith("FAIL: step over")
    for check in CHECKS:
        assert check.name in text
        assert check.why in text
    assert text.count("no evidence") == 2


def test_markdown_is_a_table_with_one_row_per_check():
    lines = markdown(VERDICT, "small on iPhone17,2").splitlines()
    assert lines[0] == "### small on iPhone17,2: FAIL"
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 2 + len(CHECKS)
    assert len({row.count(" | ") for row in rows}) == 1
    assert lines[-1].startswith("- image: equal runs")


def test_junit_counts_what_it_lists():
    suite = xml.fromstring(junit(VERDICT, "small").encode())
    assert suite.tag == "testsuite"
    cases = suite.findall("testcase")
    assert len(cases) == int(suite.get("tests")) == 1 + len(CHECKS)
    assert len(suite.findall("*/failure")) == int(suite.get("failures")) == 1
    assert len(suite.findall("*/error")) == int(suite.get("errors")) == 2


def test_no_evidence_is_an_error_of_the_evidence_case():
    verdict = dataclasses.replace(VERDICT, outcome="no_evidence", reasons=("hot", "slept"))
    assert headline(verdict) == "no evidence: 2 reasons"
    evidence = xml.fromstring(junit(verdict, "small").encode())[0]
    assert evidence.find("error").text == "hot\nslept"
    assert "- hot\n- slept\n" in markdown(verdict, "small")


HOSTILE = [
    "<script>alert(1)</script>",
    "| a | b |\n|---|",
    "[red]x[/red] [link=file:///]y",
    "![x](http://a/b)",
    "]]> & \x00 \x1b[31m \ud800",
    "@everyone `rm`",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_a_report_says_stays_text(text):
    check = dataclasses.replace(CHECKS[0], name=text, why=text)
    verdict = Verdict("no_evidence", (text,), (check,), ())
    xml.fromstring(junit(verdict, text).encode("utf-8", "strict"))
    written = markdown(verdict, text)
    assert "<script" not in written.replace("\\<", "")
    assert "](" not in written
    assert "@everyone" not in written.replace("\\@", "")
    assert len([line for line in written.splitlines() if line.startswith("|")]) == 3
    out = io.StringIO()
    Console(file=out, width=400, force_terminal=False).print(table(verdict))


@given(st.text())
def test_any_text_makes_well_formed_xml_and_one_markdown_row(text):
    verdict = Verdict("fail", (), (dataclasses.replace(CHECKS[1], name=text, why=text),), ())
    xml.fromstring(junit(verdict, text).encode())
    assert sum(line.startswith("|") for line in markdown(verdict, text).splitlines()) == 3
