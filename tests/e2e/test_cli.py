"""Every verb from the outside: help, JSON for machines, pictures, and what bad input gets."""

from __future__ import annotations

import errno
import json
import os
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from nanoflux_export.doctor import examine
from nanoflux_export.work import WORK
from nanoflux_mobile import cli as command_line
from nanoflux_mobile import storage

PROMPT = ("--prompt", "a red circle")
Usage = namedtuple("Usage", "total used free")  # what shutil.disk_usage gives


@pytest.mark.parametrize("verb", [verb.name for verb in command_line.VERBS])
def test_help_shows_an_example_and_every_option_in_words(cli, verb: str) -> None:
    ended = cli(verb, "--help")
    assert ended.code == 0
    assert f"Example: nanoflux {verb}" in ended.out
    described = [line for line in ended.out.splitlines() if line.strip(" │").startswith("--")]
    assert described
    assert all(len(line.split()) > 3 for line in described), described


def test_list_says_what_there_is(cli) -> None:
    ended = cli("list", "--json")
    found = json.loads(ended.out)
    kinds = ["families", "plans", "recipes", "targets", "variants"]
    assert (ended.code, sorted(found)) == (0, kinds)
    assert "nanoflux" in found["families"]
    assert found["targets"] == ["coreml", "litert", "onnx"]
    assert {"tiny-fp16", "tiny-small"} <= set(found["recipes"])
    for name, recipe in found["recipes"].items():
        assert recipe["name"] == name
        assert recipe["schema"] == "recipe/1"
        assert set(recipe["targets"]) <= set(found["targets"])
    assert {"nanoflux", "tiny"} <= set(found["plans"])
    for name, plan in found["plans"].items():
        assert plan["name"] == name
        assert plan["schema"] == "compress/1"
        assert plan["family"] in found["families"]
        assert plan["stages"]
    for variant in found["variants"].values():
        assert variant["family"] in found["families"]
        assert min(variant["parameters"], variant["steps"], *variant["macs_per_step"].values()) > 0


def test_doctor_says_what_is_missing_and_how_to_mend_it(cli, monkeypatch) -> None:
    ended = cli("doctor", "--json")
    checks = json.loads(ended.out)
    assert {"area", "name", "found", "good", "mend"} == set(checks[0])
    assert ended.code == (0 if all(check["good"] for check in checks) else 1)
    assert {"core", "coreml", "litert"} <= {check["area"] for check in checks}

    monkeypatch.setattr("nanoflux_export.doctor._version", lambda name: None)
    ended = cli("doctor", "--json")
    assert ended.code == 1
    mends = {check["name"]: check["mend"] for check in json.loads(ended.out) if not check["good"]}
    assert "nanoflux-mobile[coreml]" in mends["coremltools"]
    assert all(mend.startswith("pip install ") for mend in mends.values())
    assert not all(check.good for check in examine())


@pytest.mark.parametrize("target", ["coreml", "litert"])
def test_inspect_tells_a_machine_what_a_bundle_is(cli, micro, target: str) -> None:
    ended = cli("inspect", micro.bundles[target], "--json", "--lint")
    found = json.loads(ended.out)
    assert (ended.code, found["kind"]) == (0, "bundle")
    assert found["manifest"] == json.loads(
        (micro.bundles[target] / "manifest.json").read_text("utf-8")
    )
    assert found["lint"] == found["manifest"]["lint"]


@pytest.mark.parametrize(("target", "suffix"), [("coreml", ".mlpackage"), ("litert", ".tflite")])
def test_inspect_tells_a_machine_what_a_file_is(cli, micro, target: str, suffix: str) -> None:
    ended = cli("inspect", micro.bundles[target] / "components" / f"denoiser{suffix}", "--json")
    found = json.loads(ended.out)
    assert (ended.code, found["kind"]) == (0, target)
    file = found["file"]
    assert {line["name"] for line in file["inputs"]} == {"latents", "text_states", "step_table"}
    assert [(line["name"], line["shape"]) for line in file["outputs"]] == [
        ("velocity", [1, 16, 1, 64])
    ]
    assert sum(file["ops"].values()) > 50
    assert sum(file["storage"].values()) > 10
    path = micro.bundles[target] / "components" / f"denoiser{suffix}"
    files = [path] if path.is_file() else [f for f in path.rglob("*") if f.is_file()]
    assert file["bytes"] == sum(f.stat().st_size for f in files)


def test_inspect_counts_the_parameters_of_a_checkpoint(cli, micro) -> None:
    found = json.loads(cli("inspect", micro.checkpoint, "--json").out)
    parts = {part["name"]: part for part in found["parts"]}
    assert set(parts) == {"transformer", "text_encoder", "text_encoder_2", "vae"}
    width, rows = 32, 12 + 2  # AdaLN rows a double block and the last norm project
    assert parts["transformer"]["parameters"] > width * width * rows
    for part in parts.values():
        assert part["bytes"] == 2 * part["parameters"]
        assert list(part["dtypes"]) == ["float16"]


@pytest.mark.parametrize("kind", ["bundle", "file", "checkpoint"])
def test_inspect_shows_a_person_the_same(cli, micro, kind: str) -> None:
    paths = {
        "bundle": micro.bundles["coreml"],
        "file": micro.bundles["litert"] / "components" / "decoder.tflite",
        "checkpoint": micro.checkpoint,
    }
    words = {"bundle": "peak weights", "file": "CONV_2D", "checkpoint": "parameters"}
    ended = cli("inspect", paths[kind], "--lint")
    assert (ended.code, ended.out) == (0, "")
    assert words[kind].lower() in ended.err.lower()


@pytest.mark.parametrize("target", ["coreml", "litert"])
def test_verify_shows_every_figure(cli, micro, target: str) -> None:
    ended = cli("verify", micro.bundles[target], "--json")
    found = json.loads(ended.out)
    manifest = json.loads((micro.bundles[target] / "manifest.json").read_text("utf-8"))
    assert ended.code == 0
    assert "run denoiser" in ended.err
    assert found == {
        **{"parity": manifest["parity"], "lint": manifest["lint"]},
        **{"unused": [], "gpu": []},
    }


def test_only_litert_has_an_accelerator_that_runs_here(cli, micro) -> None:
    ended = cli("verify", micro.bundles["coreml"], "--gpu")
    assert ended.code == 3
    assert "verify it without --gpu" in ended.err
    assert "run denoiser" not in ended.err  # told before any work


def test_a_missing_driver_is_told_before_any_work(cli, micro, monkeypatch, tmp_path: Path) -> None:
    for variable in ("NANOFLUX_VULKAN_ICD", "VK_ICD_FILENAMES"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NANOFLUX_TOOLCHAINS", str(tmp_path))
    ended = cli("verify", micro.bundles["litert"], "--gpu")
    assert ended.code == 3
    assert "tests/toolchains/vulkan.sh" in " ".join(ended.err.split())
    assert "run denoiser" not in ended.err


@pytest.mark.parametrize("kind", ["checkpoint", "coreml", "litert"])
def test_generate_writes_a_picture_of_the_seed(cli, micro, tmp_path: Path, kind: str) -> None:
    path = micro.checkpoint if kind == "checkpoint" else micro.bundles[kind]
    steps = ("--steps", 3) if kind == "checkpoint" else ()
    pictures = []
    for name, seed in (("a", 5), ("b", 5), ("c", 2**64 - 1)):
        out = tmp_path / "new" / f"{name}.png"
        ended = cli("generate", path, *PROMPT, "--seed", seed, *steps, "-o", out, "--json")
        told = json.loads(ended.out)
        assert (ended.code, told["seed"], told["steps"]) == (0, seed, 3)
        image = Image.open(out)
        assert image.size == (32, 32)
        assert image.info["seed"] == str(seed)
        assert image.info["digest"] == told["digest"]
        pictures.append(np.asarray(image))
    assert np.array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])
    assert [path.name for path in sorted((tmp_path / "new").iterdir())] == [
        "a.png",
        "b.png",
        "c.png",
    ]


# What follows the verb, words of the sentence. {tmp} is a folder with a regular file `file`,
# {micro} the checkpoint, {coreml} a bundle, {recipe} the micro recipe.
BAD = {
    "no checkpoint": ("generate {tmp}/nowhere --prompt x", ("nowhere", "does not exist")),
    "no model": ("generate {tmp} --prompt x", ("neither a bundle", "nor a checkpoint")),
    "a file": ("generate {tmp}/file --prompt x", ("file", "checkpoint")),
    "no bundle": ("verify {tmp}/nowhere", ("nowhere", "not a bundle")),
    "verify a file": ("verify {tmp}/file", ("file",)),
    "verify a checkpoint": ("verify {micro}", ("not a bundle",)),
    "inspect nothing": ("inspect {tmp}/nowhere", ("nowhere", "does not exist")),
    "inspect a folder": ("inspect {tmp}", ("is not", ".tflite")),
    "inspect a text": ("inspect {tmp}/file", ("is not", ".mlpackage")),
    "no prompt": ("generate {coreml}", ("--prompt",)),
    "empty prompt": ("generate {coreml} --prompt=", ("prompt is empty",)),
    "blank prompt": ("generate {coreml} --prompt=\u2003\u00a0", ("prompt is empty",)),
    "blank prompt, teacher": ("generate {micro} --prompt=\n", ("prompt is empty",)),
    "emoji prompt": ("generate {coreml} --prompt=🦊", ("🦊", "vocabulary")),
    "emoji prompt, teacher": ("generate {micro} --prompt=a🦊b", ("🦊", "vocabulary")),
    "prompt that is no text": ("generate {coreml} --prompt=\udcff", ("prompt",)),
    "negative seed": ("generate {coreml} --prompt x --seed -1", ("-1", "2**64 - 1")),
    "large seed": (f"generate {{micro}} --prompt x --seed {2**64}", (f"{2**64}", "2**64 - 1")),
    "word as seed": ("generate {coreml} --prompt x --seed red", ("--seed", "integer")),
    "steps 0": ("generate {coreml} --prompt x --steps 0", ("--steps", "1")),
    "steps 101": ("generate {micro} --prompt x --steps 101", ("--steps", "100")),
    "other steps": ("generate {coreml} --prompt x --steps 4", ("3 steps", "--set steps=4")),
    "below a file": ("generate {coreml} --prompt x -o {tmp}/file/x.png", ("x.png", "not a folder")),
    "onto a folder": ("generate {coreml} --prompt x -o {tmp}", ("it is a folder",)),
    "long name": (f"generate {{coreml}} --prompt x -o {{tmp}}/{'x' * 300}", ("too long",)),
    "wrong recipe": ("export {micro} --recipe tiny", ("'tiny'", "tiny-fp16")),
    "no recipe file": ("export {micro} --recipe {tmp}/no.toml", ("no.toml",)),
    "recipe is a text": ("export {micro} --recipe {tmp}/bad.toml", ("bad.toml", "TOML")),
    "no recipe": ("export {micro}", ("--recipe",)),
    "no value to set": ("export {micro} --recipe {recipe} --set steps", ("key=value",)),
    "unknown value": ("export {micro} --recipe {recipe} --set step=3", ("step",)),
    "steps as a word": ("export {micro} --recipe {recipe} --set steps=many", ("steps", "many")),
    "no steps": ("export {micro} --recipe {recipe} --set steps=0", ("steps is 0", "1 to 100")),
    "export nothing": ("export {tmp}/nowhere --recipe {recipe}", ("nowhere",)),
    "export a bundle": ("export {coreml} --recipe {recipe}", ("not a checkpoint",)),
    "export below a file": (
        "export {micro} --recipe {recipe} --out {tmp}/file",
        ("not a folder",),
    ),
    "unknown verb": ("exprot {micro}", ("exprot",)),
    "unknown option": ("verify {coreml} --fast", ("--fast",)),
    "two paths": ("verify {coreml} {coreml}", ("{coreml}",)),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_exit_code_3(cli, micro, tmp_path: Path, case: str) -> None:
    (tmp_path / "file").write_text("text", encoding="utf-8")
    (tmp_path / "bad.toml").write_text("steps = = 3", encoding="utf-8")
    places = {
        "tmp": tmp_path,
        "micro": micro.checkpoint,
        "coreml": micro.bundles["coreml"],
        "recipe": micro.recipe,
    }
    line, words = BAD[case]
    before = sorted(tmp_path.rglob("*"))
    ended = cli(*(word.format(**places) for word in line.split(" ")))
    ended.refused(3, *(word.format(**places) for word in words))
    assert ended.out == ""
    assert sorted(tmp_path.rglob("*")) == before


def test_a_long_prompt_is_not_cut_in_silence(cli, micro, tmp_path: Path) -> None:
    out = tmp_path / "long.png"
    for path in (micro.checkpoint, micro.bundles["litert"]):
        ended = cli("generate", path, "--prompt", "a red circle " * 770, "-o", out)
        ended.refused(3, "tokens", "shorten it")
        assert len(ended.errors[0]) < 300  # the prompt is not repeated whole
    assert not out.exists()


def test_a_full_disk_is_said_and_leaves_the_old_picture(cli, micro, tmp_path, monkeypatch) -> None:
    out = tmp_path / "out.png"
    out.write_bytes(b"older")

    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", full)
    cli("generate", micro.bundles["litert"], *PROMPT, "-o", out).refused(3, "disk is full")
    assert out.read_bytes() == b"older"
    assert list(tmp_path.iterdir()) == [out]


def test_a_full_disk_leaves_no_bundle(cli, micro, tmp_path: Path, monkeypatch) -> None:
    def full(*paths: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("nanoflux_export.targets.coreml.target.write", full)
    ended = cli("export", micro.checkpoint, "--recipe", micro.recipe, "--out", tmp_path / "out")
    ended.refused(3, "disk is full")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [WORK]
    made = {path.name for path in (tmp_path / "out" / WORK).iterdir()}
    assert not [name for name in made if "write" in name or "partial" in name]


def test_a_disk_that_is_too_small_is_said_before_any_work(
    cli, micro, tmp_path, monkeypatch
) -> None:
    full = Usage(10**12, 10**12, 1000)
    monkeypatch.setattr("nanoflux_export.saving.shutil.disk_usage", lambda path: full)
    monkeypatch.setattr("nanoflux_export.pipeline.export_target", None)  # nothing may get there
    out = tmp_path / "out"
    ended = cli("export", micro.checkpoint, "--recipe", micro.recipe, "--out", out)
    ended.refused(3, str(out), "0.0 GB free", "--out")
    assert not out.exists()


def test_no_word_at_all_is_a_request_for_help(cli) -> None:
    ended = cli()
    assert ended.code == 0
    assert all(verb.name in ended.out for verb in command_line.VERBS)
