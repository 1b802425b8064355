"""The SnapGen UNet: published sizes on the meta device, parts against diffusers, positions, text.

Shapes: B batch, Z latent channels, h w latent cells, C channels, H W cells, S = H W, T text tokens,
J text width, E time width, N heads, K head width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nanoflux_mobile.models import snapgen
from nanoflux_mobile.models.snapgen import (
    STUDENT,
    TEXT_WIDTHS,
    Attention,
    Embedding,
    FeedForward,
    Resample,
    ResnetBlock,
    SnapGen,
    SnapGenConfig,
    Transformer,
    grid_rope,
    join_context,
    rotate,
    sinusoid,
)

ROUNDING = 2e-6
"""A few units of the last place of float32, for single operations on values of the order of 1."""
FLOAT32 = 2e-5
"""Outputs are of the order of 1; the two sides sum in other orders, over a few layers."""
TEXTS = 77

IMAGENET = replace(STUDENT, cross_attention_dim=768)
DREAMLITE = replace(
    STUDENT,
    in_channels=4,
    layers_per_block=(2, 2, 2),
    down_transformers=(1, 2, 4),
    encoder_hid_dim=2048,
    down_conv="dense",
    size_embeds=True,
)
"""The public 390.0 M variant, from its published config."""
THIN = replace(
    STUDENT,
    in_channels=4,
    layers_per_block=(2, 2, 2),
    down_transformers=(0, 2, 4),
    self_attention=(False, True, True),
    multi_query=False,
    ff_mult=4,
    cross_attention_dim=768,
    resnet_conv="dense",
    down_conv="dense",
)
LOWEST_ONLY = replace(THIN, self_attention=(False, False, True))
EXPANDED = replace(LOWEST_ONLY, resnet_conv="expanded")
NARROW = replace(EXPANDED, ff_mult=3)
ABLATION = {
    "thin SDXL": (THIN, 634.1, 1268),
    "self-attention at the lowest stage": (LOWEST_ONLY, 623.6, 1053),
    "separable": (
        replace(LOWEST_ONLY, resnet_conv="separable", down_conv="separable", up_conv="separable"),
        475.0,
        653,
    ),
    "expanded": (EXPANDED, 513.8, 760),
    "feed-forward of 3": (NARROW, 448.1, 669),
    "multi-query": (replace(NARROW, multi_query=True), 374.7, 629),
}
"""Steps from SDXL to the student: millions of parameters, GMAC at 128x128 latent cells."""

TINY = replace(
    STUDENT,
    in_channels=4,
    block_out_channels=(16, 24, 32),
    down_transformers=(1, 1, 2),
    up_transformers=(0, 1, 1),
    attention_head_dim=8,
    cross_attention_dim=20,
    norm_num_groups=4,
    time_embed_dim=12,
)
ONE_STAGE = replace(
    TINY,
    block_out_channels=(16,),
    layers_per_block=(1,),
    down_transformers=(1,),
    up_transformers=(1,),
    self_attention=(True,),
)


def on_meta(cfg: SnapGenConfig) -> SnapGen:
    with torch.device("meta"):
        return SnapGen(cfg)


def millions(model: nn.Module) -> float:
    return sum(p.numel() for p in model.parameters()) / 1e6


def giga_macs(model: SnapGen, side: int, tokens: int = TEXTS) -> float:
    """Multiply-accumulates by torch's counter, without what it skips: norms, softmax, rotations."""
    for parent in model.modules():
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.GroupNorm | nn.LayerNorm | nn.RMSNorm):
                setattr(parent, name, nn.Identity())
    cfg = model.cfg
    shapes = (
        (1, cfg.in_channels, side, side),
        (1, tokens, cfg.encoder_hid_dim or cfg.cross_attention_dim),
        (1, cfg.time_embed_dim),
    )
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(snapgen, "rotate", lambda x_BSNK, rope: x_BSNK)
        attention = "scaled_dot_product_attention"
        patch.setattr(snapgen.F, attention, lambda q, k, v, attn_mask: q @ k.transpose(2, 3) @ v)
        with FlopCounterMode(display=False) as counter:
            model(*(torch.empty(shape, device="meta") for shape in shapes))
    return counter.get_total_flops() / 2e9


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def tiny(off_initial: Callable[[nn.Module, int], nn.Module]) -> Callable[[SnapGenConfig], SnapGen]:
    """Small models with random weights, made once for each config."""
    made: dict[SnapGenConfig, SnapGen] = {}

    def make(cfg: SnapGenConfig = TINY) -> SnapGen:
        if cfg not in made:
            torch.manual_seed(0)
            made[cfg] = off_initial(SnapGen(cfg), 1)
        return made[cfg]

    return make


# Published sizes


@pytest.mark.parametrize(("cfg", "parameters", "macs"), ABLATION.values(), ids=ABLATION)
def test_steps_from_sdxl_have_their_published_sizes(cfg, parameters, macs):
    model = on_meta(cfg)
    assert millions(model) == pytest.approx(parameters, rel=5e-3)
    assert giga_macs(model, 128) == pytest.approx(macs, rel=2e-2)


def test_the_student_has_its_published_sizes():
    """379 M, and 372 M at ImageNet's text width, both to the digit printed; 38 GMAC."""
    model = on_meta(STUDENT)
    assert millions(model) == pytest.approx(379, abs=0.5)
    assert millions(on_meta(IMAGENET)) == pytest.approx(372, abs=0.5)
    assert giga_macs(model, 32) == pytest.approx(38, abs=0.5)


def test_the_public_variant_has_its_published_sizes():
    """Its text length is not published: each token costs 0.02 of these 38.8 GMAC."""
    model = on_meta(DREAMLITE)
    assert millions(model) == pytest.approx(390.0, abs=0.1)
    assert giga_macs(model, 32, tokens=40) == pytest.approx(38.8, rel=1e-2)


# What the student is made of


def attentions(model: SnapGen) -> Iterator[tuple[str, Attention]]:
    return ((name, m) for name, m in model.named_modules() if isinstance(m, Attention))


def test_self_attention_is_at_the_lowest_stage_alone():
    model = on_meta(STUDENT)
    own = [name for name, _ in attentions(model) if name.endswith("attn1")]
    assert {name.split(".attentions")[0] for name in own} == {
        "down_blocks.2",
        "mid_block",
        "up_blocks.0",
    }
    assert len(own) == 4 * (2 + 1 + 3)
    text = [name for name, _ in attentions(model) if name.endswith("attn2")]
    assert {name.split(".attentions")[0] for name in text} - {n.split(".att")[0] for n in own} == {
        "down_blocks.0",
        "down_blocks.1",
        "up_blocks.1",
    }


@pytest.mark.parametrize("cfg", [STUDENT, DREAMLITE], ids=["student", "public"])
def test_keys_and_values_are_one_head_wide(cfg):
    found = [m for _, m in attentions(on_meta(cfg))]
    assert found
    for attention in found:
        assert attention.to_k.out_features == attention.to_v.out_features == 64
        assert attention.to_q.out_features == 64 * attention.heads
        assert attention.heads in (4, 8, 14)
        assert attention.norm_q.weight.shape == attention.norm_k.weight.shape == (64,)


def test_convolutions_inside_residual_blocks_widen_twofold():
    blocks = [m for m in on_meta(STUDENT).modules() if isinstance(m, ResnetBlock)]
    assert len(blocks) == 5 + 2 + 8
    for block in blocks:
        first, second = block.conv1, block.conv2
        assert first.pointwise.out_channels == 2 * second.pointwise.out_channels
        for conv in (first, second):
            assert conv.depthwise.groups == conv.depthwise.in_channels
            assert conv.depthwise.bias is conv.pointwise.bias is None


def test_keys_are_those_of_a_diffusers_unet():
    assert {
        "conv_in.weight",
        "time_embedding.linear_2.bias",
        "down_blocks.0.resnets.0.time_emb_proj.weight",
        "down_blocks.1.resnets.0.conv_shortcut.weight",
        "down_blocks.1.downsamplers.0.conv.depthwise.weight",
        "mid_block.resnets.1.norm2.bias",
        "mid_block.attentions.0.transformer_blocks.3.attn1.to_out.0.bias",
        "up_blocks.0.attentions.2.transformer_blocks.3.ff.net.0.proj.weight",
        "up_blocks.1.upsamplers.0.conv.weight",
        "up_blocks.2.resnets.1.conv1.pointwise.weight",
        "conv_norm_out.weight",
        "conv_out.bias",
    } < on_meta(STUDENT).state_dict().keys()


# Parts against diffusers


def same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Both with one set of random weights; keys must match."""
    draw = torch.Generator().manual_seed(5)
    state = {k: 0.3 * torch.randn(v.shape, generator=draw) for k, v in ours.state_dict().items()}
    ours.load_state_dict(state)
    theirs.load_state_dict(state)


def test_the_sinusoid_is_that_of_diffusers():
    from diffusers.models.embeddings import Timesteps

    t_B = torch.tensor([0.0, 0.25, 0.999, 1.0])
    expected = Timesteps(256, flip_sin_to_cos=True, downscale_freq_shift=0)(1000 * t_B)
    # At 1000 rad a unit of the last place of the angle is 6e-5.
    assert (sinusoid(1000 * t_B, 256) - expected).abs().max() <= 1e-4


def test_the_time_embedding_is_that_of_diffusers():
    from diffusers.models.embeddings import TimestepEmbedding

    ours, theirs = Embedding(8, 12), TimestepEmbedding(8, 12)
    same_weights(ours, theirs)
    x_BC = normal(3, 8)
    assert (ours(x_BC) - theirs(x_BC)).abs().max() <= ROUNDING


def test_the_gated_feed_forward_is_that_of_diffusers():
    from diffusers.models.attention import FeedForward as Theirs

    ours, theirs = FeedForward(12, 3), Theirs(12, mult=3, activation_fn="geglu")
    same_weights(ours, theirs)
    x_BSD = normal(2, 5, 12)
    assert (ours(x_BSD) - theirs(x_BSD)).abs().max() <= FLOAT32


@pytest.mark.parametrize("width", [8, 12])
def test_the_dense_residual_block_is_that_of_diffusers(width):
    """diffusers applies SiLU to the time in every block; ours gets it applied."""
    from diffusers.models.resnet import ResnetBlock2D

    ours = ResnetBlock(8, width, replace(TINY, resnet_conv="dense"))
    theirs = ResnetBlock2D(in_channels=8, out_channels=width, temb_channels=12, groups=4, eps=1e-5)
    same_weights(ours, theirs)
    x_BCHW, time_BE = normal(2, 8, 5, 6), normal(2, 12, seed=1)
    expected = theirs(x_BCHW, time_BE)
    assert (ours(x_BCHW, nn.functional.silu(time_BE)) - expected).abs().max() <= FLOAT32


@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
def test_the_dense_resamplers_are_those_of_diffusers(up):
    from diffusers.models.downsampling import Downsample2D
    from diffusers.models.upsampling import Upsample2D

    theirs = (Upsample2D if up else Downsample2D)(6, use_conv=True, name="conv" if up else "op")
    ours = Resample(6, "dense", up)
    weight, bias = normal(6, 6, 3, 3), normal(6)
    ours.load_state_dict({"conv.weight": weight, "conv.bias": bias})
    theirs.conv.load_state_dict({"weight": weight, "bias": bias})
    x_BCHW = normal(2, 6, 4, 8)
    assert (ours(x_BCHW) - theirs(x_BCHW)).abs().max() <= FLOAT32


def test_the_transformer_is_that_of_diffusers():
    """Many key heads, no rotation: there diffusers has one to compare with."""
    from diffusers import Transformer2DModel

    theirs = Transformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=16,
        num_layers=2,
        cross_attention_dim=20,
        norm_num_groups=4,
        use_linear_projection=True,
    )
    ours = Transformer(16, 2, True, replace(TINY, multi_query=False, ff_mult=4))
    for block in theirs.transformer_blocks:
        for attention in (block.attn1, block.attn2):
            attention.norm_q, attention.norm_k = nn.RMSNorm(8, 1e-6), nn.RMSNorm(8, 1e-6)
    same_weights(ours, theirs)
    x_BCHW, text_BTJ = normal(2, 16, 3, 4), normal(2, 7, 20, seed=1)
    expected = theirs(x_BCHW, text_BTJ, return_dict=False)[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapgen, "rotate", lambda x_BSNK, rope: x_BSNK)
        made = ours(x_BCHW, snapgen.Conditions(normal(2, 12), text_BTJ, None))
    assert (made - expected).abs().max() <= FLOAT32 * expected.abs().max()


def test_multi_query_attention_repeats_the_one_head():
    cfg = replace(TINY, multi_query=False)
    one, many = Attention(24, 20, TINY), Attention(24, 20, cfg)
    state = {k: normal(*v.shape, seed=i) for i, (k, v) in enumerate(one.state_dict().items())}
    one.load_state_dict(state)
    repeated = {k: state[k].repeat(3, 1) for k in ("to_k.weight", "to_v.weight")}
    many.load_state_dict(state | repeated)
    x_BSD, text_BTJ = normal(2, 6, 24), normal(2, 5, 20)
    expected = many(x_BSD, text_BTJ, None, None)
    assert (one(x_BSD, text_BTJ, None, None) - expected).abs().max() <= 1e-5 * expected.abs().max()


# Positions


@settings(max_examples=25)
@given(
    rows=st.integers(1, 40),
    columns=st.integers(1, 40),
    by=st.tuples(st.integers(0, 60), st.integers(0, 60)),
    seed=st.integers(0, 2**16),
)
def test_scores_depend_on_relative_positions_only(rows, columns, by, seed):
    """A query and a key moved by the same rows and columns meet with the same score."""
    wide = columns + by[1]
    rope = grid_rope(rows + by[0], wide, 16)

    def at(x_K: Tensor, row: int, column: int) -> Tensor:
        cell = row * wide + column
        return rotate(x_K[None, None, None], tuple(t[cell : cell + 1] for t in rope)).flatten()

    q_K, k_K = normal(2, 16, seed=seed)
    here = at(q_K, 0, columns - 1) @ at(k_K, rows - 1, 0)
    moved = at(q_K, by[0], columns - 1 + by[1]) @ at(k_K, rows - 1 + by[0], by[1])
    # Angles reach 100 rad, where a unit of the last place is 8e-6, in sums of 16 products.
    assert (here - moved).abs() <= 3e-4


def test_rows_and_columns_turn_different_channels():
    cos, sin = grid_rope(3, 4, 16)
    assert cos.shape == sin.shape == (12, 8)
    angle = torch.atan2(sin, cos).reshape(3, 4, 8)
    assert torch.equal(angle[:, 0, :4], angle[:, 3, :4])
    assert torch.equal(angle[0, :, 4:], angle[2, :, 4:])
    assert angle[2, 1, 0] == pytest.approx(2, rel=1e-6)
    assert angle[2, 1, 4] == pytest.approx(1, rel=1e-6)


def test_rotation_is_that_of_diffusers():
    from diffusers.models.embeddings import apply_rotary_emb

    x_BSNK, tables = normal(2, 12, 3, 16), grid_rope(3, 4, 16)
    wide = tuple(t.repeat_interleave(2, 1) for t in tables)
    expected = apply_rotary_emb(x_BSNK.transpose(1, 2), wide).transpose(1, 2)
    assert (rotate(x_BSNK, tables) - expected).abs().max() <= ROUNDING


def test_the_network_sees_where_its_cells_are(tiny):
    """Without rotation self-attention is blind to the order of cells, so something must change."""
    model = tiny(TINY)
    inputs = normal(1, 4, 8, 8), normal(1, 5, 20, seed=1), normal(1, 12, seed=2)
    seen = model(*inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapgen, "rotate", lambda x_BSNK, rope: x_BSNK)
        blind = model(*inputs)
    assert (seen - blind).abs().max() > 1e-3


# The whole network


@pytest.mark.parametrize(
    "cfg",
    [
        TINY,
        replace(TINY, multi_query=False, resnet_conv="dense", self_attention=(True, True, True)),
        replace(TINY, resnet_conv="separable", encoder_hid_dim=18, size_embeds=True),
        ONE_STAGE,
    ],
    ids=["student", "many heads", "projected text and sizes", "one stage"],
)
@pytest.mark.parametrize("size", [(8, 8), (4, 12)])
def test_velocity_has_the_shape_of_the_latents(tiny, cfg, size):
    model = tiny(cfg)
    sizes_B2 = torch.tensor([[512.0, 768.0], [256.0, 256.0]]) if cfg.size_embeds else None
    states_BE = model.time_states(torch.tensor([0.3, 1.0]), sizes_B2)
    x_BZhw, text_BTJ = normal(2, 4, *size), normal(2, 5, cfg.encoder_hid_dim or 20, seed=1)
    velocity = model(x_BZhw, text_BTJ, states_BE)
    assert velocity.shape == x_BZhw.shape
    assert velocity.isfinite().all()
    assert velocity.std() > 0.05
    alone = model(x_BZhw[1:], text_BTJ[1:], states_BE[1:])
    assert (velocity[1:] - alone).abs().max() <= FLOAT32


def test_every_weight_and_every_input_gets_a_gradient():
    torch.manual_seed(0)
    model = SnapGen(replace(TINY, encoder_hid_dim=18, size_embeds=True))
    x_BZhw, text_BTJ = normal(2, 4, 8, 8).requires_grad_(), normal(2, 5, 18).requires_grad_()
    states_BE = model.time_states(torch.tensor([0.2, 0.7]), torch.full((2, 2), 512.0))
    model(x_BZhw, text_BTJ, states_BE).square().mean().backward()
    for name, p in [("x", x_BZhw), ("text", text_BTJ), *model.named_parameters()]:
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name


def test_time_states_are_float32_with_half_precision_weights(tiny):
    """Rounded weights, exact arithmetic: the same as after widening the rounded weights."""
    half = SnapGen(TINY).bfloat16()
    half.load_state_dict({k: v.bfloat16() for k, v in tiny(TINY).state_dict().items()})
    t_B = torch.tensor([0.0, 0.123, 1.0])
    states_BE = half.time_states(t_B)
    assert states_BE.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(half.time_states(t_B), states_BE)
    assert torch.equal(half.float().time_states(t_B), states_BE)


def test_half_precision_runs_on_float32_time_states(tiny):
    model = SnapGen(TINY).bfloat16()
    model.load_state_dict({k: v.bfloat16() for k, v in tiny(TINY).state_dict().items()})
    states_BE = model.time_states(torch.tensor([0.4]))
    made = model(normal(1, 4, 8, 8).bfloat16(), normal(1, 5, 20).bfloat16(), states_BE)
    assert made.dtype == torch.bfloat16
    assert made.isfinite().all()


def test_mixed_precision_stays_near_float32(tiny):
    model, inputs = tiny(TINY), (normal(1, 4, 8, 8), normal(1, 5, 20), normal(1, 12))
    expected = model(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        made = model(*inputs)
    # bfloat16 keeps three digits, over a few dozen layers.
    assert (made - expected).norm() <= 0.05 * expected.norm()


def test_sizes_belong_to_models_that_know_them(tiny):
    t_B, sizes_B2 = torch.tensor([0.5]), torch.full((1, 2), 512.0)
    with pytest.raises(ValueError, match="size_embeds, which is False"):
        tiny(TINY).time_states(t_B, sizes_B2)
    knowing = tiny(replace(TINY, size_embeds=True))
    with pytest.raises(ValueError, match="size_embeds, which is True"):
        knowing.time_states(t_B)
    small, large = (knowing.time_states(t_B, s * sizes_B2) for s in (1, 2))
    assert (small - large).abs().max() > 1e-3


# Text


def test_masked_tokens_are_as_good_as_absent(tiny):
    model = tiny(TINY)
    x_BZhw, text_BTJ, states_BE = normal(2, 4, 8, 8), normal(2, 6, 20), normal(2, 12)
    kept = [torch.tensor([0, 1, 4]), torch.tensor([2, 3, 4, 5])]
    mask_BT = torch.zeros(2, 6, dtype=torch.bool)
    for i, tokens in enumerate(kept):
        mask_BT[i, tokens] = True
    masked = model(x_BZhw, text_BTJ, states_BE, mask_BT)
    for i, tokens in enumerate(kept):
        row = slice(i, i + 1)
        alone = model(x_BZhw[row], text_BTJ[row, tokens], states_BE[row])
        assert (masked[row] - alone).abs().max() <= FLOAT32
    assert (masked - model(x_BZhw, text_BTJ, states_BE)).abs().max() > 1e-3


WIDTHS = {"clip_l": 768, "clip_g": 1280, "gemma": 2304}
SUBSETS = [dict(zip(WIDTHS, present, strict=True)) for present in product((0, 1), repeat=3)][1:]


def states(present: dict[str, int]) -> dict[str, Tensor | None]:
    lengths = {"clip_l": 7, "clip_g": 7, "gemma": 9}
    return {
        name: normal(2, lengths[name], width, seed=width) if present[name] else None
        for name, width in WIDTHS.items()
    }


@pytest.mark.parametrize("present", SUBSETS, ids=lambda p: "+".join(n for n in p if p[n]))
def test_any_encoders_make_a_context(present):
    given = states(present)
    joined = join_context(**given)
    clips = 7 * (present["clip_l"] or present["clip_g"])
    assert joined.shape == (2, clips + 9 * present["gemma"], 2304)
    head, tail = joined[:, :clips], joined[:, clips:]
    for name, start in (("clip_l", 0), ("clip_g", 768)):
        channels = head[:, :, start : start + WIDTHS[name]]
        found = given[name]
        assert torch.equal(channels, torch.zeros_like(channels) if found is None else found)
    assert not head[:, :, 2048:].any()
    assert given["gemma"] is None or torch.equal(tail, given["gemma"])


@pytest.mark.parametrize("present", SUBSETS, ids=lambda p: "+".join(n for n in p if p[n]))
def test_the_network_runs_on_any_encoders(tiny, present):
    model = tiny(replace(ONE_STAGE, cross_attention_dim=2304))
    text_BTJ = join_context(**states(present))
    velocity = model(normal(2, 4, 4, 4), text_BTJ, normal(2, 12))
    assert velocity.isfinite().all()


def test_students_of_other_encoders_join_at_their_widths():
    given = normal(1, 3, 4), normal(1, 3, 6), normal(1, 2, 16)
    joined = join_context(*given, widths=(4, 6, 16))
    assert joined.shape == (1, 5, 16)
    assert torch.equal(joined[:, :3, :10], torch.cat(given[:2], 2))


def test_no_encoder_and_wrong_widths_are_refused():
    assert tuple(WIDTHS.values()) == TEXT_WIDTHS
    with pytest.raises(ValueError, match="all absent"):
        join_context(None, None, None)
    with pytest.raises(ValueError, match="clip_g has 768 channels; its width is 1280"):
        join_context(None, normal(1, 7, 768), None)


# Configs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"layers_per_block": (1, 2)}, "layers_per_block has 2 entries for 3 stages"),
        ({"self_attention": (True,) * 4}, "self_attention has 4 entries for 3 stages"),
        ({"layers_per_block": (1, 0, 1)}, r"layers_per_block is \(1, 0, 1\)"),
        ({"attention_head_dim": 6}, "attention_head_dim is 6; it must be a multiple of 4"),
        ({"attention_head_dim": 12}, r"attention_head_dim is 12; .* \(16, 24, 32\)"),
        ({"norm_num_groups": 0}, "norm_num_groups is 0"),
        ({"norm_num_groups": 5}, "norm_num_groups is 5"),
        ({"ff_mult": 0}, "ff_mult is 0; it counts from 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        replace(TINY, **changes)


def test_a_config_survives_its_file():
    from nanoflux_mobile.strict_json import from_plain, to_plain

    assert from_plain(SnapGenConfig, to_plain(STUDENT), "config.json") == STUDENT
