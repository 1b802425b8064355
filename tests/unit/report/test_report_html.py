"""The report page: what it says, that it says it safely, and that it stands on its own."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
from collections import Counter
from html.parser import HTMLParser
from importlib import resources

import numpy as np
import pytest
from PIL import Image

from nanoflux_export.report.gallery import GAIN
from nanoflux_export.report.markup import bar
from nanoflux_export.report.parity_chart import headline
from nanoflux_export.report.stages import Stage, stages_of
from nanoflux_export.report.words import duration, listing
from nanoflux_export.report_html import Report, Row, render
from nanoflux_export.work import Step
from nanoflux_mobile.manifest import (
    Artifact,
    Canvas,
    ComponentEntry,
    Finding,
    Manifest,
    MemoryStep,
    RecipeEntry,
    TokenizerEntry,
)
from nanoflux_mobile.parity import Parity
from nanoflux_mobile.spec import Floors, TensorSpec

VOID = {"img", "link", "meta"}
HOSTILE = "</style></title><script>alert('x')</script> \" ' & <b> 🦊 \u202e"
SIZE_LIMIT = 500_000  # bytes of a page with six prompts and five runtimes of 64 px
LEAST_CONTRAST = 4.5  # WCAG 2.2 AA for text of normal size
TOLERANCE = 0.011  # percent: the page writes two decimals


class Page(HTMLParser):
    """A document as a flat list of elements, with the text inside each class; balance checked."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.html, self.open, self.text = html, [], ""
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.by_class: dict[str, list[str]] = {}
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names)), f"{tag} repeats an attribute"
        self.elements.append((tag, dict(attrs)))
        classes = tuple((dict(attrs).get("class") or "").split())
        for name in classes:
            self.by_class.setdefault(name, []).append("")
        if tag not in VOID:
            self.open.append((tag, classes))

    def handle_endtag(self, tag):
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open and self.open[-1][0] != "style":
            self.text += data
        for _, classes in self.open:
            for name in classes:
                self.by_class[name][-1] += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]


def manifest(recipe="fp16", target="coreml", scheme="fp16", weights=2_345_678, psnr=81.27, **more):
    tensor = TensorSpec("latents", ("batch",), (1,), "float32")
    entry = ComponentEntry(
        name="denoiser",
        path="components/denoiser.mlpackage",
        scheme=scheme,
        compute_unit="cpuAndNeuralEngine",
        functions=("main",),
        weight_bytes=weights,
        inputs=(tensor,),
        outputs=(tensor,),
        floors=Floors(60.0, 30.0),
    )
    plan = (MemoryStep("load", "denoiser", weights), MemoryStep("unload", "denoiser", 0))
    made = Manifest(
        schema="bundle/1",
        family="nanoflux",
        target=target,
        recipe=RecipeEntry(recipe, "ab" * 32, {}),
        source_sha256="cd" * 32,
        components=(entry,),
        memory_plan=plan,
        canvas=Canvas(16, 8, 8, 1, 64),
        sigmas=(1.0, 0.5, 0.0),
        tokenizer=TokenizerEntry("tokenizer/tokenizer.json", "<pad>", 16),
        image_floors=Floors(40.0, 15.0),
        parity=(
            Parity("denoiser", "rounded", psnr, 60.0),
            Parity("denoiser", "fp32", 43.6, 30.0),
            Parity("image", "half", 200.0, 15.0),
        ),
        lint=(Finding("denoiser", "rank-over-five", 1234, "reshape to four axes"),),
        tools={"torch": "2.13.0", "coremltools": "9.0"},
        created_by="nanoflux-mobile 0.1.0",
        files=(Artifact("schedule.json", "ef" * 32, 241),),
    )
    return dataclasses.replace(made, **more)


def pictures(labels=("PyTorch", "a", "b"), side=64, seed=0):
    rng = np.random.default_rng(seed)
    base = np.repeat(np.repeat(rng.integers(0, 256, (8, 8, 3)), side // 8, 0), side // 8, 1)
    return {
        label: np.clip(base + rng.integers(-i, i + 1, base.shape), 0, 255).astype(np.uint8)
        for i, label in enumerate(labels)
    }


def report(**changes):
    rows = (Row("a red circle", pictures()), Row("two crosses", pictures(seed=1)))
    manifests = (manifest(), manifest("small", scheme="palette4-g16", weights=703_703, psnr=66.04))
    steps = (Step("convert denoiser", 12.34), Step("convert denoiser", 0.0, reused=True))
    made = Report("a title", "what this run was", rows, manifests, steps)
    return dataclasses.replace(made, **changes)


def decoded(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_the_page_is_well_formed_and_accessible():
    html = render(report())
    page = Page(html)
    assert html.startswith("<!DOCTYPE html>")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(link["href"][1:] in ids for link in page.all("a"))
    assert all(image["alt"] and image["width"] and image["height"] for image in page.all("img"))
    assert all("scope" in cell for cell in page.all("th"))
    levels = [int(name[1]) for name, _ in page.elements if re.fullmatch(r"h\d", name)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in zip(levels, levels[1:], strict=False))
    assert page.all("html") == [{"lang": "en"}]


def test_it_tells_every_figure_size_prompt_and_origin():
    page = Page(render(report()))
    assert page.by_class["line"][1::4] or page.by_class["value"]
    for told in (
        *("81.3 dB", "66.0 dB", "43.6 dB", "identical", "floor 60.0 dB", "floor 30.0 dB"),
        *("2,345,678", "2.3 MB", "703,703", "703.7 kB", "30%", "palette4-g16", "241"),
        *("a red circle", "two crosses", "a title", "what this run was"),
        *("rank-over-five", "1,234", "reshape to four axes", "load", "unload"),
        *("ab" * 32, "cd" * 32, "torch 2.13.0", "coremltools 9.0", manifest().digest),
        *("12.3 s", "1 of 2 steps reused", "64 px, 2 steps", "fp16-coreml", "small-coreml"),
    ):
        assert told in page.text
    assert [text.split()[-1] for text in page.by_class["line"][1:4]] == ["holds"] * 3
    assert "All 6 figures hold" in page.text
    assert "never run on a phone or on a Mac" in page.text.replace("ever run", "never run")


def test_failing_figures_are_named_first():
    bad = manifest("small", "litert", psnr=math.nextafter(60.0, 0.0))
    bad = dataclasses.replace(bad, parity=(*bad.parity, Parity("decoder", "fp32", -math.inf, 30.0)))
    verdict = headline((manifest(), bad))
    assert not verdict.holds
    assert verdict.text == "2 of 7 figures miss their floors"
    assert [re.split(r"[:,] ", line)[:2] for line in verdict.misses] == [
        ["small-litert", "denoiser"],
        ["small-litert", "decoder"],
    ]
    page = Page(render(report(manifests=(manifest(), bad))))
    assert page.text.index(verdict.misses[1]) < page.text.index("What was checked")
    assert sum(text.endswith("misses") for text in page.by_class["line"]) == 2
    assert len(page.by_class["missed"]) == 4  # line and bar of each


@pytest.mark.parametrize(
    ("manifests", "text"),
    [
        ((), "Nothing was measured"),
        ((manifest(parity=()),), "Nothing was measured"),
        ((manifest(), manifest("small", parity=())), "1 bundle not measured"),
        ((manifest(psnr=math.nan),), "1 of 3 figures misses its floor"),
    ],
)
def test_what_was_not_measured_does_not_hold(manifests, text):
    verdict = headline(manifests)
    assert (verdict.holds, verdict.text) == (False, text)
    assert len(verdict.misses) == len(manifests[-1:])
    Page(render(report(manifests=manifests)))


def test_an_empty_report_is_a_page():
    page = Page(render(Report("", "", (), (), ())))
    assert "No pictures were drawn" in page.text
    assert "No step was recorded" in page.text
    assert "Nothing found" in Page(render(report(manifests=(manifest(lint=()),)))).text


def test_nothing_is_asked_of_the_network():
    page = Page(render(report()))
    assert not re.search(r"https?://|url\(|@import|<script|<iframe|\bon\w+=", page.html)
    for _, attributes in page.elements:
        for key in ("src", "href"):
            assert attributes.get(key, "#").startswith(("#", "data:"))
        assert not {"srcset", "poster", "action"} & attributes.keys()
    policy = next(m["content"] for m in page.all("meta") if "http-equiv" in m)
    assert "default-src 'none'" in policy


def test_text_from_outside_stays_text():
    entry = dataclasses.replace(manifest().components[0], scheme=HOSTILE, compute_unit=HOSTILE)
    hostile = manifest(
        recipe=HOSTILE,
        target=HOSTILE,
        components=(entry,),
        parity=(Parity(HOSTILE, "fp32", 1.0, 2.0),),
        lint=(Finding(HOSTILE, HOSTILE, 1, HOSTILE),),
        memory_plan=(MemoryStep("load", HOSTILE, 1),),
        tools={HOSTILE: HOSTILE},
        created_by=HOSTILE,
        files=(Artifact("a<b>.json", HOSTILE, 1),),
    )
    rows = (Row(HOSTILE, pictures(("PyTorch", HOSTILE))),)
    steps = (Step(HOSTILE, 1.0),)
    page = Page(render(Report(HOSTILE, HOSTILE, rows, (hostile,), steps)))
    assert not page.all("script")
    assert len(page.all("style")) == len(page.all("title")) == 1
    assert page.text.count(HOSTILE) > 20
    assert any(HOSTILE in image["alt"] for image in page.all("img"))
    assert all(
        set(a) <= {"class", "style", "aria-hidden"} for a in page.all("span") if "dir" not in a
    )


def test_bytes_that_are_no_text_do_not_stop_the_page():
    assert b"a ? circle" in render(report(summary="a \udcff circle")).encode()


def test_pictures_and_differences_arrive_exactly():
    row = Row("p", pictures(("PyTorch", "a", "b", "c")))
    page = Page(render(report(rows=(row,))))
    reference, *others = (picture.astype(float) for picture in row.pictures.values())
    expected = [reference]
    for other in others:
        expected += [other, np.minimum(abs(other - reference) * GAIN, 255)]
    shown = [decoded(image["src"]) for image in page.all("img")]
    assert len(shown) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(shown, expected, strict=True))
    assert any(picture.max() == 255 for picture in shown[2::2]) or GAIN * 3 < 255
    for label, other in zip("abc", others, strict=True):
        peak, mse = np.ptp(reference), np.mean((other - reference) ** 2)
        assert f"{label} {10 * np.log10(peak**2 / mse):.1f} dB" in page.text


@pytest.mark.parametrize(
    "row",
    [
        {},
        {"a": np.zeros((4, 4, 3), np.float32)},
        {"a": np.zeros((4, 4), np.uint8)},
        {"a": np.zeros((4, 4, 3), np.uint8), "b": np.zeros((4, 5, 3), np.uint8)},
    ],
)
def test_a_row_of_unlike_pictures_is_refused(row):
    with pytest.raises(ValueError, match="of one size"):
        Row("p", row)
