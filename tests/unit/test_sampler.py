"""The sampler against diffusers, for numpy and torch, and the settings it must refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.flux.pipeline_flux import FluxPipeline, calculate_shift

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.sampler import (
    Schedule,
    euler,
    image_ids,
    pack,
    schedule,
    text_ids,
    unpack,
)

FLOAT32 = 1e-6
"""The oracle computes in float32; we compute in double and round once."""

SCHNELL = {"_class_name": "FlowMatchEulerDiscreteScheduler", "_diffusers_version": "0.30.0.dev0"}
SCHNELL |= {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096}
SCHNELL |= {"max_shift": 1.15, "num_train_timesteps": 1000, "shift": 1.0}
SCHNELL |= {"use_dynamic_shifting": False}
DEV = SCHNELL | {"shift": 3.0, "use_dynamic_shifting": True}
STATIC_3 = SCHNELL | {"shift": 3.0}
OTHER_LINE = DEV | {"base_shift": 0.3, "max_shift": 2.0, "max_image_seq_len": 8192}
CONFIGS = {"schnell": SCHNELL, "dev": DEV, "static 3": STATIC_3, "other line": OTHER_LINE}


def _oracle(steps: int, config: dict, tokens: int) -> FlowMatchEulerDiscreteScheduler:
    """The scheduler as FluxPipeline prepares it."""
    scheduler = FlowMatchEulerDiscreteScheduler.from_config(config)
    mu = calculate_shift(
        tokens,
        config["base_image_seq_len"],
        config["max_image_seq_len"],
        config["base_shift"],
        config["max_shift"],
    )
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), mu=mu)
    return scheduler


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("steps", [1, 4, 10, 28])
@pytest.mark.parametrize("tokens", [64, 256, 1024, 4096])
def test_levels_are_those_of_diffusers(steps, config, tokens):
    ours = schedule(steps, config, image_tokens=tokens)
    theirs = _oracle(steps, config, tokens).sigmas.numpy()
    assert ours.steps == steps
    assert len(ours.sigmas) == steps + 1
    assert ours.sigmas[-1] == 0.0
    assert np.abs(np.array(ours.sigmas) - theirs).max() <= FLOAT32


def test_schnell_in_four_steps_is_even_quarters():
    assert schedule(4, SCHNELL, image_tokens=256).sigmas == (1.0, 0.75, 0.5, 0.25, 0.0)


def test_missing_settings_have_the_defaults_of_diffusers():
    bare = {"use_dynamic_shifting": True}
    assert schedule(10, bare, image_tokens=900) == schedule(10, DEV, image_tokens=900)
    full = dict(FlowMatchEulerDiscreteScheduler().config)
    assert schedule(10, full, image_tokens=900) == schedule(10, {}, image_tokens=900)


def test_levels_survive_json_and_float32():
    sigmas = schedule(28, DEV, image_tokens=1024).sigmas
    assert tuple(json.loads(json.dumps(sigmas))) == sigmas
    assert tuple(float(np.float32(sigma)) for sigma in sigmas) == sigmas


def _toy_velocity(weights: torch.Tensor, sigmas: tuple[float, ...]):
    """A smooth field that depends on the latents and on the level."""
    return lambda x, step: torch.tanh(x @ weights) * (1.5 - sigmas[step])


@pytest.mark.parametrize("config", [SCHNELL, DEV], ids=["schnell", "dev"])
@pytest.mark.parametrize("steps", [1, 4, 10, 28])
def test_trajectory_is_that_of_diffusers(config, steps):
    draw = torch.Generator().manual_seed(steps)
    x = torch.randn(1, 64, 16, generator=draw)
    weights = torch.randn(16, 16, generator=draw) / 4
    oracle = _oracle(steps, config, 64)
    ours = schedule(steps, config, image_tokens=64)
    velocity = _toy_velocity(weights, ours.sigmas)
    expected, trace = x, []
    for step, time in enumerate(oracle.timesteps):
        expected = oracle.step(velocity(expected, step), time, expected, return_dict=False)[0]
        trace.append(expected)
    seen: list[tuple[int, torch.Tensor]] = []
    final = euler(velocity, x, ours, lambda step, latents: seen.append((step, latents)))
    assert [step for step, _ in seen] == list(range(steps))
    assert torch.equal(seen[-1][1], final)
    for (_, latents), theirs in zip(seen, trace, strict=True):
        assert (latents - theirs).abs().max() <= FLOAT32 * max(1.0, theirs.abs().max())


def test_numpy_and_torch_take_the_same_steps_and_leave_the_noise_alone():
    noise = np.random.default_rng(0).standard_normal((1, 16, 8)).astype(np.float32)
    levels = schedule(10, DEV, image_tokens=16)
    kept = noise.copy()
    ours = euler(lambda x, step: x * x - step, noise, levels)
    torchs = euler(lambda x, step: x * x - step, torch.from_numpy(noise), levels)
    assert ours.dtype == np.float32
    assert np.array_equal(noise, kept)
    assert np.array_equal(ours, torchs.numpy())


def test_a_straight_path_arrives_exactly():
    noise, picture = np.float32([[3.0, -1.0]]), np.float32([[0.5, 0.25]])
    levels = schedule(7, STATIC_3, image_tokens=1)
    final = euler(lambda x, step: noise - picture, noise, levels)
    assert np.abs(final - picture).max() <= FLOAT32 * 3


@pytest.mark.parametrize("as_array", [lambda x: x, lambda x: x.numpy()], ids=["torch", "numpy"])
def test_packing_is_that_of_flux(as_array):
    latents = torch.randn(2, 16, 6, 10, generator=torch.Generator().manual_seed(0))
    theirs = FluxPipeline._pack_latents(latents, 2, 16, 6, 10)
    packed = pack(as_array(latents), 2)
    assert np.array_equal(np.asarray(packed), theirs.numpy())
    back = FluxPipeline._unpack_latents(theirs, 48, 80, 8)
    assert np.array_equal(np.asarray(unpack(packed, 6, 10, 2)), back.numpy())


@pytest.mark.parametrize("patch", [1, 2, 3])
def test_unpack_undoes_pack(patch):
    latents = np.random.default_rng(1).standard_normal((1, 4, 6, 12)).astype(np.float32)
    tokens = pack(latents, patch)
    assert tokens.shape == (1, 72 // patch**2, 4 * patch**2)
    assert np.array_equal(unpack(tokens, 6, 12, patch), latents)


def test_patches_of_one_cell_are_pixels_in_reading_order():
    latents = np.arange(2 * 3 * 5, dtype=np.float32).reshape(1, 2, 3, 5)
    assert np.array_equal(pack(latents, 1)[0], latents[0].reshape(2, 15).T)


def test_positions_are_those_of_flux():
    theirs = FluxPipeline._prepare_latent_image_ids(1, 3, 5, "cpu", torch.float32)
    assert np.array_equal(image_ids(3, 5), theirs.numpy())
    assert image_ids(3, 5)[7].tolist() == [0.0, 1.0, 2.0]
    assert image_ids(3, 5).dtype == text_ids(4).dtype == np.float32
    assert np.array_equal(text_ids(4), np.zeros((4, 3)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"shift": 0.0}, "shift is 0.0"),
        ({"shift": "3"}, "shift is '3'"),
        ({"shift": float("nan")}, "shift is nan"),
        ({"use_dynamic_shifting": True, "max_shift": None}, "max_shift is None"),
        ({"use_dynamic_shifting": "yes"}, "use_dynamic_shifting is 'yes'"),
        ({"use_dynamic_shifting": True, "max_image_seq_len": 256}, "both 256"),
        ({"time_shift_type": "linear"}, "time_shift_type is 'linear'"),
        ({"use_karras_sigmas": True}, "use_karras_sigmas is True"),
        ({"shift_terminal": 0.1}, "shift_terminal is 0.1"),
        ({"num_train_timesteps": 500}, "num_train_timesteps is 500"),
        ({"_class_name": "EulerDiscreteScheduler"}, "EulerDiscreteScheduler"),
        ({"beta_start": 0.1}, "beta_start is not known"),
    ],
)
def test_another_sampler_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        schedule(4, SCHNELL | change, image_tokens=256)


@pytest.mark.parametrize(("steps", "tokens"), [(0, 1), (-1, 1), (1, 0)])
def test_counts_below_one_are_refused(steps, tokens):
    with pytest.raises(InputError, match="from 1"):
        schedule(steps, SCHNELL, image_tokens=tokens)


@pytest.mark.parametrize(
    "sigmas", [(), (0.0,), (1.0, 0.5), (0.5, 0.5, 0.0), (0.2, 0.6, 0.0), (1.5, 0.0)]
)
def test_levels_that_do_not_fall_to_zero_are_refused(sigmas):
    with pytest.raises(InputError, match="schedule"):
        Schedule(sigmas)


@pytest.mark.parametrize("low_steps", [0, 1, 3])
def test_none_to_all_steps_may_run_low(low_steps):
    assert Schedule((1.0, 0.5, 0.25, 0.0), low_steps).low_steps == low_steps


@pytest.mark.parametrize("low_steps", [-1, 4, 100])
def test_more_low_steps_than_steps_are_refused(low_steps):
    with pytest.raises(InputError, match=f"low_steps is {low_steps} of 3 steps; give 0 to all"):
        Schedule((1.0, 0.5, 0.25, 0.0), low_steps)


def test_patches_that_do_not_tile_are_refused():
    with pytest.raises(InputError, match="side 2"):
        pack(np.zeros((1, 4, 3, 4), np.float32), 2)
    for shape, patch in (((1, 6, 16), 2), ((1, 4, 15), 2), ((1, 4, 16), 0), ((1, 4, 16), 3)):
        with pytest.raises(InputError, match=f"{shape[1]} tokens"):
            unpack(np.zeros(shape, np.float32), 4, 4, patch)


def test_the_module_needs_no_torch():
    code = "import sys, nanoflux_mobile.sampler; sys.exit('torch' in sys.modules)"
    paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], check=False, env=paths).returncode == 0
