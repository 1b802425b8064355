"""The student that ships beside the tiny teacher: every cut in it, small, and it still draws."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from nanoflux_export.demo import tiny_student, tiny_teacher
from nanoflux_mobile.checkpoint import open_checkpoint
from nanoflux_mobile.data.captions import examples
from nanoflux_mobile.data.scenes import render
from nanoflux_mobile.distill.scoring import parameters
from nanoflux_mobile.evaluate.sampling import scene_scores
from nanoflux_mobile.families import nanoflux
from nanoflux_mobile.families.nanoflux import FluxParts

STEPS = 10
FLOOR = 0.66
"""Share of 48 held-out prompts the student draws right; TRAINING.md has its score on 500."""
MOST_BYTES = 5_000_000
MOST_OF_TEACHER = 1 / 6
SHIFT = 1.0
"""Levels of 255 by which a channel's mean may be off the full decoder's."""
DECODER_DB = 32.0
"""From here on the checker reads a decoded scene as surely as a rendered one."""


@pytest.fixture(scope="module")
def teacher() -> FluxParts:
    return nanoflux.load(open_checkpoint(tiny_teacher()))


@pytest.fixture(scope="module")
def student() -> FluxParts:
    return nanoflux.load(open_checkpoint(tiny_student()))


def test_every_cut_is_in_it(teacher: FluxParts, student: FluxParts) -> None:
    before, after = teacher.flux, student.flux
    assert after.num_attention_heads * 3 == before.num_attention_heads * 2
    assert after.attention_head_dim * 4 == before.attention_head_dim * 3
    assert (after.num_layers, after.num_single_layers) == (4, 5)
    assert after.static_steps == STEPS
    assert after.low_resolution_blocks == (1, 5)
    assert after.low_steps(STEPS) == STEPS // 2
    assert student.clip is None, "a table of steps reads no pooled text"
    assert not any(name.startswith("encoder.") for name in student.networks.vae.weights)


def test_it_is_a_sixth_of_its_teacher(teacher: FluxParts, student: FluxParts) -> None:
    whole, small = (sum(parameters(parts).values()) for parts in (teacher, student))
    assert small <= whole * MOST_OF_TEACHER


def test_every_weight_is_stored_in_half_precision_and_is_finite() -> None:
    files = [path for path in tiny_student().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MOST_BYTES
    assert {path.suffix for path in files} <= {".json", ".jsonl", ".md", ".safetensors"}
    for path in files:
        if path.suffix == ".safetensors":
            assert_half(path)


def assert_half(path: Path) -> None:
    with safe_open(path, framework="pt") as file:
        tensors = [file.get_tensor(key) for key in file.keys()]  # noqa: SIM118
    assert {tensor.dtype for tensor in tensors} == {torch.float16}
    assert all(bool(tensor.isfinite().all()) for tensor in tensors)


def test_its_words_are_the_teachers(teacher: FluxParts, student: FluxParts) -> None:
    for text, _, _ in itertools.islice(examples(7), 200):
        ours, theirs = (nanoflux.token_ids(parts, text) for parts in (student, teacher))
        assert np.array_equal(ours, theirs)


def test_its_decoder_draws_what_the_full_one_does(teacher: FluxParts, student: FluxParts) -> None:
    scenes = np.stack([render(scene) for _, _, scene in itertools.islice(examples(987_654), 64)])
    pixels = torch.from_numpy(scenes).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    with torch.no_grad():
        latents = teacher.vae.encode(pixels)
        theirs, ours = (parts.vae.decode(latents).clamp(-1, 1) for parts in (teacher, student))
    mse = (ours - theirs).square().mean().item()
    assert 10 * np.log10(2.0**2 / mse) >= DECODER_DB
    shift = (ours - theirs).mean((0, 2, 3)) * 127.5
    assert shift.abs().max() <= SHIFT


def test_the_student_draws_held_out_prompts(student: FluxParts) -> None:
    found = scene_scores(student, STEPS, 48)
    assert found.overall >= FLOOR, found
