"""Each mobile rewrite equals what it replaces; whole mobile networks equal the reference modules.

Shapes: C channels, S positions, D width, H heads, K head width, T text tokens, L all tokens.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from nanoflux_export.families.nanoflux import T5_BIAS, graphs
from nanoflux_export.graph import MAIN, STEP_FULL, STEP_LOW, Function, MobileGraph
from nanoflux_export.image_decoder import image_decoder
from nanoflux_export.mobile.decoder import MobileDecoder, MobilePixelAttention
from nanoflux_export.rewrites.channel_norm import ChannelRMSNorm, channel_layer_norm
from nanoflux_export.rewrites.conv1x1 import conv1x1
from nanoflux_export.rewrites.group_norm import RankFourGroupNorm, replace_group_norms
from nanoflux_export.rewrites.half_split_rope import evens_first, evens_first_rows, rotate_halves
from nanoflux_export.rewrites.head_attention import HeadAttention, split_heads
from nanoflux_export.torch_run import torch_runner
from nanoflux_mobile.checkpoint import open_checkpoint
from nanoflux_mobile.families import nanoflux as family
from nanoflux_mobile.families.nanoflux import FluxParts, Networks
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.nanoflux_layers import Rope, rope_tables, rotate
from nanoflux_mobile.models.t5 import T5Config, T5Encoder
from nanoflux_mobile.models.taesd import TaesdConfig, TaesdDecoder
from nanoflux_mobile.models.tiny_decoder import TinyDecoder, TinyDecoderConfig
from nanoflux_mobile.models.token_resampling import low_ids
from nanoflux_mobile.models.vae import Autoencoder, PixelAttention, VaeConfig
from nanoflux_mobile.sampler import image_ids, text_ids
from nanoflux_mobile.weights import Network, Stored, network

ONE_OP = 1e-5
"""Share of the largest value: one sum of at most a few hundred float32 products, reordered."""
NETWORK = 2e-5
"""The same after the dozen such sums in a row that these small networks make."""

sizes = st.integers(1, 12)
seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int, spread: float = 1.0, centre: float = 0.0) -> Tensor:
    return centre + spread * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def assert_close(ours: Tensor, expected: Tensor, share: float = ONE_OP) -> None:
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= share * expected.abs().max().clamp(min=1.0)


def columns(x_BSC: Tensor) -> Tensor:
    """Rows of tokens in the layout of phones, (B, C, 1, S)."""
    return x_BSC.transpose(1, 2)[:, :, None].contiguous()


def filled(module: nn.Module, seed: int) -> nn.Module:
    """The module with every weight drawn again, so that no zero or unit weight hides a fault."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            bound = p.shape[-1] ** -0.5 if p.ndim == 2 else 0.2
            p.copy_((p if p.ndim == 1 else 0) + bound * torch.randn(p.shape, generator=draw))
    return module.eval().requires_grad_(False)


# conv1x1


@given(cin=sizes, cout=sizes, length=sizes, bias=st.booleans(), seed=seeds)
def test_a_convolution_of_one_cell_is_the_linear_layer(cin, cout, length, bias, seed):
    linear, x_BSC = filled(nn.Linear(cin, cout, bias), seed), normal(seed, 1, length, cin)
    conv = conv1x1(linear)
    assert_close(conv(columns(x_BSC)), columns(linear(x_BSC)))
    assert (conv.kernel_size, conv.bias is None) == ((1, 1), not bias)
    assert not any(p.requires_grad or p.is_meta for p in conv.parameters())


@given(cin=sizes, cout=sizes, scale=st.floats(0.05, 20), seed=seeds, data=st.data())
def test_a_convolution_can_reorder_and_scale_its_outputs(cin, cout, scale, seed, data):
    linear, x_BSC = filled(nn.Linear(cin, cout), seed), normal(seed, 1, 3, cin)
    rows = torch.tensor(data.draw(st.permutations(range(cout))))
    expected = scale * linear(x_BSC)[:, :, rows]
    assert_close(conv1x1(linear, rows, scale)(columns(x_BSC)), columns(expected))


def test_a_convolution_leaves_the_linear_layer_alone_and_copies_only_what_it_changes():
    linear = filled(nn.Linear(4, 3), 0)
    weight, bias = linear.weight.clone(), linear.bias.clone()
    rows = torch.tensor([2, 0, 1])
    for conv in (conv1x1(linear, rows), conv1x1(linear, scale=5.0), conv1x1(linear, rows, 5.0)):
        conv.weight.zero_()
        conv.bias.zero_()
    assert torch.equal(linear.weight, weight)
    assert torch.equal(linear.bias, bias)
    same = conv1x1(linear)
    assert same.weight.data_ptr() == linear.weight.data_ptr()
    assert same.bias.data_ptr() == linear.bias.data_ptr()


# Norms


@given(
    channels=st.integers(2, 40),
    length=sizes,
    centre=st.floats(-30, 30),
    seed=seeds,
    eps=st.sampled_from([1e-6, 1e-5]),
)
def test_channel_layer_norm_is_layer_norm(channels, length, centre, seed, eps):
    x_BSC = normal(seed, 1, length, channels, centre=centre)
    ours = channel_layer_norm(columns(x_BSC), eps)
    # Both subtract a mean of up to 30, so what they keep of a value of 1 is 30 times coarser.
    share = ONE_OP * max(1.0, abs(centre))
    assert_close(ours, columns(F.layer_norm(x_BSC, (channels,), eps=eps)), share)


@given(channels=st.integers(1, 40), length=sizes, seed=seeds, eps=st.sampled_from([1e-6, 1e-5]))
def test_channel_rms_norm_over_channels(channels, length, seed, eps):
    norm, x_BSC = filled(nn.RMSNorm(channels, eps), seed), normal(seed, 1, length, channels)
    ours = ChannelRMSNorm(norm.weight, eps)(columns(x_BSC))
    assert_close(ours, columns(norm(x_BSC)))


@given(heads=st.integers(1, 4), width=st.integers(1, 16), length=sizes, seed=seeds)
def test_channel_rms_norm_over_each_head(heads, width, length, seed):
    norm = filled(nn.RMSNorm(width, 1e-6), seed)
    x_BHSK = normal(seed, 1, heads, length, width)
    ours = ChannelRMSNorm(norm.weight, 1e-6, axis=2)(x_BHSK.transpose(2, 3))
    assert_close(ours, norm(x_BHSK).transpose(2, 3))


@given(
    groups=st.integers(1, 4),
    each=st.integers(1, 6),
    height=sizes,
    width=sizes,
    seed=seeds,
    centre=st.floats(-10, 10),
)
def test_rank_four_group_norm_is_group_norm(groups, each, height, width, seed, centre):
    norm = filled(nn.GroupNorm(groups, groups * each, eps=1e-6), seed)
    x = normal(seed, 1, groups * each, height, width, centre=centre)
    if each * height * width == 1:
        return  # torch refuses to normalise a single value
    # Both subtract a mean of up to 10; groups of two or three nearly equal values amplify that.
    share = 10 * ONE_OP * max(1.0, abs(centre))
    assert_close(RankFourGroupNorm(norm)(x), norm(x), share)


def test_every_group_norm_inside_a_module_is_replaced():
    inner = nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.GroupNorm(2, 8), nn.ModuleList([nn.GroupNorm(4, 8)])
    )
    module = nn.ModuleDict({"a": inner, "b": nn.GroupNorm(1, 8)})
    assert replace_group_norms(module) is module
    kinds = [type(m) for m in module.modules()]
    assert kinds.count(RankFourGroupNorm) == 3
    assert nn.GroupNorm not in kinds


# Half-split RoPE


def test_evens_come_first():
    assert evens_first(6).tolist() == [0, 2, 4, 1, 3, 5]
    assert evens_first_rows(2, 4).tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@given(heads=st.integers(1, 3), half=st.integers(1, 10), length=sizes, seed=seeds)
def test_half_split_rotation_gives_interleaved_scores(heads, half, length, seed):
    q, k = normal(seed, 2, heads, length, 2 * half).unsqueeze(1)
    angle = 6 * normal(seed, length, half)
    tables = (angle.cos(), angle.sin())
    expected = rotate(q, tables) @ rotate(k, tables).transpose(2, 3)
    order = evens_first(2 * half)
    turned = [t.T[None, None] for t in tables]
    ours_q, ours_k = (rotate_halves(x[..., order].transpose(2, 3), *turned) for x in (q, k))
    assert_close(ours_q.transpose(2, 3) @ ours_k, expected)
    assert_close(ours_q, rotate(q, tables)[..., order].transpose(2, 3))


# Attention


@given(heads=st.integers(1, 4), width=sizes, queries=sizes, keys=sizes, seed=seeds)
def test_head_attention_is_that_of_torch(heads, width, queries, keys, seed):
    q = normal(seed, 1, heads, queries, width)
    k, v = normal(seed + 1, 2, heads, keys, width).unsqueeze(1)
    bias = normal(seed + 2, 1, heads, queries, keys)
    q_BHKS, k_BHKS, v_BHKS = (x.transpose(2, 3) for x in (q, k, v))
    for mask in (None, bias):
        expected = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        ours = HeadAttention()(q_BHKS * width**-0.5, k_BHKS, v_BHKS, mask)
        assert_close(ours, columns(expected.transpose(1, 2).flatten(2)))


@given(heads=st.integers(1, 4), width=sizes, length=sizes, seed=seeds)
def test_heads_are_consecutive_channels(heads, width, length, seed):
    x_BSD = normal(seed, 1, length, heads * width)
    expected = x_BSD.unflatten(-1, (heads, width)).permute(0, 2, 3, 1)
    assert torch.equal(split_heads(columns(x_BSD), heads), expected)


# Whole networks: every function of a graph, segment by segment, against the module it is cut from


FLUX = FluxConfig(
    in_channels=16,
    num_layers=2,
    num_single_layers=3,
    attention_head_dim=16,
    num_attention_heads=3,
    joint_attention_dim=24,
    pooled_projection_dim=8,
    guidance_embeds=False,
    axes_dims_rope=(4, 6, 6),
    static_steps=2,
)
FLUXES = {
    "both kinds of block": FLUX,
    "uneven axes": dataclasses.replace(FLUX, attention_head_dim=24, axes_dims_rope=(2, 8, 14)),
    "one head": dataclasses.replace(FLUX, num_attention_heads=1),
    "double blocks only": dataclasses.replace(FLUX, num_single_layers=0),
    "single blocks only": dataclasses.replace(FLUX, num_layers=0),
}
LOW = dataclasses.replace(FLUX, low_resolution_blocks=(1, 2))
LOWS = {
    "the middle block": LOW,
    "the first blocks": dataclasses.replace(FLUX, low_resolution_blocks=(0, 2)),
    "the last block": dataclasses.replace(FLUX, low_resolution_blocks=(2, 3)),
    "all blocks": dataclasses.replace(FLUX, low_resolution_blocks=(0, 3)),
    "separable": dataclasses.replace(LOW, separable_resamplers=True),
    "a skip": dataclasses.replace(LOW, low_resolution_skip=True),
    "a skip around all blocks": dataclasses.replace(
        FLUX, low_resolution_blocks=(0, 3), low_resolution_skip=True
    ),
    "no double blocks": dataclasses.replace(LOW, num_layers=0),
}
T5 = T5Config(40, 24, 8, 32, 3, 2, 32, 128, 1e-6, "gated-gelu")
T5S = {
    "v1.1": T5,
    "v1.0": dataclasses.replace(T5, feed_forward_proj="relu"),
    "few buckets": dataclasses.replace(
        T5, relative_attention_num_buckets=8, relative_attention_max_distance=20
    ),
    "projected": dataclasses.replace(T5, projection_width=36),
    "one layer": dataclasses.replace(T5, num_layers=1),
}
VAE = VaeConfig(3, 3, (8, 16), 1, 4, 4, 0.3611, 0.1159, True, False, False)
VAES = {
    "FLUX": VAE,
    "no attention": dataclasses.replace(VAE, mid_block_add_attention=False),
    "quant convolutions": dataclasses.replace(VAE, use_quant_conv=True, use_post_quant_conv=True),
    "three stages": dataclasses.replace(VAE, block_out_channels=(4, 8, 8), layers_per_block=2),
}
DECODERS: Mapping[str, nn.Module] = {
    "FLUX": Autoencoder(VAE),
    "tiny": TinyDecoder(TinyDecoderConfig(4, 3, (16, 8), (2, 1), 4, 1.5305, 0.0609)),
    "TAESD": TaesdDecoder(TaesdConfig(4, 3, (8, 8), (1, 1), 0.5, 0.25)),
}
WORDS, GRID = 7, (4, 4)


def parts_of(flux: FluxConfig = FLUX, t5: T5Config = T5, words: int = WORDS) -> FluxParts:
    """A student of these sizes, its latents 8 x 8 cells and so 4 x 4 tokens."""
    towers = filled(NanoFlux(flux), 4), filled(T5Encoder(t5), 5), filled(Autoencoder(VAE), 6)
    return FluxParts(Networks(*map(network, towers)), None, None, {}, words, side=16)  # type: ignore[arg-type]


def ran(function: Function, *values: Tensor) -> Tensor:
    """The single output of a function for its inputs in order."""
    names = [spec.name for spec in function.inputs]
    assert [tuple(v.shape) for v in values] == [spec.shape for spec in function.inputs]
    inputs = {name: value.numpy() for name, value in zip(names, values, strict=True)}
    (spec,) = function.outputs
    found = torch.from_numpy(torch_runner(function)(inputs)[spec.name])
    assert found.shape == spec.shape
    return found


def flux_inputs(cfg: FluxConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Latents (1, S, C), text states (1, T, J), and the rows of a step (1, N, D)."""
    return (
        normal(1, 1, math.prod(GRID), cfg.in_channels),
        normal(2, 1, WORDS, cfg.joint_attention_dim),
        normal(3, 1, cfg.modulation_rows, cfg.width, spread=0.5),
    )


def flux_ropes(cfg: FluxConfig) -> tuple[Rope, Rope]:
    """RoPE tables of a full and of a low step."""
    ids_LA = torch.from_numpy(np.concatenate((text_ids(WORDS), image_ids(*GRID))))
    axes = cfg.axes_dims_rope
    return rope_tables(ids_LA, axes), rope_tables(low_ids(ids_LA, GRID), axes)


@pytest.mark.parametrize("cfg", FLUXES.values(), ids=FLUXES)
def test_the_mobile_denoiser_is_the_student(cfg):
    parts, inputs = parts_of(cfg), flux_inputs(cfg)
    expected = parts.denoiser(*inputs, flux_ropes(cfg)[0])
    _, graph, _ = graphs(parts)
    assert list(graph.functions) == [MAIN]
    assert expected.std() > 0.1, "a network that says nothing proves nothing"
    assert_close(ran(graph.functions[MAIN], *map(columns, inputs)), columns(expected), NETWORK)


@pytest.mark.parametrize("cfg", LOWS.values(), ids=LOWS)
def test_both_steps_of_a_downsampling_denoiser_are_the_students(cfg):
    parts, inputs = parts_of(cfg), flux_inputs(cfg)
    full, low = flux_ropes(cfg)
    _, graph, _ = graphs(parts)
    assert list(graph.functions) == [STEP_LOW, STEP_FULL]
    expected = {
        STEP_FULL: parts.denoiser(*inputs, full),
        STEP_LOW: parts.denoiser(*inputs, full, low, GRID),
    }
    for name, function in graph.functions.items():
        ours = ran(function, *map(columns, inputs))
        assert_close(ours, columns(expected[name]), NETWORK)
    assert (expected[STEP_FULL] - expected[STEP_LOW]).abs().max() > 0.1


def rows_read(function: Function, cfg: FluxConfig) -> set[int]:
    """The rows of the step table that a function's answer depends on."""
    names = ("latents", "text_states", "step_table")
    tensors = map(columns, flux_inputs(cfg))
    inputs = {name: tensor.numpy() for name, tensor in zip(names, tensors, strict=True)}
    run, read = torch_runner(function), set()
    before = run(inputs)["velocity"]
    for i in range(cfg.modulation_rows):
        changed = inputs["step_table"].copy()
        changed[..., i] += 0.5
        if np.abs(run({**inputs, "step_table": changed})["velocity"] - before).max() > 1e-4:
            read.add(i)
    return read


def test_the_mobile_denoiser_reads_every_row_of_the_step_table():
    _, graph, _ = graphs(parts_of(LOW))
    every = set(range(LOW.modulation_rows))
    resamplers = set(range(LOW.modulation_rows - 8, LOW.modulation_rows - 2))
    assert rows_read(graph.functions[STEP_LOW], LOW) == every
    assert rows_read(graph.functions[STEP_FULL], LOW) == every - resamplers


@pytest.mark.parametrize("cfg", T5S.values(), ids=T5S)
@pytest.mark.parametrize("words", [1, 5, 60])
def test_the_mobile_text_encoder_is_the_encoder(cfg, words):
    flux = dataclasses.replace(FLUX, joint_attention_dim=cfg.states_width)
    parts = parts_of(flux, cfg, words)
    ids_BT = torch.randint(
        0, cfg.vocab_size, (1, words), generator=torch.Generator().manual_seed(0)
    )
    graph, *_ = graphs(parts)
    expected = columns(parts.text_encoder(ids_BT))
    assert_close(ran(graph.functions[MAIN], ids_BT.int()), expected, NETWORK)


@pytest.mark.parametrize("cfg", VAES.values(), ids=VAES)
@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_the_mobile_decoder_is_the_decoder(cfg, size):
    model = filled(Autoencoder(cfg), 6)
    latents = normal(7, 1, cfg.latent_channels, *size)
    expected = model.decode(latents)
    mobile = MobileDecoder(model)
    assert_close(mobile(latents), expected, NETWORK)
    assert torch.equal(model.decode(latents), expected), "the source must stay as it was"


@pytest.mark.parametrize("name", DECODERS)
def test_every_kind_of_decoder_becomes_one_graph(name):
    model = filled(DECODERS[name], 6)
    latents = normal(7, 1, 4, 4, 4)
    graph = image_decoder(network(model), (1, 4, 4, 4), 8)
    expected = model.decode(latents)
    assert expected.std() > 0.1
    assert_close(ran(graph.functions[MAIN], latents), expected, NETWORK)


def test_mobile_pixel_attention_is_pixel_attention():
    attention = filled(PixelAttention(16, 4), 8)
    x = normal(9, 1, 16, 5, 3)
    assert (attention(x) - x).abs().max() > 0.1
    assert_close(MobilePixelAttention(attention)(x), attention(x))


# Segments: what a target may rely on


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return dict(module.state_dict())


@pytest.fixture(scope="module")
def cut() -> tuple[MobileGraph, ...]:
    """The graphs of a student with low steps and a projection after its text encoder."""
    projected = dataclasses.replace(T5, projection_width=24)
    return graphs(parts_of(LOW, projected))


def test_segments_of_one_kind_differ_in_the_values_of_their_weights_alone(cut):
    for graph in cut:
        forms: dict[str, dict[str, torch.Size]] = {}
        for function in graph.functions.values():
            for segment in function.segments:
                shapes = {n: w.shape for n, w in weights_of(segment.build()).items()}
                assert forms.setdefault(segment.kind, shapes) == shapes, segment.weights
    kinds = {segment.kind for segment in cut[1].functions[STEP_LOW].segments}
    assert {"rows", "embed", "doubles", "singles_full", "singles_low", "downsampler"} < kinds


def test_segments_that_share_a_name_share_their_weights(cut):
    low, full = (cut[1].functions[name].segments for name in (STEP_LOW, STEP_FULL))
    by_name = {segment.weights: weights_of(segment.build()) for segment in full}
    shared = [segment for segment in low if segment.weights in by_name]
    assert {s.weights for s in low} - by_name.keys() == {"downsampler", "upsampler"}
    for segment in shared:
        ours, theirs = weights_of(segment.build()), by_name[segment.weights]
        both = ours.keys() & theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in both)
        own = {name.rpartition("_")[0] for name in ours.keys() ^ theirs.keys()}
        assert own <= {"cos", "sin"}, "tables of another grid have another name"
        assert bool(own) == (segment.weights == "singles.1")


def test_segments_count_every_weight_once(cut):
    parts = parts_of(LOW, dataclasses.replace(T5, projection_width=24))
    own = parts.networks
    held = own.text_encoder.count(), own.denoiser.count(), own.vae.count("decoder")
    tables = 0, LOW.static_steps * LOW.modulation_rows * LOW.width, 0  # inputs of the graph
    for graph, count, table in zip(cut, held, tables, strict=True):
        sizes = {s.weights: s.parameters for f in graph.functions.values() for s in f.segments}
        assert sum(sizes.values()) == count - table


def test_cutting_a_student_reads_none_of_its_blocks():
    """Only the position bias, which every block of the text encoder has as a constant."""
    read: list[str] = []

    def lazy(held: Network) -> Network:
        def told(name: str, stored: Stored) -> Stored:
            return dataclasses.replace(stored, read=lambda: read.append(name) or stored.read())

        return Network(held.skeleton, {n: told(n, s) for n, s in held.weights.items()})

    parts = parts_of(LOW)
    own = parts.networks
    networks = Networks(lazy(own.denoiser), lazy(own.text_encoder), lazy(own.vae))
    made = graphs(dataclasses.replace(parts, networks=networks))
    assert read == [T5_BIAS]
    segment = made[1].functions[STEP_LOW].segments[2]
    segment.build()
    assert {name.rpartition(".attn")[0] for name in read[1:] if ".attn" in name} == {
        "transformer_blocks.0"
    }


# Structure: what phones cannot run must not be in the graph


class Watch(TorchDispatchMode):
    """Records every operation that runs, and the highest rank of any tensor it makes."""

    def __init__(self) -> None:
        super().__init__()
        self.ops: set[str] = set()
        self.rank = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.ops.add(func.overloadpacket.__name__)
        tensors = [t for t in tree_flatten(out)[0] if isinstance(t, Tensor)]
        self.rank = max([self.rank, *(t.ndim for t in tensors)])
        return out


def watch(function: Function) -> Watch:
    """What runs in a function, the building of its modules aside."""
    dtypes = {"int32": torch.int32, "float32": torch.float32}
    values = {
        spec.name: torch.zeros(spec.shape, dtype=dtypes[spec.dtype]) for spec in function.inputs
    }
    modules = [segment.build() for segment in function.segments]
    with torch.no_grad(), Watch() as watched:
        for module, segment in zip(modules, function.segments, strict=True):
            made = module(*(values[name] for name in segment.inputs))
            results = (made,) if isinstance(made, Tensor) else made
            values |= zip(segment.outputs, results, strict=True)
    for name, value in values.items():
        assert value.shape == function.shape(name), name
    return watched


@pytest.fixture(scope="module")
def watched(flux) -> dict[str, Watch]:
    """What ran in each function of a student made from a whole checkpoint, and in a low step."""
    parts = family.load(open_checkpoint(flux.folder))
    student = family.make_student(parts, 2, ["a red circle"])
    found = {graph.name: watch(graph.functions[MAIN]) for graph in graphs(student)}
    return found | {STEP_LOW: watch(graphs(parts_of(LOW))[1].functions[STEP_LOW])}


WATCHED = ("text_encoder", "denoiser", "decoder", STEP_LOW)


@pytest.mark.parametrize("name", WATCHED)
def test_no_tensor_inside_has_more_than_four_axes(watched, name):
    assert watched[name].rank == 4


@pytest.mark.parametrize("name", WATCHED)
def test_no_fused_norm_or_attention_or_gather_of_many_axes_is_left(watched, name):
    banned = {
        "native_group_norm",
        "native_layer_norm",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_attention_math_for_mps",
        "index",
        "addmm",
        "expand_copy",
    }
    assert not banned & watched[name].ops
    assert "convolution" in watched[name].ops


def test_the_denoiser_computes_nothing_of_time_or_position(watched):
    banned = {"sin", "cos", "embedding", "arange", "log", "exp"}
    assert not (banned | {"silu"}) & watched["denoiser"].ops
    assert not banned & watched[STEP_LOW].ops
    assert "silu" in watched[STEP_LOW].ops, "the resamplers' own, between their convolutions"


def test_the_watch_sees_what_the_reference_does():
    """The structural checks can fail: the reference modules break each of them."""
    model, inputs = filled(NanoFlux(FLUX), 4), flux_inputs(FLUX)
    with torch.no_grad(), Watch() as seen:
        model(*inputs, flux_ropes(FLUX)[0])
    assert seen.rank == 5
    assert "native_layer_norm" in seen.ops
    adaln = filled(NanoFlux(dataclasses.replace(FLUX, static_steps=0)), 4)
    with torch.no_grad(), Watch() as seen:
        adaln.modulations(torch.ones(1), torch.ones(1, 8))
    assert {"sin", "cos", "exp", "silu"} <= seen.ops


def test_graphs_declare_what_the_checkpoint_is(flux):
    parts = family.load(open_checkpoint(flux.folder))
    text, denoiser, decoder = (graph.functions[MAIN] for graph in graphs(parts))
    shapes = {s.name: s.shape for s in (*text.inputs, *denoiser.inputs)}
    assert shapes == {
        "token_ids": (1, 12),
        "latents": (1, 16, 1, 16),
        "text_states": (1, 24, 1, 12),
        "step_table": (1, 32, 1, 32),
    }
    assert [s.shape for s in (*decoder.inputs, *decoder.outputs)] == [(1, 4, 8, 8), (1, 3, 16, 16)]
    assert text.outputs[0] == denoiser.inputs[1]
