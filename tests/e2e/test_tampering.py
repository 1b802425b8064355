"""A bundle that is not the one that was verified is refused, in one sentence that says where."""

from __future__ import annotations

import json
import random
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nanoflux_export.bundle import open_bundle
from nanoflux_mobile.errors import NanofluxError

PACKAGE = "components/denoiser.mlpackage"
SHARED = (
    "cost.json",
    "golden/golden.json",
    "golden/image.png",
    "golden/tensors.safetensors",
    "schedule.json",
    "step_tables.safetensors",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
)
FILES = [
    *(("coreml", name) for name in SHARED),
    ("coreml", f"{PACKAGE}/Manifest.json"),
    ("coreml", f"{PACKAGE}/Data/com.apple.CoreML/model.mlmodel"),
    ("coreml", f"{PACKAGE}/Data/com.apple.CoreML/weights/weight.bin"),
    *(("litert", name) for name in SHARED),
    ("litert", "components/text_encoder.tflite"),
    ("litert", "components/denoiser.tflite"),
    ("litert", "components/decoder.tflite"),
]
Copy = Callable[[str], Path]
Change = Callable[[dict[str, Any]], None]


@pytest.fixture
def copy(micro, tmp_path: Path) -> Copy:
    """A bundle of one's own, to break."""

    def of(target: str) -> Path:
        return Path(shutil.copytree(micro.bundles[target], tmp_path / target))

    return of


@pytest.fixture
def refuses(cli, tmp_path: Path) -> Callable[..., None]:
    """Asserts that neither `verify` nor `generate` takes a bundle, and that nothing is drawn."""

    def check(bundle: Path, code: int, *words: str) -> None:
        cli("verify", bundle).refused(code, *words)
        picture = tmp_path / "picture.png"
        cli("generate", bundle, "--prompt", "a red circle", "-o", picture).refused(code, *words)
        assert not picture.exists()

    return check


def flip(path: Path, place: float) -> None:
    """Invert the lowest bit of the byte at a relative place of a file."""
    data = bytearray(path.read_bytes())
    data[int(place * (len(data) - 1))] ^= 1
    path.write_bytes(data)


def test_the_kinds_of_files_are_all_of_them(micro) -> None:
    kinds = {target: {name for t, name in FILES if t == target} for target in micro.bundles}
    for target, bundle in micro.bundles.items():
        for path in bundle.rglob("*"):
            name = path.relative_to(bundle).as_posix()
            other = name.replace("text_encoder", "denoiser").replace("decoder", "denoiser")
            listed = name in kinds[target] or other in kinds[target] or name == "manifest.json"
            assert path.is_dir() or listed, name


@pytest.mark.parametrize(("target", "name"), FILES, ids=lambda value: value.rpartition("/")[2])
def test_a_flipped_bit_is_found(copy, refuses, target: str, name: str) -> None:
    bundle = copy(target)
    flip(bundle / name, random.Random(name).random())
    refuses(bundle, 1, f"{name} was changed")


@pytest.mark.parametrize("place", [0.0, 1.0])
def test_the_first_and_the_last_byte_count(copy, place: float) -> None:
    bundle = copy("litert")
    flip(bundle / "components/denoiser.tflite", place)
    with pytest.raises(NanofluxError, match=r"components/denoiser\.tflite was changed"):
        open_bundle(bundle)


@pytest.mark.parametrize(("target", "name"), [FILES[0], FILES[10], FILES[-1]])
def test_a_missing_file_is_named(copy, refuses, target: str, name: str) -> None:
    bundle = copy(target)
    (bundle / name).unlink()
    refuses(bundle, 1, f"{name} is missing")


@pytest.mark.parametrize("name", ["notes.txt", "components/extra.tflite", ".hidden", "golden/.x"])
def test_a_file_nobody_listed_is_named(copy, refuses, name: str) -> None:
    bundle = copy("litert")
    (bundle / name).write_text("new", encoding="utf-8")
    refuses(bundle, 1, f"{name} is not in the manifest")


@pytest.mark.parametrize("kept", [0, 1, 1000, -2])
def test_a_truncated_manifest_is_refused(copy, refuses, kept: int) -> None:
    bundle = copy("coreml")
    path = bundle / "manifest.json"
    path.write_bytes(path.read_bytes()[:kept])
    refuses(bundle, 3, "manifest.json")


@pytest.fixture
def default_recursion() -> Iterator[None]:
    """Python's own limit, which converters raise when they are imported."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.usefixtures("default_recursion")
def test_a_manifest_without_end_is_refused(copy, refuses) -> None:
    bundle = copy("coreml")
    (bundle / "manifest.json").write_text("[" * 5_000, encoding="utf-8")
    refuses(bundle, 3, "manifest.json")


def test_a_manifest_that_is_no_text_is_refused(copy, refuses) -> None:
    bundle = copy("coreml")
    (bundle / "manifest.json").write_bytes(b"\xff\xfe\x00")
    refuses(bundle, 3, "manifest.json")


def at(*path: str | int, value: Any) -> Change:
    """Sets one value of a manifest."""

    def change(data: Any) -> None:
        for key in path[:-1]:
            data = data[key]
        data[path[-1]] = value

    return change


def without(name: str) -> Change:
    def change(data: dict[str, Any]) -> None:
        data["components"] = [c for c in data["components"] if c["name"] != name]

    return change


def twice(name: str) -> Change:
    def change(data: dict[str, Any]) -> None:
        data["components"] += [c for c in data["components"] if c["name"] == name]

    return change


LONG = [1.0, 0.9, 0.8, 0.5, 0.2, 0.0]
CHUNK = "components", 1, "chunks", 0
LATENTS = *CHUNK, "functions", "main", "inputs", 0
FIELDS: dict[str, tuple[Change, str]] = {
    "schema": (at("schema", value="bundle/2"), "bundle/2"),
    "unknown field": (at("colour", value="red"), "colour"),
    "wrong type": (at("family", value=7), "family"),
    "null": (at("components", value=None), "components"),
    "target": (at("target", value="nowhere"), "nowhere"),
    "file outside": (at("files", 0, "path", value="../../etc/passwd"), "../../etc/passwd"),
    "absolute file": (at("files", 0, "path", value="/etc/passwd"), "/etc/passwd"),
    "chunk outside": (at(*CHUNK, "path", value="../denoiser.tflite"), "../denoiser"),
    "chunk unlisted": (at(*CHUNK, "path", value="components/x.tflite"), "x.tflite"),
    "no chunk": (at("components", 1, "chunks", value=[]), "denoiser has no chunk"),
    "another function": (at(*CHUNK, "functions", value={}), "lacks the graph denoiser"),
    "tokenizer outside": (at("tokenizer", "path", value="../tokens.json"), "../tokens.json"),
    "hash": (at("files", 0, "sha256", value="0" * 64), "components/decoder.tflite"),
    "no denoiser": (without("denoiser"), "denoiser"),
    "two denoisers": (twice("denoiser"), "denoiser more than once"),
    "shape": (at(*LATENTS, "shape", 1, value=17), "denoiser.tflite"),
    "dtype": (at(*LATENTS, "dtype", value="int32"), "denoiser.tflite"),
    "axes": (at("components", 1, "inputs", 0, "axes", value=["batch"]), "axes"),
    "scheme": (at("components", 1, "scheme", value="int3"), "int3"),
    "rising sigmas": (at("sigmas", value=[0.5, 1.0, 0.0]), "noise levels"),
    "one sigma": (at("sigmas", value=[0.0]), "noise levels"),
    "low steps": (at("low_steps", value=2), "2 steps are to run at low resolution"),
    "too many low steps": (at("low_steps", value=4), "low_steps is 4 of 3 steps"),
    "more sigmas": (at("sigmas", value=LONG), "step_tables.safetensors holds 3 steps"),
    "other canvas": (at("canvas", "height", value=64), "denoiser.latents"),
    "no canvas": (at("canvas", "height", value=0), "latents"),
    "negative canvas": (at("canvas", "width", value=-8), "latents"),
    "no patch": (at("canvas", "patch", value=0), "patch"),
    "pad": (at("tokenizer", "pad", value="<none>"), "<none>"),
    "short tokens": (at("tokenizer", "length", value=1), "tokens"),
    "long tokens": (at("tokenizer", "length", value=10**6), "token"),
}


@pytest.mark.parametrize("field", FIELDS)
def test_a_changed_field_of_the_manifest_is_refused(copy, cli, tmp_path: Path, field: str) -> None:
    change, word = FIELDS[field]
    bundle = copy("litert")
    data = json.loads((bundle / "manifest.json").read_text("utf-8"))
    change(data)
    (bundle / "manifest.json").write_text(json.dumps(data), encoding="utf-8")
    picture = tmp_path / "picture.png"
    ended = cli("generate", bundle, "--prompt", "a red circle", "-o", picture)
    assert ended.code in (1, 3), ended.err
    ended.refused(ended.code, word)
    assert not picture.exists()


def test_floors_are_those_of_the_manifest(copy, cli) -> None:
    bundle = copy("litert")
    data = json.loads((bundle / "manifest.json").read_text("utf-8"))
    data["image_floors"]["quality"] = 500.0
    (bundle / "manifest.json").write_text(json.dumps(data), encoding="utf-8")
    ended = cli("verify", bundle)
    assert (ended.code, ended.errors) == (1, [])
    below = [line for line in ended.err.splitlines() if "below its floor" in line]
    assert len(below) == 1
    assert "image" in below[0]


def test_a_schedule_of_other_length_than_the_golden_run_is_refused(copy, cli) -> None:
    bundle = copy("litert")
    data = json.loads((bundle / "manifest.json").read_text("utf-8"))
    data["sigmas"] = LONG
    (bundle / "manifest.json").write_text(json.dumps(data), encoding="utf-8")
    cli("verify", bundle).refused(3, "its golden run has 3 steps and the schedule has 5")


def test_any_damaged_byte_of_a_manifest_is_a_sentence_or_harmless(copy) -> None:
    """Opening a bundle whose manifest lost, gained or changed a byte never ends in a traceback."""
    bundle, chance = copy("litert"), random.Random(0)
    path = bundle / "manifest.json"
    whole = path.read_bytes()
    refused = 0
    for _ in range(150):
        place = chance.randrange(len(whole))
        other = bytes([chance.choice([0, 34, 44, 45, 57, 92, 123, 125, 200, 255])])
        path.write_bytes(whole[:place] + chance.choice([b"", other]) + whole[place + 1 :])
        try:
            _ = open_bundle(bundle).manifest.digest
        except NanofluxError as error:
            refused += 1
            assert len(str(error)) < 400
    assert refused > 75  # more than half of a manifest is structure and hashes
