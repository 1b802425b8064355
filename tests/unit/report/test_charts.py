"""The parts of the report: verdict, scales, shares, stages, words and contrast."""

from __future__ import annotations

import math
import re
from importlib import resources

import pytest

from nanoflux_export.report.parity_chart import headline, margins, parity_chart, scale_top_db
from nanoflux_export.report.sizes import memory_plan, size_table
from nanoflux_export.report.stages import Stage, stage_chart, stages_of
from nanoflux_export.report.words import decibels, duration, listing
from nanoflux_export.work import Step
from nanoflux_mobile.manifest import MemoryStep
from nanoflux_mobile.markup import bar, element
from nanoflux_mobile.parity import Parity

LEAST_CONTRAST = 4.5  # WCAG 2.2 AA for text of normal size
LEAST_CONTRAST_OF_BARS = 1.8  # the number beside a bar says the same, so it may be softer
WRITTEN = 0.0051  # percent: shares are written with two decimals


def widths(html: str, kind: str) -> list[float]:
    return [float(w) for w in re.findall(rf'class="{kind}" style="\w+:([\d.]+)%"', html)]


def test_a_verdict_needs_every_figure_of_every_bundle(manifest):
    good, silent = manifest(), manifest("small", parity=())
    broken = manifest(psnr=math.nan)
    cases = [
        ((), False, "Nothing was measured", 0),
        ((silent,), False, "Nothing was measured", 1),
        ((good, silent), False, "1 bundle not measured", 1),
        ((broken,), False, "1 of 3 figures misses its floor", 1),
        ((broken, silent, broken), False, "2 of 6 figures miss their floors", 3),
        ((good, good), True, "All 6 figures hold", 0),
    ]
    for manifests, *expected in cases:
        verdict = headline(manifests)
        assert [verdict.holds, verdict.text, len(verdict.misses)] == expected


def test_the_least_margin_counts_what_is_no_number(manifest):
    rooms = [margin.db for margin in margins((manifest(psnr=61.5),))]
    assert rooms == pytest.approx([1.5, 13.6, 185.0])
    assert margins((manifest(psnr=59.0),))[0].text == "-1.0 dB"
    assert margins((manifest(psnr=math.nan),))[0].db == -math.inf


def test_bars_of_all_bundles_share_one_scale(manifest):
    first = manifest(parity=(Parity("a", "rounded", 30.0, 15.0), Parity("a", "half", -3.0, 6.0)))
    second = manifest(parity=(Parity("b", "rounded", 118.0, 60.0),))
    html = parity_chart((first, second))
    assert widths(html, "tick") == pytest.approx([12.5, 5.0, 50.0], abs=WRITTEN)
    bars = re.findall(r'class="fill [\w ]+" style="width:([\d.]+)%', html.partition("chart")[2])
    assert [float(width) for width in bars] == pytest.approx([25.0, 0.0, 98.33], abs=WRITTEN)


@pytest.mark.parametrize(
    ("psnr", "floor", "top"),
    [(59.0, 40.0, 60), (60.0, 40.0, 60), (10.0, 61.0, 80), (math.nan, -1.0, 20), (200.0, 0.0, 200)],
)
def test_the_scale_holds_every_number(psnr, floor, top):
    assert scale_top_db([Parity("a", "fp32", psnr, floor)]) == top


@pytest.mark.parametrize(("share", "width"), [(-1, 0), (0.25, 25), (7, 100), (math.nan, 0)])
def test_a_bar_stays_on_its_track(share, width):
    assert widths(bar(share), "fill") == [width]


def test_shares_are_of_the_same_graph_of_the_same_runtime(manifest, page):
    bundles = (
        manifest(weights=1000),
        manifest("small", scheme="int8", weights=250),
        manifest("small", "litert", scheme="int8", weights=500),
        manifest("other", scheme="int8", weights=500, source_sha256="00" * 32),
    )
    graph = page(size_table(bundles)).text.partition("denoiser")[2].partition("whole")[0]
    shares = re.findall(r"(?<=B)(\d+%|none here)", graph)
    assert shares == ["100%", "25%", "none here", "none here"]
    assert widths(size_table(bundles), "fill")[:4] == [100, 25, 50, 50]


def test_the_memory_plan_shows_each_step_on_one_scale(manifest, page):
    plan = (
        MemoryStep("load", "denoiser", 800),
        MemoryStep("load", "decoder", 1000),
        MemoryStep("unload", "denoiser", 200),
    )
    html = memory_plan((manifest(memory_plan=plan), manifest(memory_plan=())))
    heights = re.findall(r"height:([\d.]+)%", html)
    assert [float(height) for height in heights] == [80, 100, 20]
    text = page(html).text
    assert "peak 1.0 kB" in text
    assert "no plan stated" in text


def test_steps_of_one_name_are_one_stage(page):
    steps = (
        Step("run", 1.0),
        Step("convert", 5.0),
        Step("run", 2.5),
        Step("convert", 0.0, reused=True),
        Step("store", 0.0, reused=True),
    )
    assert stages_of(steps) == (
        Stage("convert", 5.0, 1, 1),
        Stage("run", 3.5, 2, 0),
        Stage("store", 0.0, 0, 1),
    )
    html = stage_chart(steps)
    assert widths(html, "fill") == [100, 70, 0]
    text = page(html).text
    assert "8.5 s, 2 of 5 steps reused" in text
    for line in ("convert  5.0 s 1 reused", "run  3.5 s 2 times", "store  reused"):
        assert line in text


def test_only_markup_goes_in_as_it_stands():
    inner = element("i", "a & b")
    assert element("p", inner, "<i>", title='"') == (
        '<p title="&quot;"><i>a &amp; b</i>&lt;i&gt;</p>'
    )
    assert element("p", inner + "<i>") == "<p>&lt;i&gt;a &amp;amp; b&lt;/i&gt;&lt;i&gt;</p>"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0314, "31 ms"),
        (0.9996, "1.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (119.7, "2 min 00 s"),
        (3661, "1 h 1 min"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


def test_words():
    assert [listing(["a", "b", "c"][:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    figures = [decibels(v) for v in (85.26, 200.0, -math.inf, math.nan)]
    assert figures == ["85.3 dB", "identical", "not finite", "not finite"]


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


def test_colours_can_be_read_in_both_themes():
    css = (resources.files("nanoflux_export") / "report" / "page.css").read_text("utf-8")
    themes = [dict(re.findall(r"--(\w+): (#\w{6})", block)) for block in css.split("@media")[:2]]
    assert [theme.keys() for theme in themes] == [themes[0].keys()] * 2
    for theme in themes:
        for text in ("ink", "soft", "accent", "bad"):
            assert contrast(theme[text], theme["paper"]) >= LEAST_CONTRAST, text
        for fill in ("accent", "pale", "bad"):
            assert contrast(theme[fill], theme["track"]) >= LEAST_CONTRAST_OF_BARS, fill
    assert luminance(themes[0]["paper"]) > 0.5 > luminance(themes[1]["paper"])
