"""The lint table of the report: severity in words, where, why, and who says so."""

from __future__ import annotations

import pytest

from nanoflux_export.report_html import render


def shown(report, page, manifest, *findings):
    return page(render(report(manifests=(manifest(lint=findings),))))


def test_a_finding_tells_severity_place_reason_and_source(manifest, finding, report, page):
    parsed = shown(report, page, manifest, finding())
    assert parsed.by_class["severity"] == ["error"]
    assert "reshape_7, reshape_9, 1,232 more" in parsed.text
    (link,) = (link for link in parsed.all("a") if "rel" in link)
    assert (link["href"], link["rel"]) == ("https://example.org/rules", "noreferrer")


def test_errors_come_first_and_what_is_let_pass_last(manifest, finding, report, page):
    passed = finding(rule="ane/c", suppressed="known since May")
    found = (finding(rule="ane/a", severity="note"), passed, finding(rule="ane/b"))
    parsed = shown(report, page, manifest, *found)
    assert parsed.by_class["severity"] == ["error", "note", "error, suppressed"]
    assert [parsed.text.index(f"ane/{name}") for name in "bac"] == sorted(
        parsed.text.index(f"ane/{name}") for name in "bac"
    )
    assert "lets it pass: known since May" in parsed.text


@pytest.mark.parametrize(
    "source", ["javascript:alert(1)", "http://example.org", "data:text/html,x", "an issue"]
)
def test_only_a_safe_source_is_a_link(manifest, finding, report, page, source):
    parsed = shown(report, page, manifest, finding(source=source))
    assert not [link for link in parsed.all("a") if "rel" in link]
    assert source in parsed.text


def test_a_source_stays_inside_its_attribute(manifest, finding, report, page):
    source = 'https://example.org/"><script>x</script>'
    parsed = shown(report, page, manifest, finding(source=source))
    assert not parsed.all("script")
    assert source in [link["href"] for link in parsed.all("a")]
