"""Cut C2: fewer channels in every head, by directions of values and by whole rotary pairs.

Shapes: L tokens, H heads, K head width, R what is kept of it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nanoflux_mobile.compress.features import (
    cut_features,
    first_channels,
    kept_pairs,
    narrower_axes,
    value_bases,
)
from nanoflux_mobile.compress.importance import Importance, measure
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.nanoflux_layers import rope_tables
from nanoflux_mobile.weights import Network, held
from tests.unit.micro_flux import FLOAT32, FORMS, MICRO, make, runs, unread, velocity

HEADS, WIDE, NARROW = MICRO.num_attention_heads, MICRO.attention_head_dim, 6
BLOCKS = MICRO.num_layers + MICRO.num_single_layers


def random_bases(channels: int, seed: int = 5) -> list[Tensor]:
    """Orthonormal (H, K, R) for every block."""
    rng = torch.Generator().manual_seed(seed)
    square = torch.randn(BLOCKS, HEADS, WIDE, WIDE, generator=rng, dtype=torch.float64)
    return list(torch.linalg.qr(square)[0].float()[..., :channels])


AXES = st.lists(st.integers(1, 40).map(lambda pairs: 2 * pairs), min_size=1, max_size=4)


@given(AXES.map(tuple), st.data())
def test_a_split_is_even_and_whole_and_no_axis_grows(axes: tuple[int, ...], data) -> None:
    channels = 2 * data.draw(st.integers(len(axes), sum(axes) // 2))
    split = narrower_axes(axes, channels)
    assert sum(split) == channels
    assert all(2 <= new <= old and new % 2 == 0 for old, new in zip(axes, split, strict=True))
    if channels == sum(axes):
        assert split == axes


@pytest.mark.parametrize(
    ("axes", "channels", "split"),
    [
        ((16, 56, 56), 96, (12, 42, 42)),
        ((4, 6, 6), 10, (2, 4, 4)),
        ((16, 56, 56), 64, (8, 28, 28)),
        ((4, 2, 2), 6, (2, 2, 2)),
        ((2, 30), 4, (2, 2)),
    ],
)
def test_splits_that_are_known(axes: tuple[int, ...], channels: int, split: tuple[int, ...]):
    assert narrower_axes(axes, channels) == split


@pytest.mark.parametrize("channels", [-2, 0, 4, 7, 10])
def test_a_head_that_no_split_fills_is_refused_before_any_reading(channels: int) -> None:
    with pytest.raises(InputError, match=f"become {channels} wide; give an even number"):
        cut_features(unread(MICRO), channels, first_channels(MICRO, 6))


@given(AXES.map(tuple), st.data())
def test_whole_pairs_stay_within_their_axis_and_near_their_frequency(axes, data) -> None:
    new = narrower_axes(axes, 2 * data.draw(st.integers(len(axes), sum(axes) // 2)))
    channels = kept_pairs(axes, new)
    pairs = channels.view(-1, 2)
    assert (pairs[:, 0] % 2 == 0).all()
    assert (pairs[:, 1] == pairs[:, 0] + 1).all()
    chosen, start = pairs[:, 0] // 2, 0
    for old, kept, mine in zip(axes, new, chosen.split([n // 2 for n in new]), strict=True):
        inside = mine - start
        assert inside.tolist() == sorted(set(inside.tolist()))
        assert 0 <= inside[0] <= inside[-1] < old // 2
        # Old exponents are 2/old apart, so the nearest is at most half of that away.
        off = inside / (old // 2) - torch.arange(kept // 2) / (kept // 2)
        assert off.abs().max() <= 1 / old + 1e-6
        start += old // 2


@pytest.mark.parametrize(
    ("old", "new"), [((16, 56, 56), (12, 42, 42)), ((4, 6, 6), (2, 4, 4)), ((8, 4), (8, 4))]
)
def test_pairs_that_stay_turn_nearly_as_they_did(old, new) -> None:
    """Against the rotation tables themselves: each pair's angle moves at most half a step of the
    old frequencies' logarithm."""
    here = torch.ones(1, len(old))
    exponents = [torch.atan2(*rope_tables(here, axes)[::-1])[0].log() for axes in (old, new)]
    kept = exponents[0][kept_pairs(old, new)[::2] // 2]
    sizes = torch.cat([torch.full((n // 2,), float(o)) for o, n in zip(old, new, strict=True)])
    assert ((kept - exponents[1]).abs() <= math.log(10_000) / sizes + 1e-3).all()


@pytest.mark.parametrize("form", FORMS)
def test_values_may_be_turned_at_will(form: str) -> None:
    """With all channels kept in other directions, the network is the same one."""
    before = make(FORMS[form])
    after = cut_features(before, WIDE, random_bases(WIDE))
    assert after.skeleton.cfg == FORMS[form]
    name = "single_transformer_blocks.0.attn.to_v.weight"
    assert (after.tensor(name) - before.tensor(name)).abs().max() > 0.1
    for low in runs(FORMS[form]):
        expected = velocity(before.module, low)
        torch.testing.assert_close(velocity(after.module, low), expected, rtol=0, atol=FLOAT32)


def outputs(network: Network[NanoFlux], tokens_LD: Tensor, block: str, out: str) -> Tensor:
    """What one block's values become behind the output projection: (L, D)."""
    v = "add_v_proj" if out == "to_add_out" else "to_v"
    width = network.skeleton.cfg.width
    weight, bias = (network.tensor(f"{block}.attn.{v}.{kind}") for kind in ("weight", "bias"))
    last = f"{block}.{out}" if out == "proj_out" else f"{block}.attn.{out}"
    return (tokens_LD @ weight.T + bias) @ network.tensor(f"{last}.weight")[:, :width].T


@pytest.mark.parametrize(
    ("block", "out", "number"),
    [
        ("transformer_blocks.0", "to_out.0", 0),
        ("transformer_blocks.0", "to_add_out", 0),
        ("single_transformer_blocks.2", "proj_out", 3),
    ],
)
def test_values_of_few_directions_lose_nothing(block: str, out: str, number: int) -> None:
    """Heads that only give out R directions give out the same when those are kept."""
    bases = random_bases(NARROW)
    projections = [(b @ b.mT) for b in bases]
    before = make(MICRO)
    model = before.whole()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for v in ("to_v", "add_v_proj"):
        for kind in ("weight", "bias"):
            if (name := f"{block}.attn.{v}.{kind}") in state:
                heads = state[name].unflatten(0, (HEADS, WIDE))
                state[name] = torch.einsum("hk...,hkr->hr...", heads, projections[number]).flatten(
                    0, 1
                )
    model.load_state_dict(state, assign=True)
    flat = Network(before.skeleton, held(model))
    cut, width = cut_features(flat, NARROW, bases), HEADS * NARROW
    tokens_LD = torch.randn(5, MICRO.width, generator=torch.Generator().manual_seed(1))
    tokens_LD[:, width:] = 0
    expected = outputs(flat, tokens_LD, block, out)[:, :width]
    ours = outputs(cut, tokens_LD[:, :width], block, out)
    torch.testing.assert_close(ours, expected, rtol=0, atol=FLOAT32 * 10)
    other = cut_features(flat, NARROW, first_channels(MICRO, NARROW))
    assert (outputs(other, tokens_LD[:, :width], block, out) - expected).abs().max() > 0.1


@settings(max_examples=20)
@given(st.integers(0, 2**32), st.integers(1, WIDE))
def test_leading_directions_keep_the_energy_that_svd_says(seed: int, channels: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    out_HLK = torch.randn(HEADS, 40, WIDE, generator=rng) * torch.logspace(0, -3, WIDE)
    turned = torch.linalg.qr(torch.randn(HEADS, WIDE, WIDE, generator=rng))[0]
    out_HLK = out_HLK @ turned
    (basis_HKR,) = value_bases([out_HLK.mT @ out_HLK / 40], channels)
    eye = torch.eye(channels).expand(HEADS, -1, -1)
    torch.testing.assert_close(basis_HKR.mT @ basis_HKR, eye, rtol=0, atol=1e-5)
    kept = (out_HLK @ basis_HKR).square().sum(1)
    singular = torch.linalg.svdvals(out_HLK.double()).square()[:, :channels]
    # Direction by direction, the strongest first; squares of float32 sums of 40 terms.
    torch.testing.assert_close(kept.double(), singular, rtol=1e-3, atol=1e-4)


def test_first_channels_are_a_slice() -> None:
    cut = cut_features(make(MICRO), NARROW, first_channels(MICRO, NARROW))
    weight = make(MICRO).tensor("single_transformer_blocks.1.attn.to_v.weight")
    expected = weight.view(HEADS, WIDE, -1)[:, :NARROW, : HEADS * NARROW].flatten(0, 1)
    assert torch.equal(cut.tensor("single_transformer_blocks.1.attn.to_v.weight"), expected)


def test_logits_keep_their_scale_where_all_pairs_say_the_same() -> None:
    """Then what is lost is only the number of terms, which the norms' gain makes up for."""
    before, width = make(MICRO), HEADS * NARROW
    model = before.whole()
    attention = model.single_transformer_blocks[0].attn
    alike = {}
    for name, tensor in attention.state_dict().items():
        if "norm" in name:
            alike[name] = tensor[:2].repeat(WIDE // 2)
        elif "to_v" not in name:
            pairs = tensor.view(HEADS, WIDE // 2, 2, *tensor.shape[1:])
            alike[name] = pairs[:, :1].expand_as(pairs).flatten(0, 2)
        else:
            alike[name] = tensor
    attention.load_state_dict(alike, assign=True)
    cut = cut_features(Network(before.skeleton, held(model)), NARROW, random_bases(NARROW))
    tokens = torch.randn(1, 5, MICRO.width, generator=torch.Generator().manual_seed(1))
    tokens[..., width:] = 0
    narrow = cut.module.single_transformer_blocks[0].attn
    logits = []
    for part, x in ((attention, tokens), (narrow, tokens[..., :width])):
        q, k, _ = part.qkv(x)
        logits.append(q @ k.mT / math.sqrt(q.shape[-1]))
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=FLOAT32)
    assert logits[0].std() > 0.1


@pytest.mark.parametrize("form", ["AdaLN", "Static-LN resampled"])
def test_what_the_velocity_depends_on_stays(form: str) -> None:
    """Measured importance chooses channels and units in every tensor that has them."""
    cfg: FluxConfig = FORMS[form]
    before, width = make(cfg), HEADS * NARROW
    model = before.module
    measured = measure(model, [lambda: velocity(model)])
    cut = cut_features(before, NARROW, first_channels(cfg, NARROW), measured)
    stream = measured.residual.topk(width).indices.sort().values
    units = measured.units[-1].topk(4 * width).indices.sort().values
    name = "single_transformer_blocks.2.proj_mlp.weight"
    assert torch.equal(cut.tensor(name), before.tensor(name)[units][:, stream])
    text = measured.text_units[0].topk(4 * width).indices.sort().values
    name = "transformer_blocks.0.ff_context.net.2.weight"
    assert torch.equal(cut.tensor(name), before.tensor(name)[stream][:, text])
    if not cfg.static_steps:
        condition = measured.condition.topk(width).indices.sort().values
        name = "single_transformer_blocks.1.norm.linear.weight"
        rows = before.tensor(name).view(3, cfg.width, cfg.width)
        expected = rows[:, stream][..., condition].flatten(0, 1)
        assert torch.equal(cut.tensor(name), expected)


def test_importance_of_everything_alike_is_the_first_of_everything() -> None:
    """The choice only ever reorders by score: falling scores are the choice without any."""
    fall = torch.arange(4 * MICRO.width, 0, -1).float()
    falling = Importance(
        fall[: MICRO.width], fall[: MICRO.width], [], [fall] * BLOCKS, [fall] * MICRO.num_layers
    )
    bases = random_bases(NARROW)
    chosen, plain = (cut_features(make(MICRO), NARROW, bases, m) for m in (falling, None))
    for name in plain.weights:
        assert torch.equal(chosen.tensor(name), plain.tensor(name)), name
    assert chosen.skeleton.cfg == replace(
        MICRO, attention_head_dim=NARROW, axes_dims_rope=(2, 2, 2)
    )
