"""A whole export of the micro checkpoint: what is in the bundles, and what a rerun may reuse."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from tokenizers import Tokenizer

import nanoflux_export
import nanoflux_mobile
from nanoflux_export.bundle import open_bundle
from nanoflux_export.export_report import write_report
from nanoflux_export.golden import draw_request
from nanoflux_export.pictures import open_painter
from nanoflux_export.pipeline import WORK, Exported, export
from nanoflux_export.recipe import load_recipe
from nanoflux_export.student import make_student
from nanoflux_export.work import Journal, Step
from nanoflux_mobile.manifest import Manifest, read_manifest
from nanoflux_mobile.noise import gaussian

TARGETS = ("coreml", "litert")
SUFFIXES = {"coreml": ".mlpackage", "litert": ".tflite"}
COMPONENTS = ("text_encoder", "denoiser", "decoder")
REFERENCES = {"coreml": ("rounded", "fp32", "half"), "litert": ("rounded", "fp32")}


def listing(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by relative path."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def visible(out: Path) -> list[str]:
    """What a person sees in a folder: hidden files are not ready."""
    names = (path.name for path in out.iterdir()) if out.exists() else ()
    return sorted(name for name in names if not name.startswith("."))


@pytest.mark.parametrize("target", TARGETS)
def test_the_tree_of_a_bundle(micro, target: str) -> None:
    bundle = micro.bundles[target]
    assert bundle == micro.out / f"micro-{target}"
    assert {path.name for path in bundle.iterdir()} == {
        "components",
        "cost.json",
        "golden",
        "manifest.json",
        "schedule.json",
        "step_tables.safetensors",
        "tokenizer",
    }
    packages = {path.name for path in (bundle / "components").iterdir()}
    assert packages == {name + SUFFIXES[target] for name in COMPONENTS}
    assert visible(micro.out) == ["micro-coreml", "micro-litert"]


@pytest.mark.parametrize("target", TARGETS)
def test_the_manifest_lists_every_other_file_with_its_hash(micro, target: str) -> None:
    bundle = micro.bundles[target]
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    on_disk = listing(bundle)
    del on_disk["manifest.json"]
    assert {file["path"]: file["sha256"] for file in manifest["files"]} == on_disk
    for file in manifest["files"]:
        assert file["bytes"] == (bundle / file["path"]).stat().st_size


@pytest.mark.parametrize("target", TARGETS)
def test_the_manifest_says_what_the_recipe_asked_for(micro, target: str) -> None:
    recipe, manifest = load_recipe(str(micro.recipe)), read_manifest(micro.bundles[target])
    wanted = recipe.targets[target]
    assert (manifest.family, manifest.target) == ("nanoflux", target)
    assert (manifest.recipe.name, manifest.recipe.digest) == ("micro", recipe.digest)
    assert tuple(entry.name for entry in manifest.components) == COMPONENTS
    for entry in manifest.components:
        assert entry.scheme == wanted.components[entry.name].scheme
        assert entry.floors == wanted.components[entry.name].floors
        assert 0 < entry.weight_bytes < 1_000_000
    resident = [step.peak_bytes for step in manifest.memory_plan]
    assert max(resident) == max(entry.weight_bytes for entry in manifest.components)
    assert [step.action for step in manifest.memory_plan] == ["load", "run", "unload"] * 3


@pytest.mark.parametrize("target", TARGETS)
def test_parity_is_stated_for_every_part_and_holds(micro, target: str) -> None:
    manifest = read_manifest(micro.bundles[target])
    stated = [(figure.component, figure.reference) for figure in manifest.parity]
    assert len(stated) == len(set(stated))
    assert set(stated) == set(product((*COMPONENTS, "image"), REFERENCES[target]))
    assert all(figure.holds and math.isfinite(figure.psnr_db) for figure in manifest.parity)
    floors = {entry.name: entry.floors for entry in manifest.components}
    floors["image"] = manifest.image_floors
    for figure in manifest.parity:
        wanted = floors[figure.component]
        assert figure.floor_db == (wanted.quality if figure.reference == "fp32" else wanted.graph)


@pytest.mark.parametrize("target", TARGETS)
def test_schedule_tokenizer_and_step_tables_are_what_a_phone_needs(micro, target: str) -> None:
    bundle, manifest = micro.bundles[target], read_manifest(micro.bundles[target])
    sigmas = json.loads((bundle / "schedule.json").read_text("utf-8"))["sigmas"]
    third = float(np.float32(1 / 3)), float(np.float32(2 / 3))
    assert sigmas == list(manifest.sigmas) == [1.0, third[1], third[0], 0.0]
    shipped = Tokenizer.from_file(str(bundle / "tokenizer" / "tokenizer.json"))
    source = Tokenizer.from_file(str(micro.checkpoint / "tokenizer_2" / "tokenizer.json"))
    text = "Three  GREEN triangles, on a \uff42lack background!"
    assert shipped.encode(text).ids == source.encode(text).ids
    tables = load_file(bundle / "step_tables.safetensors")["step_tables"]
    table = next(
        spec for entry in manifest.components for spec in entry.inputs if spec.name == "step_table"
    )
    assert tables.shape == (3, *table.shape)
    assert tables.dtype == np.float32


@pytest.mark.parametrize("target", TARGETS)
def test_the_golden_run_is_the_prompt_it_names(micro, target: str) -> None:
    bundle, manifest = micro.bundles[target], read_manifest(micro.bundles[target])
    request = json.loads((bundle / "golden" / "golden.json").read_text("utf-8"))
    assert request == {"prompt": "a red circle", "seed": 0}
    golden = load_file(bundle / "golden" / "tensors.safetensors")
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer" / "tokenizer.json"))
    ids = tokenizer.encode(request["prompt"]).ids
    assert golden["token_ids"][0, : len(ids)].tolist() == ids
    assert set(golden["token_ids"][0, len(ids) :].tolist()) == {tokenizer.token_to_id("<pad>")}

    canvas = manifest.canvas
    noise = gaussian(0, (canvas.channels, canvas.height, canvas.width))
    first = golden["latents.0"]  # the first token is the first 2 x 2 cells of every channel
    assert first[0, :, 0, 0].tolist() == noise[:, :2, :2].reshape(-1).tolist()

    pixels = np.asarray(Image.open(bundle / "golden" / "image.png"))
    image = golden["fp32.image"][0].transpose(1, 2, 0)
    assert pixels.shape == (canvas.image_side, canvas.image_side, 3)
    assert np.abs(pixels - (np.clip(image, -1, 1) + 1) * 127.5).max() <= 0.5 + 1e-4  # one rounding


KEPT = ("write ", "golden run", "how large ")
"""What the steps are called whose results a later run takes: one per file, one per target, and one
per graph for all targets."""


def kept(name: str) -> bool:
    """Whether a step leaves something for later runs."""
    return name.rpartition(": ")[2].startswith(KEPT)


def test_a_second_export_reuses_every_step_and_gives_the_same_bundles(micro) -> None:
    before = {target: listing(path) for target, path in micro.bundles.items()}
    journal = Journal()
    made = export(micro.checkpoint, load_recipe(str(micro.recipe)), micro.out, journal)
    made_of = {step.name: step.reused for step in journal.steps}
    expensive = {name for name in made_of if kept(name)}
    assert len(expensive) == 2 * (len(COMPONENTS) + 1) + len(COMPONENTS)
    assert all(made_of[name] for name in expensive)
    assert {name for name in made_of if made_of[name]} == expensive
    for bundle in made:
        assert listing(bundle.path) == before[bundle.manifest.target]
        assert bundle.manifest.digest == read_manifest(bundle.path).digest


KILLED_IN = {
    "coreml: write denoiser as palette6-g16": 0.3,
    "coreml: write decoder as fp16": 0.3,
    "draw the golden image": 0.0,
}
"""Steps of which a share goes by before the process is killed; the last is inside the bundle."""
DYING = """
import os, signal, sys, threading
from pathlib import Path
import coremltools  # once for all the processes that are about to die
from nanoflux_export.pipeline import export
from nanoflux_export.recipe import load_recipe
from nanoflux_export.work import Journal

checkpoint, recipe, out, *ends = sys.argv[1:]

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def began(name):
    if name == end:
        threading.Timer(delay, die).start() if delay else die()

def ended(step):
    print(step.name, flush=True)

for text in ends:
    end, _, seconds = text.rpartition("@")
    delay = float(seconds)
    if child := os.fork():
        status = os.waitpid(child, 0)[1]
        print("killed" if os.WIFSIGNALED(status) else "survived", flush=True)
    else:
        wanted = load_recipe(recipe, ["steps=4"])
        export(Path(checkpoint), wanted, Path(out), Journal(began, ended))
        os._exit(0)
"""


@dataclass(frozen=True)
class Resumed:
    """An export that was killed again and again, then left to finish, and what was seen of it."""

    out: Path
    told: list[str]
    steps: list[Step]
    seen: set[str]
    made: Exported


@pytest.fixture(scope="module")
def resumed(micro, tmp_path_factory: pytest.TempPathFactory) -> Resumed:
    """The Core ML half of the micro recipe with other steps, SIGKILLed inside three of them."""
    folder = tmp_path_factory.mktemp("resumed")
    recipe, out = folder / "micro.toml", folder / "out"
    text = micro.recipe.read_text("utf-8")
    recipe.write_text(text[: text.index("[targets.litert.image]")], encoding="utf-8")
    took = {step.name: step.seconds for step in micro.steps}
    ends = [f"{name}@{share * took[name]:.4f}" for name, share in KILLED_IN.items()]
    packages = nanoflux_mobile, nanoflux_export
    paths = [str(Path(package.__file__).parents[1]) for package in packages]
    command = [sys.executable, "-c", DYING, str(micro.checkpoint), str(recipe), str(out), *ends]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    told, seen = [], set()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as dying:
        assert dying.stdout is not None
        for line in dying.stdout:
            told.append(line.strip())
            seen.update(visible(out))
    assert dying.returncode == 0

    journal = Journal(began=lambda name: seen.update(visible(out)))
    (made,) = export(micro.checkpoint, load_recipe(str(recipe), ["steps=4"]), out, journal)
    return Resumed(out, told, journal.steps, seen, made)


def test_a_killed_export_is_finished_by_the_next_one(micro, resumed: Resumed) -> None:
    assert [line for line in resumed.told if line in ("killed", "survived")] == ["killed"] * 3
    found = {name for name in resumed.told if kept(name)}
    assert len(found) == 2 * len(COMPONENTS) + 1
    assert {step.name for step in resumed.steps if step.reused} == found
    whole = {file.path: file for file in read_manifest(micro.bundles["coreml"]).files}
    packages = [f for f in resumed.made.manifest.files if f.path.startswith("components/")]
    assert len(packages) == 3 * len(COMPONENTS)
    # The step table is an input, so a run of other steps that nobody killed made equal packages.
    assert all(file == whole[file.path] for file in packages)


def test_no_half_bundle_is_ever_seen_and_nothing_is_left_behind(resumed: Resumed) -> None:
    assert resumed.seen == set()
    assert sorted(path.name for path in resumed.out.iterdir()) == [WORK, "micro-coreml"]
    assert not [path for path in (resumed.out / WORK).iterdir() if path.name.startswith(".")]
    assert open_bundle(resumed.made.path).manifest == resumed.made.manifest


def test_another_step_count_is_another_bundle(micro, resumed: Resumed) -> None:
    ours, other = resumed.made.manifest, read_manifest(micro.bundles["coreml"])
    assert (len(ours.sigmas), len(other.sigmas)) == (4 + 1, 3 + 1)
    assert ours.recipe.overrides == {"steps": "4"}
    assert ours.recipe.digest != other.recipe.digest
    assert ours.digest != other.digest
    tables = load_file(resumed.made.path / "step_tables.safetensors")["step_tables"]
    assert len(tables) == 4


def psnr(actual: np.ndarray, expected: np.ndarray) -> float:
    error = np.square(actual.astype(np.float64) - expected).mean()
    return float(10 * np.log10(np.ptp(expected).astype(np.float64) ** 2 / error))


def test_pytorch_core_ml_and_litert_draw_the_same_picture(micro, tmp_path: Path) -> None:
    recipe = load_recipe(str(micro.recipe))
    student = make_student(micro.checkpoint, recipe)
    student.family.save(student.parts, tmp_path / "student", torch.float32)
    painters = {"pytorch": open_painter(tmp_path / "student")}
    painters |= {target: open_painter(path) for target, path in micro.bundles.items()}
    seed, prompt = 2**40 + 7, "two blue squares above a ring"
    images = {
        name: draw_request(painter.graphs, painter.request(prompt, seed, 3)).image
        for name, painter in painters.items()
    }
    for target in TARGETS:
        floor = recipe.targets[target].image.quality
        assert psnr(images[target], images["pytorch"]) >= floor
    other = draw_request(painters["coreml"].graphs, painters["coreml"].request(prompt, 8, 3)).image
    assert psnr(other, images["pytorch"]) < 30  # so that a picture of anything cannot pass


def test_a_floor_that_does_not_hold_leaves_no_bundle(micro, cli, tmp_path: Path) -> None:
    shutil.copytree(micro.out / WORK, tmp_path / WORK)
    key = "targets.coreml.components.denoiser.floors.graph"
    arguments = ("--recipe", micro.recipe, "--out", tmp_path, "--set", f"{key}=500")
    ended = cli("export", micro.checkpoint, *arguments)
    ended.refused(1, "micro-coreml", "denoiser", "500.0 dB")
    assert "text_encoder" not in ended.errors[0]
    assert visible(tmp_path) == []


def test_the_manifest_is_read_back_as_it_was_written(micro) -> None:
    for path in micro.bundles.values():
        manifest = read_manifest(path)
        assert isinstance(manifest, Manifest)
        assert manifest.created_by == f"nanoflux-mobile {nanoflux_mobile.__version__}"


def test_an_export_leaves_a_page_of_its_bundles(micro, tmp_path: Path) -> None:
    """Pictures by PyTorch and by every bundle's files, their agreement, and what they cost."""
    bundles = [Exported(path, read_manifest(path)) for path in micro.bundles.values()]
    page = write_report(load_recipe(str(micro.recipe)), bundles, tmp_path, Journal())
    text = page.read_text("utf-8")
    assert text.count("data:image/png;base64,") == 2 * len(bundles) + 1  # and what differs, 8 times
    for bundle in bundles:
        assert bundle.path.name in text
        assert bundle.manifest.digest in text
    assert ">Work<" in text
    assert list(tmp_path.iterdir()) == [page]
