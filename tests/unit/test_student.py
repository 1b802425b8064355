"""What a recipe asks of a checkpoint before anything is exported."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanoflux_export.recipe import load_recipe, with_loras
from nanoflux_export.student import Student, check_recipe, make_student
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Recipe, Suppression

LAYER = "transformer_blocks.0.attn.to_q"


@pytest.fixture
def recipe() -> Recipe:
    """A shipped recipe with few steps and one prompt."""
    tiny = load_recipe("tiny-fp16")
    return dataclasses.replace(tiny, steps=2, calibration_prompts=("a red circle",))


def weight(student: Student, name: str = LAYER) -> torch.Tensor:
    """A weight of the student's denoiser."""
    return student.parts.networks.denoiser.tensor(f"{name}.weight")


def lora(folder: Path, rows: int, columns: int) -> Path:
    """A LoRA of rank one for LAYER, under PEFT's names."""
    generator = torch.Generator().manual_seed(0)
    down = torch.randn(1, columns, generator=generator)
    up = torch.randn(rows, 1, generator=generator)
    names = (f"transformer.{LAYER}.lora_A.weight", f"transformer.{LAYER}.lora_B.weight")
    save_file(dict(zip(names, (down, up), strict=True)), folder / "style.safetensors")
    return folder / "style.safetensors"


def test_a_lora_is_fused_at_its_strength_and_told(
    micro_checkpoint: Path, recipe: Recipe, tmp_path: Path
) -> None:
    plain = make_student(micro_checkpoint, recipe)
    file = lora(tmp_path, *weight(plain).shape)
    down, up = (load_file(file)[f"transformer.{LAYER}.lora_{part}.weight"] for part in "AB")
    wanted = with_loras(recipe, (f"{file}=0.5",))
    fused = make_student(micro_checkpoint, wanted)
    torch.testing.assert_close(weight(fused), weight(plain) + 0.5 * up @ down)
    assert torch.equal(weight(fused, "proj_out"), weight(plain, "proj_out"))
    assert wanted.overrides["loras.style.safetensors"] == "0.5"
    assert fused.key != plain.key, "finished work of the plain model must not be taken for it"


def test_a_lora_of_another_width_is_refused(
    micro_checkpoint: Path, recipe: Recipe, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=r"style\.safetensors.*7"):
        make_student(micro_checkpoint, with_loras(recipe, (str(lora(tmp_path, 7, 7)),)))


@pytest.mark.parametrize("told", ["a.safetensors=loud", "a.safetensors="])
def test_a_strength_is_a_number(recipe: Recipe, told: str) -> None:
    with pytest.raises(InputError, match=r"give FILE=STRENGTH"):
        with_loras(recipe, (told,))


def test_a_recipe_without_loras_stays_as_it_is(recipe: Recipe) -> None:
    assert with_loras(recipe, ()) is recipe


def test_a_recipe_says_the_side_of_the_picture(micro_checkpoint: Path, recipe: Recipe) -> None:
    plain = make_student(micro_checkpoint, recipe)
    wide = make_student(micro_checkpoint, dataclasses.replace(recipe, side=2 * plain.parts.side))
    assert wide.parts.canvas.tokens == 4 * plain.parts.canvas.tokens
    image = wide.graphs[-1].functions["main"].outputs[0]
    assert image.shape == (1, 3, wide.parts.side, wide.parts.side)
    assert wide.key != plain.key


def damaged(checkpoint: Path, folder: Path) -> Path:
    """A copy of a checkpoint with one NaN."""
    copy = folder / "damaged"
    for file in checkpoint.rglob("*"):
        if file.is_file():
            place = copy / file.relative_to(checkpoint)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(file.read_bytes())
    (weights,) = (copy / "transformer").glob("*.safetensors")
    state = load_file(weights)
    state[f"{LAYER}.weight"][0, 0] = torch.nan
    save_file(state, weights)
    return copy


def test_weights_that_are_no_numbers_are_refused_unless_asked_for(
    micro_checkpoint: Path, recipe: Recipe, tmp_path: Path
) -> None:
    checkpoint = damaged(micro_checkpoint, tmp_path)
    with pytest.raises(InputError, match=rf"{LAYER}\.weight holds 1 values.*non_finite=zero"):
        weight(make_student(checkpoint, recipe))
    mended = make_student(checkpoint, dataclasses.replace(recipe, non_finite="zero"))
    assert weight(mended)[0, 0] == 0
    assert weight(mended).isfinite().all()


@pytest.mark.parametrize(
    ("rule", "component"), [("and/io-last-axis", "decoder"), ("ane/io-last-axis", "decode")]
)
def test_a_suppression_of_nothing_is_refused(
    micro_checkpoint: Path, rule: str, component: str
) -> None:
    """A slip of the pen must not let a finding pass, nor stand there without effect."""
    wrong = Suppression(rule, component, "because")
    recipe = dataclasses.replace(load_recipe("tiny-small"), suppress=(wrong,))
    with pytest.raises(InputError, match=r"suppresses .*; rules here begin with ane/, gpu/, cpu/"):
        check_recipe(make_student(micro_checkpoint, recipe), recipe)
