"""The page of a gate: what it says, that it says it safely, and that it stands on its own."""

from __future__ import annotations

import dataclasses
import re
from html.parser import HTMLParser
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanoflux_benchmarks.budget import Budget, Limits
from nanoflux_benchmarks.page import page
from nanoflux_benchmarks.session import Judgement
from nanoflux_benchmarks.validity import Expected
from nanoflux_benchmarks.verdict import Check, Interval, Power, Verdict
from nanoflux_mobile import report as contract
from nanoflux_mobile.report import Conditions, Image, LatencyReport, Launch, Load, Memory, Placement

HOSTILE = "</style></title><script>alert('x')</script> \" ' & <b> 🦊 \u202e\u200f\u0000 עברית"
SIZE_LIMIT = 1_500_000  # characters of a page with 2 x 50 launches of 100 images
PIXEL = 0.06  # places are written to a tenth of a pixel
SHARE = 5e-4  # and to four digits of a percentage

LIMITS = Limits(image_ms=2500, step_ms=233, load_first_ms=20_000, peak_bytes=1.8e9)
BUDGET = Budget("budget/1", "A 512 px picture in 2.5 s", LIMITS, image_side=512, name="mission")
WANTED = Expected(None, 30.0, 5, 10, 512, None)
COSTS = np.array([15.0, *[232.0, 178.0] * 5, 160.0])  # ms of text encoder, steps and decoder
LOADS = {"text_encoder": (900, 90), "denoiser": (14_500, 640), "decoder": (2_100, 180)}
THROTTLED = 3


def images(rng, launch, count, scale, throttles):
    """Two warm-ups and `count` images, each slower than the last; one launch throttles midway."""
    own, drawn, began = scale * rng.normal(1.0, 0.008), [], 800.0
    for i in range(count + 2):
        hot = throttles and launch == THROTTLED and i > count // 2
        slow = own * (1 + 0.002 * min(launch, 6) + 0.0004 * i) * rng.normal(1.0, 0.004)
        slow *= (1.13 if hot else 1.0) * (1.35 if i == 0 else 1.0)
        text, *steps, decoder = slow * COSTS * rng.normal(1.0, 0.01, len(COSTS))
        total = text + sum(steps) + decoder + rng.uniform(4, 9)
        thermal = "serious" if hot else "fair" if throttles and launch > THROTTLED else "nominal"
        drawn.append(Image(i < 2, began, began, total, text, tuple(steps), decoder, thermal))
        began += total + 40
    return tuple(drawn)


def launched(rng, k, count, scale, throttles):
    load = tuple(
        Load(name, "relaunch" if k else "first", ms[k > 0] * rng.normal(1, 0.05))
        for name, ms in LOADS.items()
    )
    state = Conditions("nominal", "nominal", 0.9, False, False, False, True)
    memory = Memory(int(1.46e9 + 2e7 * rng.normal()), "phys_footprint")
    start = f"2026-01-31T{10 + k // 30:02}:{2 * k % 60:02}:00Z"
    return Launch(start, state, load, images(rng, k, count, scale, throttles), memory)


def measured(seed=0, scale=1.0, launches=6, count=10, throttles=False, **fields) -> LatencyReport:
    rng = np.random.default_rng(seed)
    made = LatencyReport(
        schema="latency-report/1",
        run_id=f"run-{seed}",
        session="session-1",
        created_by=contract.Program("nanoflux-app", "0.1"),
        app=contract.App("io.nanoflux.mobile", "1.0", "release"),
        bundle=contract.BundleRef(f"{seed + 10:x}3" * 32, "nanoflux-small", "coreml"),
        device=contract.Device("ios", "iPhone17,2", "A18 Pro", 8 << 30, "19.1", "23B85", False),
        runtime=contract.Runtime("coreml", "19.1", "cpu_and_ne", None),
        workload=contract.Workload(512, 10, 0),
        launches=tuple(launched(rng, k, count, scale, throttles) for k in range(launches)),
        placement=(
            Placement("text_encoder", 1.0, 0.0, 0.0, None, None, True),
            Placement("denoiser", 0.9, 0.0, 0.06, None, None, False),
            Placement("decoder", None, None, None, 118, 120, None),
        ),
        numerics=contract.Numerics(45.0, 0),
        errors=(),
        complete=True,
    )
    return dataclasses.replace(made, **fields)


def totals(report):
    return [[image.total_ms for image in launch.measured] for launch in report.launches]


def judged(**fields) -> Judgement:
    """A candidate 6 % slower than its baseline, within its budget, its fourth launch throttled."""
    ours, theirs = measured(1, 1.05, throttles=True), measured(2)
    median = float(np.median(totals(ours)))
    ratio = median / float(np.median(totals(theirs)))
    slower, unclear = "slower by 5.5%, at least by 3.1%", "too noisy to rule out 12%; run again"
    checks = (
        Check("image within budget", "image", "ms", near(median, 0.02), 2500, "pass", "it is"),
        Check("peak memory", "memory", "bytes", near(1.49e9, 0), 1.8e9, "pass", "of any launch"),
        Check("load first within budget", "load_first", "ms", None, 20_000, "no_evidence", "none"),
        Check(
            "image against the baseline", "image", "ratio", near(ratio, 0.02), 1.03, "fail", slower
        ),
        Check(
            "text encoder against the baseline",
            "text_encoder",
            "ratio",
            near(1.021, 0.09),
            1.03,
            "no_evidence",
            unclear,
        ),
        Check(
            "decoder against the baseline",
            "decoder",
            "ratio",
            near(1.009, 0.018),
            1.03,
            "pass",
            "left alone",
        ),
    )
    power = Power("image", 1.018, 1.036), Power("text_encoder", 1.07, 1.11)
    verdict = Verdict("fail", (), checks, power)
    found = Judgement(verdict, ours, theirs, BUDGET, WANTED)
    return dataclasses.replace(found, **fields)


def near(value, share):
    return Interval(value, value * (1 - share), value * (1 + share))


class Page(HTMLParser):
    """A document as a flat list of elements with their text; balance checked, drawings parsed."""

    VOID = ("img", "link", "meta")

    def __init__(self, found: Judgement) -> None:
        super().__init__()
        self.html, self.open, self.shown = page(found), [], ""
        self.elements: list[tuple[str, dict[str, str], list[str]]] = []
        self.feed(self.html)
        self.close()
        assert self.open == []
        self.text = " ".join(self.shown.split())
        drawn = re.findall(r"<svg .*?</svg>", self.html, re.DOTALL)
        self.drawings = [ElementTree.fromstring(svg) for svg in drawn]
        self.plots = [svg for svg in self.drawings if svg.get("role") == "img"]

    def handle_starttag(self, tag, attrs):
        assert len(attrs) == len({name for name, _ in attrs}), f"{tag} repeats an attribute"
        self.elements.append((tag, dict(attrs), []))
        if tag not in self.VOID:
            self.open.append(self.elements[-1])

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] != "style":
            self.shown += data
        for _, _, texts in self.open:
            texts.append(data)

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]

    def told(self, tag: str) -> list[str]:
        """The words inside each element of a name."""
        return [" ".join("".join(t).split()) for name, _, t in self.elements if name == tag]

    def plot(self, words: str) -> ElementTree.Element:
        return next(svg for svg in self.plots if svg.get("aria-label").startswith(words))


def places(svg, kind):
    """(per cent across, pixels down) of the marks of a plot whose class has the word `kind`."""
    groups = [group for group in svg.iter("g") if kind in group.get("class").split()]
    return [(float(m.get("x")[:-1]), float(m.get("y"))) for group in groups for m in group]


def heights(svg):
    """A function from values to pixels down, read off the labels of the axis."""
    labels = [t for t in svg.iter("text") if t.get("class") == "tick-label end"]
    numbers = [(float(t.text), float(t.get("y")) - 4) for t in labels if t.text[0].isdigit()]
    (low, bottom), *_, (high, top) = sorted(numbers)
    return lambda value: bottom + (np.asarray(value) - low) / (high - low) * (top - bottom)


def change(found: Judgement, edit) -> Judgement:
    """The judgement with every image of the candidate edited."""
    launches = tuple(
        dataclasses.replace(launch, images=tuple(map(edit, launch.images)))
        for launch in found.report.launches
    )
    return dataclasses.replace(found, report=dataclasses.replace(found.report, launches=launches))


@pytest.fixture(scope="module")
def sample() -> Judgement:
    return judged()


@pytest.fixture(scope="module")
def shown(sample) -> Page:
    return Page(sample)


def test_the_page_is_well_formed_and_accessible(shown):
    assert shown.html.startswith("<!DOCTYPE html>")
    assert shown.all("html") == [{"lang": "en"}]
    ids = [attributes["id"] for _, attributes, _ in shown.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for link in shown.all("a") + shown.all("use"):
        assert link["href"][1:] in ids
    assert all("scope" in cell for cell in shown.all("th"))
    levels = [int(name[1]) for name, _, _ in shown.elements if re.fullmatch(r"h\d", name)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_every_chart_states_a_finding_and_has_words_in_its_place(shown):
    figures = shown.told("figure")
    assert len(figures) == len(shown.told("figcaption")) == 9
    assert all(re.match(r"[A-Z][^.]+\w.*\.", caption) for caption in shown.told("figcaption"))
    assert len(shown.plots) == 6
    assert all(len(plot.get("aria-label")) > 40 for plot in shown.plots)
    drawn = [svg for svg in shown.drawings if svg not in shown.plots]
    assert all(svg.get("aria-hidden") == "true" for svg in drawn)


def test_nothing_is_asked_of_the_network(shown):
    assert not re.search(r"https?:|url\(|@import|<script|<iframe|<image|\son\w+=", shown.html)
    for _, attributes, _ in shown.elements:
        for key in ("src", "href"):
            assert attributes.get(key, "#").startswith(("#", "data:,"))
    policy = next(meta["content"] for meta in shown.all("meta") if "http-equiv" in meta)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_it_tells_the_figures_of_the_report(sample, shown):
    rows, flat = totals(sample.report), np.concatenate(totals(sample.report))
    steps = [np.mean(i.step_ms) for launch in sample.report.launches for i in launch.measured]
    middles = np.median(rows, axis=1)
    peaks = [launch.memory.peak_bytes for launch in sample.report.launches]
    for told in (
        "FAIL: image against the baseline",
        f"image, median {np.median(flat):.4g} ms budget 2500 ms",
        f"slow image {np.quantile(flat, 0.9):.4g} ms",
        f"mean step, median {np.median(steps):.4g} ms budget 233 ms",
        f"{np.sum(flat <= 2500)} of 60 within the budget of 2500 ms",
        f"Launch 4 is the slowest, {middles[3] / np.median(middles) - 1:.0%}".replace("%", " %"),
        f"between {min(middles):.4g} ms and {max(middles):.4g} ms",
        f"The peak is {max(peaks) / 1e6:.1f} MB, in launch {np.argmax(peaks) + 1}",
        "6 x 10 12 warm-ups",
        "thermal state serious at its warmest",
        *("iPhone17,2", "A18 Pro", "19.1, 23B85", "512 px, 10 steps, seed 0", "45.0 dB"),
        *(sample.report.bundle.digest, sample.baseline.bundle.digest, "2026-01-31 10:00 UTC"),
        "Not wholly on the accelerator: denoiser.",
        *("neural engine 90 %", "CPU 6.0 %", "not said 4.0 %", "118 of 120 operations"),
        "image: equal runs differ by up to 1.8%; a slowdown of 3.6% is caught",
        "Slower: image by",
        "Budget mission: A 512 px picture in 2.5 s",
    ):
        assert told in shown.text


def test_every_check_is_in_the_table(sample, shown):
    rows = [
        row for row in shown.told("tr") if row.endswith(tuple(c.why for c in sample.verdict.checks))
    ]
    assert len(rows) == len(sample.verdict.checks)
    found = sample.verdict.checks[0].found
    bounds = f"{found.low:.4g} ms to {found.high:.4g} ms"
    assert rows[0] == f"image within budget {found.value:.4g} ms {bounds} 2500 ms pass it is"


def test_dots_of_the_session_lie_where_the_times_are(sample, shown):
    plot = shown.plot("Image times")
    images = [image for launch in sample.report.launches for image in launch.images]
    y = heights(plot)
    for state in ("nominal", "fair", "serious"):
        expected = [
            (100 * (i + 0.5) / len(images), float(y(image.total_ms)))
            for i, image in enumerate(images)
            if image.thermal == state and not image.warmup
        ]
        drawn = [place for place in places(plot, state) if place not in places(plot, "warm")]
        assert len(drawn) == len(expected) > 0
        assert np.allclose(drawn, expected, atol=PIXEL)
    assert len(places(plot, "warm")) == 12
    limit = next(line for line in plot.iter("line") if line.get("class") == "limit")
    assert abs(float(limit.get("y1")) - y(2500)) < PIXEL
    assert len([line for line in plot.iter("line") if line.get("class") == "border"]) == 5


def test_boxes_hold_the_middle_half_of_each_launch(sample, shown):
    plot = shown.plot("Distribution")
    y = heights(plot)
    for kind, report in (("ours", sample.report), ("theirs", sample.baseline)):
        boxes = [box for box in plot.iter("rect") if box.get("class") == f"box {kind}"]
        lines = [line for line in plot.iter("line") if line.get("class") == f"middle {kind}"]
        for row, box, line in zip(totals(report), boxes, lines, strict=True):
            low, middle, high = np.quantile(row, (0.25, 0.5, 0.75))
            assert abs(float(box.get("y")) - y(high)) < PIXEL
            assert abs(float(box.get("height")) - (y(low) - y(high))) < 2 * PIXEL
            assert abs(float(line.get("y1")) - y(middle)) < PIXEL
        assert np.allclose(
            [p[1] for p in places(plot, kind)], y(np.ravel(totals(report))), atol=PIXEL
        )


def test_ratios_lie_on_their_axis_with_the_limit_and_the_noise(sample, shown):
    plot = shown.plot("Ratios")
    labels = [t for t in plot.iter("text") if t.get("class") == "tick-label middle"]
    ticks = [(float(t.text[:-1]), float(t.get("x")[:-1])) for t in labels]
    slope, offset = np.polyfit(*np.transpose(ticks), 1)
    checks = [check for check in sample.verdict.checks if check.unit == "ratio"]
    bounds = [line for line in plot.iter("line") if "bounds" in line.get("class")]
    for check, line in zip(checks, bounds, strict=True):
        assert line.get("class") == f"bounds {check.outcome}"
        ends = [float(line.get(key)[:-1]) for key in ("x1", "x2")]
        assert np.allclose(
            ends, [slope * e + offset for e in (check.found.low, check.found.high)], atol=0.1
        )
    limits = [
        float(line.get("x1")[:-1]) for line in plot.iter("line") if line.get("class") == "limit"
    ]
    assert np.allclose(limits, slope * 1.03 + offset, atol=0.1)
    noise = [
        float(box.get("width")[:-1]) for box in plot.iter("rect") if box.get("class") == "noise"
    ]
    expected = [slope * (p.noise_floor - 1 / p.noise_floor) for p in sample.verdict.power]
    assert np.allclose(noise, expected, atol=0.1)


def test_steps_and_parts_are_drawn_to_scale(sample, shown):
    images = [image for launch in sample.report.launches for image in launch.measured]
    plot = shown.plot("Time of each step")
    medians = np.median([image.step_ms for image in images], axis=0)
    assert np.allclose([p[1] for p in places(plot, "ours")], heights(plot)(medians), atol=PIXEL)
    parts = np.array(
        [
            (
                i.text_encoder_ms,
                sum(i.step_ms),
                i.decoder_ms,
                i.total_ms - i.text_encoder_ms - sum(i.step_ms) - i.decoder_ms,
            )
            for i in images
        ]
    )
    medians = np.median(parts, axis=0)
    pieces = [a["style"] for a in shown.all("span") if a.get("class", "").startswith("piece")]
    widths = [float(style.removeprefix("width:")[:-1]) for style in pieces[:4]]
    assert np.allclose(widths, 100 * medians / 2500, atol=0.01)  # the track ends at the budget
    assert (
        f"steps {medians[1]:.4g} ms, {medians[1] / sum(medians):.0%}".replace("%", " %")
        in shown.text
    )


def test_loads_are_told_by_state(sample, shown):
    first, *later = sample.report.launches
    again = np.median([[load.ms for load in launch.load] for launch in later], axis=0)
    told = (
        f"{sum(load.ms for load in first.load):.0f} ms for the first time and {sum(again):.4g} ms"
    )
    assert f"The graphs load in {told} in a new process." in shown.text
    assert f"denoiser {again[1]:.4g} ms" in shown.text


def test_raw_numbers_are_all_there(sample, shown):
    tables = [
        texts for name, attributes, texts in shown.elements if attributes.get("class") == "raw"
    ]
    assert len(tables) == 2
    for launch in (*sample.report.launches, *sample.baseline.launches):
        for image in launch.images:
            assert (
                f"<td>{image.total_ms:.6g}</td><td>{image.text_encoder_ms:.6g}</td>" in shown.html
            )


@pytest.mark.parametrize(
    ("outcome", "words"), [("pass", "Pass: 1 checks"), ("fail", "FAIL"), ("no_evidence", "No evid")]
)
def test_the_outcome_heads_the_page(sample, outcome, words):
    verdict = Verdict(
        outcome, (), (dataclasses.replace(sample.verdict.checks[0], outcome=outcome),), ()
    )
    shown = Page(dataclasses.replace(sample, verdict=verdict, baseline=None))
    assert shown.told("h1")[0].startswith(words)
    assert shown.all("h1") == [{"class": outcome}]


def test_reasons_are_told_and_a_flood_of_them_is_counted(sample):
    reasons = tuple(f"reason {i} of many" for i in range(5000))
    verdict = Verdict("no_evidence", reasons, (), ())
    shown = Page(dataclasses.replace(sample, verdict=verdict))
    assert "reason 0 of many" in shown.text
    assert "and 4,980 reasons more" in shown.text
    assert "None of them counts" in shown.text
    assert "Nothing was checked" in shown.text
    assert "No stage could be compared" in shown.text
    assert len(shown.html) < SIZE_LIMIT / 10


def bare(image):
    return dataclasses.replace(image, text_encoder_ms=None, step_ms=(), decoder_ms=None)


def decoder_alone(image):
    return dataclasses.replace(bare(image), total_ms=None, decoder_ms=160.0, thermal=None)


def instant(image):
    return dataclasses.replace(bare(image), total_ms=0.0, decoder_ms=0.0, step_ms=(0.0,) * 10)


def warming(image):
    return dataclasses.replace(image, warmup=True)


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (bare, ("no step times", "no times of single steps", "all of its stages timed")),
        (decoder_alone, ("no times of whole images", "Times of one decoder")),
        (instant, ("Median 0 ms over 60 images", "All 10 steps take about 0 ms")),
        (warming, ("no times after the warm-ups", "6 x 0 72 warm-ups")),
    ],
)
def test_times_that_a_report_lacks_are_named(sample, edit, told):
    shown = Page(dataclasses.replace(change(sample, edit), baseline=None, budget=None))
    for words in (*told, "No baseline was given", "no budget"):
        assert words in shown.text
    assert not re.search(r"\b(nan|inf|None)\b", shown.text)


def test_a_report_of_nothing_is_a_page(sample):
    empty = dataclasses.replace(sample.report, launches=(), placement=(), numerics=None)
    shown = Page(dataclasses.replace(sample, report=empty, baseline=None, budget=None))
    for words in (
        *("no load times", "how much memory a launch held", "where its graphs ran"),
        *("0 x 0", "not replayed", "thermal state not said", "no times after the warm-ups"),
    ):
        assert words in shown.text
    assert not shown.plots


def test_a_budget_far_from_the_times_does_not_flatten_them(sample):
    limits = Limits(image_ms=60_000, step_ms=1)
    shown = Page(dataclasses.replace(sample, budget=dataclasses.replace(BUDGET, limits=limits)))
    assert "The budget of 60000 ms lies above the plot." in shown.text
    assert "The budget of 1 ms lies below the plot." in shown.text
    assert not [
        line for line in shown.plot("Image times").iter("line") if line.get("class") == "limit"
    ]


def hostile(text: str) -> Judgement:
    """A judgement with `text` wherever a report, a budget or a reason can put text."""
    found = judged()
    small = measured(1, launches=2, count=2)
    report = dataclasses.replace(
        small,
        created_by=contract.Program(text, text),
        app=contract.App(text, text, "release"),
        bundle=contract.BundleRef(text, text, text),
        device=contract.Device("ios", text, text, 1, text, text, None),
        runtime=contract.Runtime(text, text, text, None),
        launches=tuple(
            dataclasses.replace(each, memory=Memory(1, text)) for each in small.launches
        ),
    )
    checks = (dataclasses.replace(found.verdict.checks[0], why=text, outcome="fail"),)
    return Judgement(
        Verdict("no_evidence", (text, text), checks, ()),
        report,
        report,
        dataclasses.replace(BUDGET, name=text, summary=text),
        WANTED,
    )


def test_text_from_outside_stays_text():
    shown = Page(hostile(HOSTILE))
    assert not shown.all("script")
    assert len(shown.all("style")) == len(shown.all("title")) == 1
    assert len(shown.all("b")) == shown.html.count("</b>")
    kept = "</style></title><script>alert('x')</script> \" ' & <b> 🦊"
    assert shown.text.count(kept) > 20
    assert "עברית" in shown.text
    assert not re.search("[\u0000\u200f\u202a-\u202e\u2066-\u2069]", shown.html)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(st.characters(), max_size=60))
def test_any_text_leaves_the_page_as_it_is(text):
    shown = Page(hostile(text))
    assert [name for name, _, _ in shown.elements] == SKELETON
    assert shown.html.encode()


SKELETON = [name for name, _, _ in Page(hostile("plain")).elements]


def test_endless_text_is_cut():
    shown = Page(hostile("x" * 3_000_000))
    assert len(shown.html) < SIZE_LIMIT / 10
    assert "x" * 300 not in shown.html


def test_fifty_launches_of_a_hundred_images_stay_small(sample):
    ours, theirs = measured(1, 1.05, 50, 100, True), measured(2, 1.0, 50, 100)
    shown = Page(dataclasses.replace(sample, report=ours, baseline=theirs))
    assert len(shown.html) < SIZE_LIMIT
    assert "of 5,100 images are drawn" in shown.text
    plot = shown.plot("Image times")
    y = heights(plot)
    drawn = {place[1] for place in places(plot, "mark")}
    for row in totals(ours):
        for end in (min(row), max(row)):
            assert min(abs(y(end) - place) for place in drawn) < PIXEL


def test_a_thousand_launches_stay_small(sample):
    one = sample.report.launches[0]
    short = dataclasses.replace(one, images=one.images[:3])
    report = dataclasses.replace(sample.report, launches=(short,) * 1000)
    shown = Page(dataclasses.replace(sample, report=report, baseline=None))
    assert len(shown.html) < SIZE_LIMIT / 5
    assert "60 of 1,000 launches are drawn" in shown.text
    assert "180 of them, evenly spaced" in shown.text
