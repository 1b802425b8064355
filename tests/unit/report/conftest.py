"""A small report to build pages from, and a parser that checks and flattens a page."""

from __future__ import annotations

import dataclasses
from html.parser import HTMLParser

import numpy as np
import pytest

from nanoflux_export.report_html import Report, Row
from nanoflux_export.work import Step
from nanoflux_mobile.manifest import (
    Artifact,
    Canvas,
    Chunk,
    ComponentEntry,
    Finding,
    Interface,
    Manifest,
    MemoryStep,
    RecipeEntry,
    TokenizerEntry,
)
from nanoflux_mobile.parity import Parity
from nanoflux_mobile.spec import Floors, TensorSpec

VOID = {"img", "link", "meta"}


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


def make_finding(**more):
    made = Finding(
        component="denoiser",
        rule="ane/rank",
        severity="error",
        count=1234,
        ops=("reshape_7", "reshape_9"),
        why="refused by Core ML",
        fix="reshape to four axes",
        source="https://example.org/rules",
    )
    return dataclasses.replace(made, **more)


def make_manifest(
    recipe="fp16", target="coreml", scheme="fp16", weights=2_345_678, psnr=81.27, **more
):
    tensor = TensorSpec("latents", ("batch",), (1,), "float32")
    face = {"main": Interface((tensor,), (tensor,))}
    chunk = Chunk("components/denoiser.mlpackage", weights, face)
    entry = ComponentEntry(
        name="denoiser",
        scheme=scheme,
        compute_unit="cpuAndNeuralEngine",
        inputs=(tensor,),
        outputs=(tensor,),
        floors=Floors(60.0, 30.0),
        chunks=(chunk,),
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
        low_steps=0,
        tokenizer=TokenizerEntry("tokenizer/tokenizer.json", "<pad>", 16),
        image_floors=Floors(40.0, 15.0),
        parity=(
            Parity("denoiser", "rounded", psnr, 60.0),
            Parity("denoiser", "fp32", 43.6, 30.0),
            Parity("image", "half", 200.0, 15.0),
        ),
        lint=(make_finding(),),
        tools={"torch": "2.13.0", "coremltools": "9.0"},
        created_by="nanoflux-mobile 0.1.0",
        files=(Artifact("schedule.json", "ef" * 32, 241),),
    )
    return dataclasses.replace(made, **more)


def make_pictures(labels=("PyTorch", "a", "b"), side=64, seed=0):
    rng = np.random.default_rng(seed)
    base = np.repeat(np.repeat(rng.integers(0, 256, (8, 8, 3)), side // 8, 0), side // 8, 1)
    return {
        label: np.clip(base + rng.integers(-i, i + 1, base.shape), 0, 255).astype(np.uint8)
        for i, label in enumerate(labels)
    }


def make_report(**changes):
    rows = (Row("a red circle", make_pictures()), Row("two crosses", make_pictures(seed=1)))
    manifests = (
        make_manifest(),
        make_manifest("small", scheme="palette4-g16", weights=703_703, psnr=66.04),
    )
    steps = (Step("convert denoiser", 12.34), Step("convert denoiser", 0.0, reused=True))
    made = Report("a title", "what this run was", rows, manifests, steps)
    return dataclasses.replace(made, **changes)


@pytest.fixture
def manifest():
    """Makes the manifest of a bundle with one graph; every field can be replaced."""
    return make_manifest


@pytest.fixture
def finding():
    """Makes a lint finding; every field can be replaced."""
    return make_finding


@pytest.fixture
def pictures():
    """Makes pictures by label, each noisier than the one before."""
    return make_pictures


@pytest.fixture
def report():
    """Makes a report of two prompts and two bundles; every field can be replaced."""
    return make_report


@pytest.fixture
def page():
    """Parses a document, checking that its tags are balanced."""
    return Page
