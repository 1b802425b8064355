"""What the runner accepts, and that damaged files are refused instead of crashing the process."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from nanoflux_export.targets.litert.model_file import read_model
from nanoflux_export.targets.litert.run import load
from nanoflux_mobile.errors import InputError


def test_runs_are_independent_and_repeatable(block):
    run = block.runner("int8")
    first = run(block.inputs)
    run({**block.inputs, "latents": -block.inputs["latents"]})
    for name, value in run(block.inputs).items():
        np.testing.assert_array_equal(value, first[name])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda i: {"latents": i["latents"]}, "takes latents, token_ids; it was given latents"),
        (lambda i: {**i, "t": i["latents"]}, "it was given latents, token_ids, t"),
        (lambda i: {**i, "latents": i["latents"][0]}, r"must be float32 \(1, 32, 1, 24\)"),
        (lambda i: {**i, "latents": i["latents"].astype("float64")}, "latents is float64"),
        (lambda i: {**i, "token_ids": i["token_ids"].astype("int64")}, "token_ids is int64"),
        (lambda i: {**i, "token_ids": i["token_ids"] + 49}, "cannot compute these inputs"),
    ],
)
def test_other_inputs_are_refused(block, change, message):
    with pytest.raises(InputError, match=message):
        block.runner("fp16")(change(block.inputs))


def test_a_file_of_another_component_is_refused(block, decoder):
    with pytest.raises(InputError, match=r"float32 \(1, 4, 8, 8\), but denoiser takes"):
        load(decoder.files["fp16"], block.component)


def test_outputs_under_another_name_are_refused(decoder):
    (image,) = decoder.component.outputs
    renamed = dataclasses.replace(
        decoder.component, outputs=(dataclasses.replace(image, name="pixels"),)
    )
    with pytest.raises(InputError, match=r"returns image .* but decoder returns pixels"):
        load(decoder.files["fp16"], renamed)


def test_no_file_is_refused(tmp_path, decoder):
    with pytest.raises(InputError, match="cannot read"):
        load(tmp_path / "absent.tflite", decoder.component)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x00" * 64, b"\x1c\x00\x00\x00TFL3"])
def test_other_files_are_refused(tmp_path, decoder, content):
    path = tmp_path / "x.tflite"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged or not a \.tflite file"):
        load(path, decoder.component)


@pytest.mark.parametrize("scheme", ["fp16", "int8"])
def test_a_file_cut_short_is_refused_in_python(tmp_path, block, scheme):
    """Every way of cutting: none reaches native code."""
    whole, path = block.files[scheme].read_bytes(), tmp_path / "cut.tflite"
    for length in range(0, len(whole), len(whole) // 40):
        path.write_bytes(whole[:length])
        with pytest.raises(InputError, match="damaged"):
            load(path, block.component)


def test_overwritten_files_are_read_or_refused(tmp_path, block):
    """Whatever is written over a file, reading it in Python ends, and ends in no other error."""
    rng, path = np.random.default_rng(0), tmp_path / "overwritten.tflite"
    whole = np.fromfile(block.files["int8"], np.uint8)
    refused = 0
    for _ in range(300):
        damaged = whole.copy()
        at = rng.integers(8, len(whole) - 4, size=3)
        damaged[at] = rng.integers(0, 256, size=3)
        damaged[at[0] : at[0] + 4] = rng.choice([0, 255])
        damaged.tofile(path)
        try:
            read_model(path)
        except InputError:
            refused += 1
    assert refused > 0
