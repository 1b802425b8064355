"""A student of two resolutions in many small files, proven by a picture and by single steps."""

from __future__ import annotations

import copy
import dataclasses
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import nn

from nanoflux_benchmarks.predict import predict_bundle
from nanoflux_export.bundle import Bundle, open_bundle
from nanoflux_export.chunking import cut
from nanoflux_export.golden import draw_request
from nanoflux_export.graph import STEP_FULL, STEP_LOW, Segment
from nanoflux_export.pictures import open_painter
from nanoflux_export.pipeline import Exported, export
from nanoflux_export.recipe import load_recipe
from nanoflux_export.student import make_student
from nanoflux_export.targets.coreml import target
from nanoflux_export.verify import verify
from nanoflux_export.work import Journal, Step
from nanoflux_mobile.checkpoint import open_checkpoint
from nanoflux_mobile.device import load_device
from nanoflux_mobile.families import nanoflux
from nanoflux_mobile.manifest import ComponentEntry
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.t5 import T5Config, T5Encoder
from nanoflux_mobile.models.taesd import TaesdConfig, TaesdDecoder
from nanoflux_mobile.parity import psnr_db
from nanoflux_mobile.spec import parse_scheme
from nanoflux_mobile.weights import network

MOST = 30_000
"""Bytes of weights in a file: the largest segment takes 29 kB, the whole denoiser 100."""
LOW_STEPS = 2
"""Of three: those that begin within the first half."""

# As in the micro recipe: measured, then about 5 dB off. The decoder divides by 3, and scalars of a
# program are stored in half precision.
RECIPE = """
schema = "recipe/1"
family = "nanoflux"
summary = "Random weights of two resolutions, for tests."
steps = 3
proof = "PROOF"
calibration_prompts = ["a red circle", "two blue squares"]

[targets.coreml.image]
graph = 60
quality = 37

[targets.coreml.components]
text_encoder = { scheme = "fp16", floors = { graph = 65, quality = 100 } }
denoiser = { scheme = "palette6-g16", floors = { graph = 65, quality = 37 } }
decoder = { scheme = "fp16", floors = { graph = 65, quality = 85 } }
"""


@dataclass(frozen=True)
class Chunked:
    """The student's folder, its two bundles, and the steps that each of them took."""

    checkpoint: Path
    image: Exported
    steps: Exported
    first: tuple[Step, ...]
    second: tuple[Step, ...]


def random_student(checkpoint: Path, out: Path) -> Path:
    """The micro teacher with towers that convert fast, and a denoiser that downsamples."""
    micro = nanoflux.load(open_checkpoint(checkpoint))
    torch.manual_seed(1)
    words = micro.tokenizer.get_vocab_size()
    towers = (
        NanoFlux(FluxConfig(16, 1, 2, 16, 2, 32, 32, False, (4, 6, 6), 0, (0, 1))),
        T5Encoder(T5Config(words, 16, 8, 32, 1, 2, 8, 16, 1e-6, "gated-gelu", 32)),
        TaesdDecoder(TaesdConfig(4, 3, (8, 8, 8), (1, 1, 1))),
    )
    with torch.no_grad():
        for weight in (weight for tower in towers for weight in tower.parameters()):
            weight.add_(0.2 * torch.randn_like(weight))
    networks = nanoflux.Networks(*map(network, towers))
    nanoflux.save(dataclasses.replace(micro, networks=networks), out, torch.float16)
    return out


@pytest.fixture(scope="module")
def small_files() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(target, "MAX_BYTES", MOST)
        yield


@pytest.fixture(scope="module")
def chunked(micro_checkpoint, small_files, tmp_path_factory: pytest.TempPathFactory) -> Chunked:
    folder = tmp_path_factory.mktemp("chunks")
    checkpoint = random_student(micro_checkpoint, folder / "student")
    made, journals = [], (Journal(), Journal())
    for proof, journal in zip(("image", "steps"), journals, strict=True):
        (folder / f"{proof}.toml").write_text(RECIPE.replace("PROOF", proof), "utf-8")
        # Measured on pictures only, so it would make other files of the same weights.
        recipe = load_recipe(str(folder / f"{proof}.toml"), ["headroom=0"])
        made += export(checkpoint, recipe, folder / "out", journal)
    return Chunked(checkpoint, *made, *(tuple(journal.steps) for journal in journals))


def denoiser(bundle: Exported) -> ComponentEntry:
    return bundle.manifest.components[1]


def test_a_large_graph_is_several_files_and_every_chunk_is_one(chunked: Chunked) -> None:
    paths = [chunk.path for chunk in denoiser(chunked.image).chunks]
    count = len(paths)
    assert count > 2
    assert paths == [f"components/denoiser-{i + 1}-of-{count}.mlpackage" for i in range(count)]
    on_disk = {path.name for path in (chunked.image.path / "components").iterdir()}
    manifest = chunked.image.manifest
    listed = [chunk.path for entry in manifest.components for chunk in entry.chunks]
    assert on_disk == {Path(path).name for path in listed}
    weights = [chunked.image.path / p / "Data/com.apple.CoreML/weights/weight.bin" for p in paths]
    sizes = [path.stat().st_size for path in weights]
    assert max(sizes) < 0.5 * sum(sizes)


def test_chunks_of_both_functions_hand_on_what_the_next_ones_take(chunked: Chunked) -> None:
    entry = denoiser(chunked.image)
    assert set(entry.functions) == {STEP_LOW, STEP_FULL}
    host, promised = set(entry.inputs), set(entry.outputs)
    for name in entry.functions:
        known = set(host)
        for face in (chunk.functions[name] for chunk in entry.chunks if name in chunk.functions):
            assert set(face.inputs) <= known
            known |= set(face.outputs)
        assert promised <= known
        assert {spec.dtype for spec in known - host - promised} == {"float16"}
    assert chunked.image.manifest.low_steps == LOW_STEPS


def test_a_second_export_reuses_every_chunk(chunked: Chunked) -> None:
    wrote = {step.name for step in chunked.first if ": write " in step.name}
    entries = chunked.image.manifest.components
    assert len(wrote) == sum(len(entry.chunks) for entry in entries)
    assert not any(step.reused for step in chunked.first)
    assert {step.name for step in chunked.second if step.reused} == wrote
    assert denoiser(chunked.steps).chunks == denoiser(chunked.image).chunks


@pytest.mark.parametrize("proof", ["image", "steps"])
def test_the_saved_chunks_hold_every_floor(chunked: Chunked, proof: str) -> None:
    made: Exported = getattr(chunked, proof)
    stated = {(figure.component, figure.reference) for figure in made.manifest.parity}
    parts = ["text_encoder", "denoiser", "decoder", *(["image"] if proof == "image" else [])]
    assert stated == {(part, ref) for part in parts for ref in ("rounded", "fp32", "half")}
    found = verify(open_bundle(made.path), Journal())
    assert found.failed == ()
    assert found.parity == made.manifest.parity


def test_a_rule_that_several_chunks_break_is_told_once(chunked: Chunked) -> None:
    entry, told = denoiser(chunked.image), chunked.image.manifest.lint
    rules = [(finding.component, finding.rule) for finding in told]
    assert len(rules) == len(set(rules))
    broken: Counter[str] = Counter()
    for chunk in entry.chunks:
        for finding in target.lint(chunked.image.path / chunk.path, "denoiser"):
            broken[finding.rule] += finding.count
    assert broken
    assert {f.rule: f.count for f in told if f.component == "denoiser"} == broken


def test_a_bundle_proven_by_steps_has_no_picture_but_draws_the_same(chunked: Chunked, cli) -> None:
    golden = load_file(chunked.steps.path / "golden" / "tensors.safetensors")
    assert golden["probe_steps"].tolist() == [0, LOW_STEPS]
    assert sorted(path.name for path in (chunked.steps.path / "golden").iterdir()) == [
        "golden.json",
        "tensors.safetensors",
    ]
    assert json.loads(cli("verify", chunked.steps.path, "--json").out)["parity"]
    prompt, seed = "two blue squares", 2**40 + 7
    student = make_student(chunked.checkpoint, load_recipe("tiny-small", ["steps=3"]))
    painters = [open_painter(made.path) for made in (chunked.image, chunked.steps)]
    requests = [painter.request(prompt, seed, 3) for painter in painters]
    drawn = [draw_request(p.graphs, r).image for p, r in zip(painters, requests, strict=True)]
    assert np.array_equal(*drawn)
    expected = draw_request(nanoflux.graphs(student.parts), requests[0]).image
    assert psnr_db(drawn[0], expected) >= 37
    # A full step in place of the low ones would draw something else.
    full = dataclasses.replace(requests[0].schedule, low_steps=0)
    other = draw_request(painters[0].graphs, dataclasses.replace(requests[0], schedule=full)).image
    assert psnr_db(other, expected) < 30


def worn(segment: Segment) -> Segment:
    """The segment with weights that are 2 % too large."""

    def build() -> nn.Module:
        module = copy.deepcopy(segment.build())
        with torch.no_grad():
            for weight in module.parameters():
                weight.mul_(1.02)
        return module

    return dataclasses.replace(segment, build=build)


def test_a_file_of_other_weights_falls_below_its_floor(chunked: Chunked, tmp_path: Path) -> None:
    """The hash would tell; this is what the golden steps say of the file itself."""
    path = Path(shutil.copytree(chunked.steps.path, tmp_path / "bundle"))
    recipe = load_recipe(str(chunked.checkpoint.parent / "steps.toml"))
    graph = make_student(chunked.checkpoint, recipe).graphs[1]
    scheme = parse_scheme("palette6-g16")
    last = cut(graph, scheme, MOST, target.WIRES)[-1]
    functions = {
        name: dataclasses.replace(part, segments=tuple(map(worn, part.segments)))
        for name, part in last.functions.items()
    }
    wrong = dataclasses.replace(last, functions=functions)
    target.write(wrong, scheme, path / denoiser(chunked.steps).chunks[-1].path)
    found = verify(Bundle(path, chunked.steps.manifest), Journal())
    failed = {(figure.component, figure.reference) for figure in found.failed}
    assert {("denoiser", "rounded"), ("denoiser", "half")} <= failed
    assert {component for component, _ in failed} == {"denoiser"}


def test_a_prediction_runs_each_function_for_its_steps(chunked: Chunked) -> None:
    told = predict_bundle(chunked.image.path, load_device("iphone-16-pro-max"))
    runs = {(call.component, call.function): call.runs for call in told.calls}
    assert runs["denoiser", STEP_LOW] == LOW_STEPS
    assert runs["denoiser", STEP_FULL] == 1
    assert runs["text_encoder", "main"] == runs["decoder", "main"] == 1
