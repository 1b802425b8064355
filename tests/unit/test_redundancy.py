"""Redundancy of heads and channels, against numpy's SVD of what the heads really gave out.

Shapes: B batch, S image tokens, T text tokens, L = S + T, C token channels, J text width, P pooled
width, N all tokens, H heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanoflux_mobile.compress.importance import inputs_of
from nanoflux_mobile.compress.redundancy import (
    energy_of_channels,
    energy_of_heads,
    kept_energy,
    second_moments,
    with_components,
)
from nanoflux_mobile.distill.teaching import attention_outputs, head_outputs
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.nanoflux_layers import rope_tables

MICRO = FluxConfig(
    in_channels=4,
    num_layers=1,
    num_single_layers=2,
    attention_head_dim=6,
    num_attention_heads=4,
    joint_attention_dim=8,
    pooled_projection_dim=8,
    guidance_embeds=False,
    axes_dims_rope=(2, 2, 2),
)
HEADS, WIDE, BLOCKS = 4, 6, 3
FLOAT32 = 1e-5
"""Share of the largest value: float32 sums over some dozens of tokens, in another order."""


def micro(seed: int = 0) -> NanoFlux:
    rng = torch.Generator().manual_seed(seed)
    model = NanoFlux(MICRO).eval().requires_grad_(False)
    for p in model.parameters():
        p.copy_(torch.randn(p.shape, generator=rng) * (0.3 if p.ndim > 1 else 0.1))
    return model


def run_of(model: NanoFlux, seed: int) -> Callable[[], Tensor]:
    rng = torch.Generator().manual_seed(seed)
    draw = partial(torch.randn, generator=rng)
    x_BSC, text_BTJ, pooled_BP = draw(3, 5, 4), draw(3, 2, 8), draw(3, 8)
    rope = rope_tables(torch.arange(21).view(7, 3) % 5, MICRO.axes_dims_rope)
    rows_BND = model.modulations(torch.tensor([1.0, 0.5, 0.1]), pooled_BP)
    return lambda: model(x_BSC, text_BTJ, rows_BND, rope)


def given_out(model: NanoFlux, run: Callable[[], Tensor]) -> list[np.ndarray]:
    """Per block what the heads give out, (H, N K)."""
    with inputs_of(attention_outputs(model)) as seen:
        run()
    outputs = head_outputs(model, seen, slice(None))
    return [out.flatten(0, 1).transpose(0, 1).flatten(1).numpy() for out in outputs]


def energies(matrix: np.ndarray) -> np.ndarray:
    squares = np.linalg.svd(matrix.astype(np.float64), compute_uv=False) ** 2
    return squares.cumsum() / squares.sum()


def test_energies_are_those_of_the_singular_values() -> None:
    model = micro()
    run = run_of(model, 1)
    moments = second_moments(model, [run])
    found = given_out(model, run)
    assert len(moments.heads) == len(moments.channels) == len(found) == BLOCKS
    for outputs, heads, channels in zip(found, moments.heads, moments.channels, strict=True):
        np.testing.assert_allclose(kept_energy(heads), energies(outputs), atol=FLOAT32)
        own = [np.linalg.svd(o.reshape(-1, WIDE), compute_uv=False) ** 2 for o in outputs]
        wanted = np.sum(own, 0).cumsum() / np.sum(own)
        np.testing.assert_allclose(energy_of_channels(channels), wanted, atol=FLOAT32)
        for of_head, head_KK in zip(outputs, channels, strict=True):
            wanted = energies(of_head.reshape(-1, WIDE))
            np.testing.assert_allclose(kept_energy(head_KK), wanted, atol=FLOAT32)
        loudest = np.sort((outputs**2).sum(1))[::-1]
        np.testing.assert_allclose(
            energy_of_heads(heads), loudest.cumsum() / loudest.sum(), atol=FLOAT32
        )


def test_moments_of_batches_add_up() -> None:
    model = micro()
    runs = [run_of(model, seed) for seed in (1, 2)]
    both, single = second_moments(model, runs), [second_moments(model, [run]) for run in runs]
    for i in range(BLOCKS):
        torch.testing.assert_close(both.heads[i], single[0].heads[i] + single[1].heads[i])
        torch.testing.assert_close(both.channels[i], single[0].channels[i] + single[1].channels[i])


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
def test_energies_do_not_fall_and_end_at_one(size: int, rank: int, seed: int) -> None:
    rows = torch.randn(2, size, rank, generator=torch.Generator().manual_seed(seed)).double()
    moments = rows @ rows.transpose(1, 2)
    for energy in (
        kept_energy(moments),
        energy_of_heads(moments),
        energy_of_channels(moments)[None],
    ):
        assert (energy.diff(dim=-1) >= 0).all()
        assert energy.min() >= 0
        np.testing.assert_allclose(energy[:, -1], 1.0, atol=1e-12)  # float64 sums
    # No choice of whole heads holds more than the best mixtures do.
    assert (kept_energy(moments) >= energy_of_heads(moments) - 1e-12).all()


def test_heads_that_say_nothing_are_kept_whole() -> None:
    nothing = torch.zeros(3, 4, 4, dtype=torch.float64)
    for energy in (kept_energy(nothing), energy_of_heads(nothing), energy_of_channels(nothing)):
        assert (energy == 1).all()


@pytest.mark.parametrize("count", range(1, HEADS + 1))
def test_what_goes_on_is_the_truncated_svd(count: int) -> None:
    """The first block alone: behind it a network with fewer components sees other inputs."""
    model = micro()
    run = run_of(model, 1)
    whole = given_out(model, run)[0]
    with with_components(model, second_moments(model, [run]), count):
        cut = given_out(model, run)[0]
    u, s, v = np.linalg.svd(whole, full_matrices=False)
    wanted = u[:, :count] * s[:count] @ v[:count]
    np.testing.assert_allclose(cut, wanted, atol=FLOAT32 * np.abs(whole).max())


def test_all_components_change_nothing_and_fewer_do_until_the_end() -> None:
    model = micro()
    run = run_of(model, 1)
    moments, whole = second_moments(model, [run]), run()
    with with_components(model, moments, HEADS):
        torch.testing.assert_close(run(), whole, rtol=FLOAT32, atol=FLOAT32)
    with with_components(model, moments, 1):
        assert (run() - whole).abs().max() > 100 * FLOAT32
    assert torch.equal(run(), whole)


def test_hidden_units_of_single_blocks_pass_untouched() -> None:
    model = micro()
    first = model.transformer_blocks[0].attn
    for silenced in (first.to_out[0], first.to_add_out):  # so the next block's inputs stay
        silenced.weight.zero_()
    run = run_of(model, 1)
    moments = second_moments(model, [run])
    with inputs_of(attention_outputs(model)) as seen:
        run()
        whole = seen["single 0"]
    with with_components(model, moments, 1), inputs_of(attention_outputs(model)) as seen:
        run()
        cut = seen["single 0"]
    assert torch.equal(cut[..., MICRO.width :], whole[..., MICRO.width :])
    assert (cut - whole)[..., : MICRO.width].abs().max() > 100 * FLOAT32


def test_identical_heads_have_rank_one() -> None:
    model = micro()
    for name, p in model.named_parameters():
        if any(part in name for part in ("attn.to_", "attn.add_")) and "_out" not in name:
            by_head = p.unflatten(0, (HEADS, -1))
            by_head.copy_(by_head[:1].expand_as(by_head).clone())
    run = run_of(model, 1)
    moments, whole = second_moments(model, [run]), run()
    for heads in moments.heads:
        assert kept_energy(heads)[0] == pytest.approx(1, abs=FLOAT32)
    with with_components(model, moments, 1):
        torch.testing.assert_close(run(), whole, rtol=10 * FLOAT32, atol=10 * FLOAT32)


@pytest.mark.parametrize("count", [0, -1, HEADS + 1])
def test_a_count_that_cannot_be_is_refused(count: int) -> None:
    model = micro()
    with (
        pytest.raises(InputError, match=f"{count} components of 4 heads; give 1 to 4"),
        with_components(model, second_moments(model, []), count),
    ):
        pass
