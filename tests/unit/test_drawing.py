"""The host's loop with three toy graphs, against the same loop written out straight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch

from nanoflux_mobile.drawing import Canvas, Drawing, Graphs, draw, noise_tokens, to_uint8
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.noise import gaussian
from nanoflux_mobile.sampler import Schedule

CANVAS = Canvas(channels=3, height=4, width=6, patch=2)
SCHEDULE = Schedule((1.0, 0.75, 0.25, 0.0))
TABLES = np.random.default_rng(0).standard_normal((3, 1, 5, 1, 2)).astype(np.float32)
IDS = np.array([[3, 1, 0, 0]], np.int32)
FLOAT32 = 1e-5
"""The same sums in float32, in another order."""


def velocity(latents: np.ndarray, states: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Any function of all three inputs that treats each channel and token differently."""
    weights = np.cos(np.arange(latents.size, dtype=np.float32)).reshape(latents.shape)
    return (np.tanh(latents) * weights + states.mean() * table.sum()).astype(np.float32)


def encode(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"text_states": inputs["token_ids"].astype(np.float32)[:, None, None, :]}


def denoise(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    assert set(inputs) == {"latents", "text_states", "step_table"}
    return {"velocity": velocity(inputs["latents"], inputs["text_states"], inputs["step_table"])}


def decode(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {"image": np.repeat(np.repeat(inputs["latents"], 2, 2), 2, 3)}


GRAPHS = Graphs(encode, denoise, decode)


def run(seed: int = 0, schedule: Schedule = SCHEDULE) -> Drawing:
    return draw(GRAPHS, IDS, TABLES, schedule, CANVAS, seed)


def by_hand(seed: int) -> tuple[list[np.ndarray], np.ndarray]:
    """What every step sees and the latents at the end, index by index."""
    noise = gaussian(seed, (1, 3, 4, 6))
    x = np.zeros((1, 12, 1, 6), np.float32)
    where = {}
    for c in range(3):
        for row in range(4):
            for column in range(6):
                channel = c * 4 + (row % 2) * 2 + column % 2
                token = (row // 2) * 3 + column // 2
                where[c, row, column] = channel, token
                x[0, channel, 0, token] = noise[0, c, row, column]
    states = IDS.astype(np.float32)[:, None, None, :]
    seen = []
    for step, (here, below) in enumerate([(1.0, 0.75), (0.75, 0.25), (0.25, 0.0)]):
        seen.append(x)
        x = x + np.float32(below - here) * velocity(x, states, TABLES[step])
    cells = np.zeros((1, 3, 4, 6), np.float32)
    for (c, row, column), (channel, token) in where.items():
        cells[0, c, row, column] = x[0, channel, 0, token]
    return seen, cells


@pytest.mark.parametrize("seed", [0, 1, 2**64 - 1])
def test_the_loop_is_the_one_written_out(seed: int) -> None:
    drawing = run(seed)
    seen, cells = by_hand(seed)
    assert len(drawing.latents) == SCHEDULE.steps
    for ours, theirs in zip(drawing.latents, seen, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=FLOAT32)
    np.testing.assert_allclose(drawing.final_latents, cells, atol=FLOAT32)
    np.testing.assert_array_equal(
        drawing.image, decode({"latents": drawing.final_latents})["image"]
    )
    assert drawing.latents[0].dtype == drawing.final_latents.dtype == np.float32


def test_what_graphs_are_given_lies_in_order() -> None:
    """Runtimes take pointers: arrays that are views in another order would be read wrongly."""
    given: list[np.ndarray] = []

    def watched(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given.extend(inputs.values())
        return denoise(inputs)

    drawing = draw(Graphs(encode, watched, decode), IDS, TABLES, SCHEDULE, CANVAS, 0)
    assert all(value.flags["C_CONTIGUOUS"] for value in (*given, drawing.final_latents))


def test_the_same_seed_is_the_same_picture_and_another_is_not() -> None:
    assert np.array_equal(run(5).image, run(5).image)
    assert not np.array_equal(run(5).image, run(6).image)


def test_progress_hears_of_every_step_after_it() -> None:
    heard: list[int] = []
    draw(GRAPHS, IDS, TABLES, SCHEDULE, CANVAS, 0, heard.append)
    assert heard == [0, 1, 2]


@pytest.mark.parametrize("low_steps", [0, 1, 3])
def test_the_noisy_steps_run_the_low_denoiser(low_steps: int) -> None:
    """Its velocity is another, so a step run by the wrong one would end in other latents."""
    ran: list[str] = []

    def full(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        ran.append("full")
        return denoise(inputs)

    def low(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        ran.append("low")
        return {"velocity": -denoise(inputs)["velocity"]}

    graphs = Graphs(encode, full, decode, low)
    drawing = draw(graphs, IDS, TABLES, replace(SCHEDULE, low_steps=low_steps), CANVAS, 0)
    assert ran == ["low"] * low_steps + ["full"] * (3 - low_steps)
    states = encode({"token_ids": IDS})["text_states"]
    for step in range(2):
        before, after = drawing.latents[step : step + 2]
        fall = SCHEDULE.sigmas[step + 1] - SCHEDULE.sigmas[step]
        sign = np.float32(-1 if step < low_steps else 1)
        expected = before + sign * np.float32(fall) * velocity(before, states, TABLES[step])
        np.testing.assert_allclose(after, expected, atol=FLOAT32)


def test_low_steps_of_a_denoiser_without_such_a_form_are_refused() -> None:
    low = replace(SCHEDULE, low_steps=2)
    with pytest.raises(InputError, match=r"2 steps are to run at low resolution.*downsampling"):
        run(0, low)
    with pytest.raises(InputError, match="no such form"):
        GRAPHS.denoiser_at(1, low)
    assert GRAPHS.denoiser_at(2, low) is denoise
    assert GRAPHS.denoiser_at(0, SCHEDULE) is denoise


def test_geometry_of_a_canvas() -> None:
    assert CANVAS.shape == (1, 3, 4, 6)
    assert CANVAS.tokens == 6
    assert noise_tokens(0, CANVAS).shape == (1, 12, 1, 6)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range(seed: int) -> None:
    with pytest.raises(InputError, match=str(seed)):
        run(seed)


def test_pixels_are_rounded_and_clipped() -> None:
    values = np.array([-1.0, 1.0, 0.0, -2.0, 2.0, 1e9, -1.0 + 0.49 / 127.5, -1.0 + 0.51 / 127.5])
    image = np.broadcast_to(values.astype(np.float32), (1, 3, 1, 8))
    pixels = to_uint8(image)
    assert (pixels.shape, pixels.dtype) == ((1, 8, 3), np.uint8)
    # 0.0 is 127.5: rint goes to the even neighbour, as on both phones.
    assert pixels[0, :, 0].tolist() == [0, 255, 128, 0, 255, 255, 0, 1]


def test_every_uint8_survives_the_way_there_and_back() -> None:
    levels = np.arange(256)
    image = (levels / 127.5 - 1.0).astype(np.float32)[None, None, None].repeat(3, 1)
    assert to_uint8(image)[0, :, 1].tolist() == levels.tolist()


def test_channels_rows_and_columns_stay_apart() -> None:
    image = torch.linspace(-1, 1, 3 * 2 * 5).reshape(1, 3, 2, 5)
    expected = ((image[0] + 1) * 127.5).round().byte().permute(1, 2, 0)
    assert to_uint8(image.numpy()).tolist() == expected.tolist()
