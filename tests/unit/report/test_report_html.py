"""The report page: what it says, that it says it safely, and that it stands on its own."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from nanoflux_export.report.gallery import GAIN
from nanoflux_export.report_html import Report, Row, render
from nanoflux_export.work import Step
from nanoflux_mobile.manifest import Artifact, MemoryStep
from nanoflux_mobile.parity import Parity

HOSTILE = "</style></title><script>alert('x')</script> \" ' & <b> 🦊 \u202e"
SIZE_LIMIT = 500_000  # bytes of a page with six prompts and five runtimes of 64 px


def decoded(uri: str) -> np.ndarray:
    head, _, data = uri.partition(",")
    assert head == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_the_page_is_well_formed_and_accessible(report, page):
    html = render(report())
    parsed = page(html)
    assert html.startswith("<!DOCTYPE html>")
    assert parsed.all("html") == [{"lang": "en"}]
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    inside = [link["href"] for link in parsed.all("a") if "rel" not in link]
    assert all(href.startswith("#") and href[1:] in ids for href in inside)
    assert all(image["alt"] and image["width"] and image["height"] for image in parsed.all("img"))
    assert all("scope" in cell for cell in parsed.all("th"))
    levels = [int(name[1]) for name, _ in parsed.elements if re.fullmatch(r"h\d", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))


def test_it_tells_every_figure_size_prompt_and_origin(manifest, report, page):
    parsed = page(render(report()))
    for told in (
        *("All 6 figures hold", "ever run on a phone or on a Mac"),
        "closest to its floor +6.0 dB small-coreml, denoiser",
        *("81.3 dB", "66.0 dB", "43.6 dB", "identical", "floor 60.0 dB", "floor 30.0 dB"),
        *("2,345,678", "2.3 MB", "703,703", "703.7 kB", "30%", "palette4-g16", "241"),
        *("a red circle", "two crosses", "a title", "what this run was"),
        *("ane/rank", "1,234", "refused by Core ML", "reshape to four axes", "load", "unload"),
        *("ab" * 32, "cd" * 32, "torch 2.13.0", "coremltools 9.0", manifest().digest),
        *("12.3 s", "1 of 2 steps reused", "64 px, 2 steps", "fp16-coreml", "small-coreml"),
    ):
        assert told in parsed.text


@pytest.mark.parametrize(("target", "by"), [("coreml", "own executor"), ("litert", "LiteRT on")])
def test_it_tells_who_ran_the_files(manifest, report, page, target, by):
    parsed = page(render(report(manifests=(manifest(target=target),))))
    assert by in parsed.text
    other = {"own executor", "LiteRT on"} - {by}
    assert not any(words in parsed.text for words in other)


def test_failing_figures_are_named_first(manifest, report, page):
    bad = manifest("small", "litert", psnr=math.nextafter(60.0, 0.0))
    bad = dataclasses.replace(bad, parity=(*bad.parity, Parity("decoder", "fp32", -math.inf, 30.0)))
    parsed = page(render(report(manifests=(manifest(), bad))))
    before, _, _ = parsed.text.partition("What was checked")
    assert "2 of 7 figures miss their floors" in before
    for name in ("denoiser, same rounded weights: 60.0 dB", "decoder, PyTorch float32: not finite"):
        assert f"small-litert: {name}" in before
    verdicts = [text.split()[-1] for text in parsed.by_class["verdict"]]
    assert verdicts == ["holds"] * 3 + ["misses", "holds", "holds", "misses"]
    assert len(parsed.by_class["missed"]) == 4  # the line and the bar of both


def test_an_empty_report_is_a_page(manifest, report, page):
    parsed = page(render(Report("", "", (), (), ())))
    for told in ("Nothing was measured", "No pictures were drawn", "No step was recorded"):
        assert told in parsed.text
    assert "Nothing found" in page(render(report(manifests=(manifest(lint=()),)))).text


def test_nothing_is_asked_of_the_network(report, page):
    parsed = page(render(report()))
    links = [link["href"] for link in parsed.all("a") if "rel" in link]
    assert set(links) == {"https://example.org/rules"}  # to follow or not, a reader's choice
    shown = parsed.html.replace(f'href="{links[0]}"', "")
    assert not re.search(r"https?:|url\(|@import|<script|<iframe|\son\w+=", shown)
    for name, attributes in parsed.elements:
        for key in ("src", "href") if name != "a" else ("src",):
            assert attributes.get(key, "#").startswith(("#", "data:"))
        assert not {"srcset", "poster", "action"} & attributes.keys()
    policy = next(meta["content"] for meta in parsed.all("meta") if "http-equiv" in meta)
    assert "default-src 'none'" in policy


def test_text_from_outside_stays_text(manifest, finding, pictures, page):
    entry = dataclasses.replace(manifest().components[0], compute_unit=HOSTILE)
    hostile = manifest(
        HOSTILE,
        HOSTILE,
        components=(entry,),
        parity=(Parity(HOSTILE, "fp32", 1.0, 2.0),),
        lint=(
            finding(component=HOSTILE, rule=HOSTILE, ops=(HOSTILE,), why=HOSTILE, source=HOSTILE),
            finding(component=HOSTILE, fix=HOSTILE, suppressed=HOSTILE),
        ),
        memory_plan=(MemoryStep("load", HOSTILE, 1),),
        tools={HOSTILE: HOSTILE},
        created_by=HOSTILE,
        files=(Artifact("a<b>.json", HOSTILE, 1),),
    )
    rows = (Row(HOSTILE, pictures(("PyTorch", HOSTILE))),)
    parsed = page(render(Report(HOSTILE, HOSTILE, rows, (hostile,), (Step(HOSTILE, 1.0),))))
    assert not parsed.all("script")
    assert len(parsed.all("style")) == len(parsed.all("title")) == 1
    assert len(parsed.all("b")) == parsed.html.count("</b>")
    # title twice, summary, prompt, label, step, name of the bundle, advice ...
    assert parsed.text.count(HOSTILE) > 20
    assert any(HOSTILE in image["alt"] for image in parsed.all("img"))
    assert any(HOSTILE in box["aria-label"] for box in parsed.all("div") if "aria-label" in box)


def test_bytes_that_are_no_text_do_not_stop_the_page(report):
    assert b"a ? circle" in render(report(summary="a \udcff circle")).encode()


def test_pictures_and_differences_arrive_exactly(pictures, report, page):
    drawn = pictures(("PyTorch", "a", "b", "c"))
    drawn["b"] = np.roll(drawn["b"], 8, axis=0)  # far off, so that the difference is clipped
    parsed = page(render(report(rows=(Row("p", drawn),))))
    reference, *others = (picture.astype(float) for picture in drawn.values())
    expected = [reference]
    for other in others:
        expected += [other, np.minimum(abs(other - reference) * GAIN, 255)]
    shown = [decoded(image["src"]) for image in parsed.all("img")]
    assert len(shown) == len(expected)
    assert all(np.array_equal(a, b) for a, b in zip(shown, expected, strict=True))
    for label, other in zip("abc", others, strict=True):
        db = 10 * np.log10(np.ptp(reference) ** 2 / np.mean((other - reference) ** 2))
        assert f"{label} {db:.1f} dB" in parsed.text


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


def test_six_prompts_and_five_runtimes_stay_small(manifest, pictures, report):
    labels = ("PyTorch", "a", "b", "c", "d")
    rows = tuple(Row(f"prompt {i}", pictures(labels, seed=i)) for i in range(6))
    bundles = tuple(manifest(label) for label in labels[1:])
    assert len(render(report(rows=rows, manifests=bundles))) < SIZE_LIMIT
