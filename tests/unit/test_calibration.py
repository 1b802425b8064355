"""What is recorded while a toy student draws: against a drawing by hand, and through a file.

Shapes: T text tokens, S image tokens, C latent channels of a token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nanoflux_export.fitting.calibration import Calibration, load, record, references, save
from nanoflux_export.graph import MAIN, STEP_FULL, STEP_LOW, MobileGraph, one_segment
from nanoflux_export.student import Student
from nanoflux_mobile.drawing import Canvas, noise_tokens
from nanoflux_mobile.noise import gaussian
from nanoflux_mobile.sampler import Schedule
from nanoflux_mobile.spec import Component, ComponentName, Recipe, TensorSpec

CANVAS = Canvas(channels=2, height=4, width=6, patch=2)
SCHEDULE = Schedule((1.0, 0.75, 0.25, 0.0), low_steps=1)
TABLES = np.random.default_rng(0).standard_normal((3, 1, 5, 1, 2)).astype(np.float32)
TOKENS, IMAGE, ROW = (1, 7), (1, 2, 4, 6), (1, 8, 1, 6)
PROMPTS = ("red", "blue")
RECIPE = Recipe("recipe/1", "toy", "", 3, PROMPTS, {})


class Encoder(nn.Module):
    def forward(self, token_ids: Tensor) -> Tensor:
        return token_ids.float()[:, None, None]


class Denoiser(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.share = share

    def forward(self, latents: Tensor, text_states: Tensor, step_table: Tensor) -> Tensor:
        return self.share * torch.tanh(latents) + 0.01 * text_states.mean() * step_table.sum()


class Decoder(nn.Module):
    def forward(self, latents: Tensor) -> Tensor:
        return 2 * latents


def spec(name: str, shape: Sequence[int], dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, tuple("abcd"[: len(shape)]), tuple(shape), dtype)  # type: ignore[arg-type]


def graph(
    name: ComponentName, module: nn.Module, inputs: Sequence[TensorSpec], output: TensorSpec
) -> MobileGraph:
    return one_segment(Component(name, tuple(inputs), (output,)), module)


def toy(low: bool = True) -> Student:
    """A student whose low steps answer with half of what its full steps answer with."""
    states, table = spec("text_states", (1, 1, 1, 7)), spec("step_table", TABLES.shape[1:])
    inputs = spec("latents", ROW), states, table
    steps = {
        name: graph("denoiser", Denoiser(share), inputs, spec("velocity", ROW)).functions[MAIN]
        for name, share in ((STEP_LOW, 0.5), (STEP_FULL, 1.0))
    }
    functions = steps if low else {MAIN: steps[STEP_FULL]}
    graphs = (
        graph("text_encoder", Encoder(), [spec("token_ids", TOKENS, "int32")], states),
        MobileGraph("denoiser", functions),
        graph("decoder", Decoder(), [spec("latents", IMAGE)], spec("image", IMAGE)),
    )
    family = SimpleNamespace(
        token_ids=lambda parts, prompt: np.full(TOKENS, len(prompt), np.int32),
        step_tables=lambda parts, prompt, steps: TABLES.copy(),
        noise_levels=lambda parts, steps: replace(SCHEDULE, low_steps=int(low)),
    )
    return Student(SimpleNamespace(canvas=CANVAS), family, graphs, "", "")


def by_hand(prompt: str, seed: int) -> list[np.ndarray]:
    """Latents before every step and after the last, in numpy."""
    latents, seen = noise_tokens(seed, CANVAS), []
    for i, (level, after) in enumerate(((1.0, 0.75), (0.75, 0.25), (0.25, 0.0))):
        seen.append(latents)
        told = np.float32(0.01 * len(prompt) * TABLES[i].sum())
        latents = latents + (after - level) * ((0.5 if i == 0 else 1.0) * np.tanh(latents) + told)
    return [*seen, latents]


@pytest.fixture(scope="module")
def recorded() -> Calibration:
    return record(toy(), RECIPE)


def test_every_step_of_every_prompt_is_there_as_drawn(recorded: Calibration) -> None:
    low, full = (recorded.inputs["denoiser", name] for name in (STEP_LOW, STEP_FULL))
    assert (len(low), len(full)) == (2, 4)
    order = [low[0], *full[:2], low[1], *full[2:]]
    hands = [by_hand(prompt, seed)[:3] for seed, prompt in enumerate(PROMPTS)]
    for i, (inputs, latents) in enumerate(zip(order, hands[0] + hands[1], strict=True)):
        # float32 on both sides, a few operations of values about 1.
        np.testing.assert_allclose(inputs["latents"], latents, atol=1e-5)
        np.testing.assert_array_equal(inputs["step_table"], TABLES[i % 3])
        assert inputs["text_states"].flat[0] == len(PROMPTS[i // 3])
    assert [one["token_ids"][0, 0] for one in recorded.inputs["text_encoder", MAIN]] == [3, 4]
    decoder = recorded.inputs["decoder", MAIN]
    assert len(decoder) == 2
    last = by_hand("blue", 1)[3]
    assert np.sort(decoder[1]["latents"], None) == pytest.approx(np.sort(last, None), abs=1e-5)


def test_other_prompts_and_seeds_are_drawn_instead_of_the_recipes() -> None:
    found = record(toy(), RECIPE, prompts=["green"], seeds=[9])
    (first,) = found.inputs["denoiser", STEP_LOW]
    np.testing.assert_array_equal(first["latents"], noise_tokens(9, CANVAS))
    assert found.inputs["text_encoder", MAIN][0]["token_ids"][0, 0] == 5
    with pytest.raises(ValueError, match="shorter"):
        record(toy(), RECIPE, seeds=[0])


def test_a_denoiser_of_one_function_runs_it_at_every_step() -> None:
    found = record(toy(low=False), RECIPE).inputs
    assert {entry: len(inputs) for entry, inputs in found.items()} == {
        ("text_encoder", MAIN): 2,
        ("denoiser", MAIN): 6,
        ("decoder", MAIN): 2,
    }


def test_of_a_recipe_proven_on_steps_one_of_each_form_is_mixed() -> None:
    """The mixtures are those that `golden.record_steps` documents, here once more by hand."""
    found = record(toy(), replace(RECIPE, proof="steps")).inputs
    assert {entry: len(inputs) for entry, inputs in found.items()} == {
        ("text_encoder", MAIN): 1,
        ("denoiser", STEP_LOW): 1,
        ("denoiser", STEP_FULL): 1,
        ("decoder", MAIN): 1,
    }
    noise, other = noise_tokens(0, CANVAS), noise_tokens(1, CANVAS)
    (low,), (full,) = found["denoiser", STEP_LOW], found["denoiser", STEP_FULL]
    np.testing.assert_array_equal(low["latents"], noise)
    np.testing.assert_allclose(full["latents"], 0.75 * noise + 0.25 * other, rtol=1e-6)
    assert full["text_states"].tolist() == [[[[3.0] * 7]]]
    np.testing.assert_array_equal(full["step_table"], TABLES[1])
    decoded = found["decoder", MAIN][0]["latents"]
    np.testing.assert_array_equal(decoded, gaussian(1, CANVAS.shape))


@pytest.mark.parametrize("keep", [True, False])
def test_references_are_what_the_graph_answers(recorded: Calibration, keep: bool) -> None:
    _, denoiser, decoder = toy().graphs
    answers = references(denoiser, recorded, keep=keep)
    assert {name: len(found) for name, found in answers.items()} == {STEP_LOW: 2, STEP_FULL: 4}
    taken = recorded.inputs["denoiser", STEP_LOW][1]
    told = 0.01 * taken["text_states"].mean() * taken["step_table"].sum()
    expected = 0.5 * np.tanh(taken["latents"]) + told
    np.testing.assert_allclose(answers[STEP_LOW][1]["velocity"], expected, atol=1e-6)
    latents = recorded.inputs["decoder", MAIN][0]["latents"]
    np.testing.assert_array_equal(
        references(decoder, recorded)[MAIN][0]["image"], np.float32(2) * latents
    )


def test_a_saved_calibration_comes_back_with_equal_arrays_once(
    recorded: Calibration, tmp_path: Path
) -> None:
    first, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save(recorded, first)
    back = load(first)
    assert back.inputs.keys() == recorded.inputs.keys()
    for entry, inputs in recorded.inputs.items():
        for ours, theirs in zip(back.inputs[entry], inputs, strict=True):
            assert ours.keys() == theirs.keys()
            for name, array in theirs.items():
                assert ours[name].dtype == array.dtype
                np.testing.assert_array_equal(ours[name], array)
    tables = [one["step_table"] for one in back.inputs["denoiser", STEP_FULL]]
    assert tables[0] is tables[2]  # the second prompt's
    assert tables[0] is not tables[1]
    every = [
        array for inputs in recorded.inputs.values() for one in inputs for array in one.values()
    ]
    distinct = {(array.shape, array.tobytes()): array.nbytes for array in every}
    assert first.stat().st_size < sum(distinct.values()) + 8192  # and a header of 40 keys
    save(back, again)
    assert again.read_bytes() == first.read_bytes()
