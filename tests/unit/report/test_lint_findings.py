"""What becomes of findings: counted up, let pass with a reason, told in words."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import typer

from nanoflux_export import commands, inspecting, verify
from nanoflux_export.bundle import target_named
from nanoflux_export.findings import (
    explain_finding,
    explain_unused,
    lint_errors,
    merged,
    places,
    told,
    unused,
    with_reasons,
)
from nanoflux_export.inspecting import Inspection
from nanoflux_mobile.manifest import ComponentEntry
from nanoflux_mobile.parity import Parity
from nanoflux_mobile.plugins import names
from nanoflux_mobile.spec import Suppression

KNOWN = Suppression("ane/rank", "denoiser", "measured on a phone: no slower")


def test_findings_of_several_files_are_counted_up_rule_by_rule(finding):
    files = (
        finding(count=2, ops=("a", "b")),
        finding(count=5, rule="ane/tile"),
        finding(count=3, ops=("b", "c", "d")),
        finding(count=7, component="decoder"),
    )
    found = merged(files)
    told = [(f.component, f.rule, f.count) for f in found]
    assert told == [
        ("denoiser", "ane/rank", 5),
        ("denoiser", "ane/tile", 5),
        ("decoder", "ane/rank", 7),
    ]
    assert found[0].ops == ("a", "b", "c")


def test_a_recipe_lets_a_rule_pass_in_one_component(finding):
    found = with_reasons((finding(), finding(component="decoder")), (KNOWN,))
    assert [f.suppressed for f in found] == [KNOWN.reason, ""]
    assert lint_errors(found) == (finding(component="decoder"),)


@pytest.mark.parametrize("severity", ["warning", "note"])
def test_only_errors_fail(finding, severity):
    assert lint_errors((finding(severity=severity),)) == ()
    assert lint_errors((finding(),)) == (finding(),)


@pytest.mark.parametrize(
    ("change", "left"),
    [({}, ()), ({"rule": "ane/tile"}, (KNOWN,)), ({"component": "decoder"}, (KNOWN,))],
)
def test_a_suppression_that_nothing_needs_is_told(finding, change, left):
    assert unused((finding(**change),), (KNOWN,)) == left
    assert all("take the suppression out" in explain_unused(item) for item in left)


def test_a_finding_in_words(finding):
    told = explain_finding(finding(count=2))
    assert told == (
        "denoiser breaks ane/rank 2 times (reshape_7, reshape_9): refused by Core ML. To mend it, "
        "reshape to four axes (https://example.org/rules)"
    )
    assert "ane/rank once: refused" in explain_finding(finding(count=1, ops=()))


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({}, "reshape_7, reshape_9, 1,232 more"),
        ({"count": 2}, "reshape_7, reshape_9"),
        ({"ops": ()}, ""),
    ],
)
def test_where_a_finding_is(finding, change, where):
    assert places(finding(**change)) == where


def test_a_list_tells_severity_and_why_a_finding_may_pass(finding):
    line, below = told(finding())
    assert line == "error  denoiser  ane/rank  1,234 times (reshape_7, reshape_9)"
    assert below == "refused by Core ML; reshape to four axes"
    line, below = told(finding(suppressed="known"))
    assert line.startswith("error, suppressed  ")
    assert below == "refused by Core ML; the recipe lets it pass: known"


def linted(monkeypatch, findings):
    """The files of a bundle, of which a target finds this; what it is asked is in the list."""
    asked = []

    def lint(path, component, profile=""):
        asked.append((path.name, component, profile))
        return findings

    target = SimpleNamespace(lint=lint, PROFILES={"gpu": "gpu", "cpu": "cpuOnly"})
    monkeypatch.setattr(verify, "target_named", lambda name: target)
    return asked


def test_a_bundle_is_linted_for_the_processor_it_says(monkeypatch, manifest, finding, tmp_path):
    asked = linted(monkeypatch, (finding(count=1, ops=("a",)),))
    made = manifest(suppress=(KNOWN,))
    entry: ComponentEntry = made.components[0]
    (chunk,) = entry.chunks
    two = (chunk, replace(chunk, path="components/b.mlpackage"))
    for unit, profile in (("cpuOnly", "cpu"), ("gpu", "gpu"), ("cpuAndNeuralEngine", "")):
        asked.clear()
        there = replace(made, components=(replace(entry, compute_unit=unit, chunks=two),))
        (found,) = verify.lint(tmp_path, there)
        assert (found.count, found.suppressed) == (2, KNOWN.reason)
        assert [one[1:] for one in asked] == [("denoiser", profile)] * 2


@pytest.mark.parametrize("target", names("nanoflux_export.targets"))
def test_compute_units_tell_profiles_apart(target):
    units = target_named(target).PROFILES.values()
    assert len(set(units)) == len(units)


def exit_code(call):
    try:
        call()
    except typer.Exit as ended:
        return ended.exit_code
    return 0


@pytest.mark.parametrize("as_json", [False, True])
@pytest.mark.parametrize(("change", "code"), [({}, 1), ({"suppressed": "known"}, 0)])
def test_inspect_ends_with_1_for_an_error(monkeypatch, finding, capsys, as_json, change, code):
    found = Inspection("bundle", "x", lint=(finding(**change),))
    monkeypatch.setattr(inspecting, "inspect", lambda path, lint: found)
    assert exit_code(lambda: commands.inspect("x", lint=True, as_json=as_json)) == code
    out, err = capsys.readouterr()
    if as_json:
        assert json.loads(out)["lint"][0]["source"] == "https://example.org/rules"
    else:
        assert ("denoiser breaks ane/rank" in err) is bool(code)


@pytest.mark.parametrize(("change", "code"), [({}, 1), ({"severity": "warning"}, 0)])
def test_verify_ends_with_1_for_an_error(monkeypatch, finding, capsys, change, code):
    figures = (Parity("denoiser", "fp32", 50.0, 40.0),)
    found = verify.Verification(figures, (finding(ops=("[red]a",), **change),), (KNOWN,))
    monkeypatch.setattr("nanoflux_export.bundle.open_bundle", lambda path: path)
    monkeypatch.setattr(verify, "verify", lambda bundle, journal: found)
    assert exit_code(lambda: commands.verify("x")) == code
    told = capsys.readouterr().err
    assert "the recipe suppresses ane/rank in denoiser" in " ".join(told.split())
    assert "[red]a" in told
