"""The small decoders: SnapGen's by its published figures, TAESD's format against diffusers.

Shapes: B batch, Z latent channels, H W pixels, h w latent cells.
"""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from nanoflux_export.mobile.tiny_decoder import MobileTaesd, MobileTinyDecoder
from nanoflux_mobile.models.taesd import TAEF1, TAEF2, TaesdConfig, TaesdDecoder, published_keys
from nanoflux_mobile.models.tiny_decoder import SNAPGEN_DECODER, TinyDecoder, TinyDecoderConfig
from nanoflux_mobile.parity import psnr_db

PAPER = 0.03
"""Share by which a layout may miss figures that the paper rounds to three digits."""
SAME_DB = 100.0
"""The same float32 network written otherwise: only the order of sums differs."""


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def decibels(actual: Tensor, expected: Tensor) -> float:
    return psnr_db(actual.detach().numpy(), expected.detach().numpy())


def traced(module: nn.Module, *inputs: Tensor) -> tuple[set[str], int]:
    """The operations a module runs, and the highest rank of any tensor in it."""
    nodes = make_fx(module)(*inputs).graph.nodes
    calls = [node for node in nodes if node.op == "call_function"]
    made = [node.meta["val"] for node in calls if isinstance(node.meta["val"], Tensor)]
    return {node.target.__name__.partition(".")[0] for node in calls}, max(v.ndim for v in made)


# SnapGen


@pytest.fixture(scope="module")
def snapgen() -> TinyDecoder:
    """The decoder of the paper's size, without memory behind it."""
    with torch.device("meta"):
        return TinyDecoder(SNAPGEN_DECODER)


def test_parameters_and_macs_are_those_of_the_paper(snapgen):
    with FlopCounterMode(display=False) as counter:
        pixels = snapgen.decode(torch.empty(1, 16, 128, 128, device="meta"))
    assert pixels.shape == (1, 3, 1024, 1024)
    parameters = sum(p.numel() for p in snapgen.parameters())
    assert parameters == pytest.approx(1.38e6, rel=PAPER)
    assert counter.get_total_flops() / 2 == pytest.approx(224e9, rel=PAPER)


def test_the_rules_of_the_paper_hold(snapgen):
    kinds = [type(module) for module in snapgen.modules()]
    parts = {kind for kind in kinds if kind.__module__.startswith("torch.")}
    assert parts == {nn.ModuleList, nn.Conv2d, nn.GroupNorm}, "no attention, nothing dense"
    assert kinds.count(nn.GroupNorm) == 4
    widths, depths = SNAPGEN_DECODER.block_out_channels, SNAPGEN_DECODER.layers_per_block
    upsamplers = [(conv.in_channels, conv.out_channels) for conv in snapgen.upsamplers]
    assert upsamplers == list(itertools.pairwise(widths))
    assert sorted(widths, reverse=True) == list(widths)
    assert sorted(depths, reverse=True) == list(depths)
    inside = [m for m in snapgen.resolutions.modules() if isinstance(m, nn.Conv2d)]
    assert all(m.in_channels == m.out_channels for m in inside), "no shortcut changes channels"
    assert all(m.groups == m.in_channels or m.kernel_size == (1, 1) for m in inside)


SMALL = dataclasses.replace(
    SNAPGEN_DECODER, block_out_channels=(16, 12, 8), layers_per_block=(2, 1, 1), norm_num_groups=4
)
TINIES = {
    "three resolutions": SMALL,
    "one resolution": dataclasses.replace(SMALL, block_out_channels=(8,), layers_per_block=(2,)),
    "four latents, no blocks": dataclasses.replace(
        SMALL, latent_channels=4, layers_per_block=(0, 0, 0)
    ),
}


def tiny(filled, cfg: TinyDecoderConfig) -> TinyDecoder:
    return filled(TinyDecoder(cfg), 1)


def test_latents_are_unscaled_as_sd3_pipelines_do(off_initial):
    model = tiny(off_initial, SMALL)
    latents = normal(2, 2, 16, 3, 5)
    expected = model((latents / 1.5305) + 0.0609)
    assert model.decode(latents).shape == (2, 3, 12, 20)
    assert torch.equal(model.decode(latents), expected)
    assert (model(latents) - expected).abs().max() > 0.01


def test_a_block_adds_two_separable_convolutions(off_initial):
    """The same arithmetic as full convolutions with the kernels multiplied out."""
    block, x = tiny(off_initial, SMALL).resolutions[0].blocks[0], normal(3, 1, 16, 6, 7)
    expected = x
    for conv in (block.conv1, block.conv2):
        kernel = conv.pointwise.weight * conv.depthwise.weight.transpose(0, 1)
        expected = nn.functional.conv2d(
            nn.functional.silu(expected), kernel, conv.pointwise.bias, padding=1
        )
    assert decibels(block(x), x + expected) >= SAME_DB


def test_lists_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="3 entries and layers_per_block 2"):
        dataclasses.replace(SMALL, layers_per_block=(1, 1))


@pytest.mark.parametrize("cfg", TINIES.values(), ids=TINIES)
@pytest.mark.parametrize("size", [(4, 4), (3, 5)])
def test_the_mobile_tiny_decoder_is_the_decoder(off_initial, cfg, size):
    model, latents = tiny(off_initial, cfg), normal(4, 1, cfg.latent_channels, *size)
    expected = model.decode(latents)
    pixels = MobileTinyDecoder(model)(latents)
    assert pixels.shape == (1, 3, size[0] * cfg.factor, size[1] * cfg.factor)
    assert expected.std() > 0.01
    assert decibels(pixels, expected) >= SAME_DB
    assert torch.equal(model.decode(latents), expected), "the source must stay as it was"


def test_mobile_decoders_stay_within_what_phones_run(off_initial):
    model, latents = tiny(off_initial, SMALL), normal(5, 1, 16, 4, 4)
    ops, rank = traced(MobileTinyDecoder(model), latents)
    assert (rank, ops & {"native_group_norm", "expand", "index"}) == (4, set())
    assert "native_group_norm" in traced(model, latents)[0], "the check can fail"
    taesd = off_initial(TaesdDecoder(NARROW), 1)
    assert traced(MobileTaesd(taesd), latents)[1] == 4


# TAESD's format

NARROW = TaesdConfig(16, decoder_block_out_channels=(8,) * 4)
FORMATS = {
    "taef1": TAEF1,
    "32 latent channels": dataclasses.replace(TAEF1, latent_channels=32),
    "two stages": TaesdConfig(4, 3, (12, 12), (2, 1)),
    "scaled": dataclasses.replace(NARROW, scaling_factor=0.3611, shift_factor=0.1159),
}


def oracle(filled, cfg: TaesdConfig) -> nn.Module:
    from diffusers import AutoencoderTiny

    stages = len(cfg.num_decoder_blocks)
    torch.manual_seed(0)
    tiny = AutoencoderTiny(
        latent_channels=cfg.latent_channels,
        encoder_block_out_channels=(8,) * stages,
        num_encoder_blocks=(1,) * stages,
        decoder_block_out_channels=cfg.decoder_block_out_channels,
        num_decoder_blocks=cfg.num_decoder_blocks,
        scaling_factor=cfg.scaling_factor,
        shift_factor=cfg.shift_factor,
    )
    return filled(tiny, 1) if cfg.decoder_block_out_channels[0] < 64 else tiny.eval()


def ours(cfg: TaesdConfig, reference: nn.Module) -> TaesdDecoder:
    """Our decoder on the decoder half of AutoencoderTiny's state dict, every tensor of it used."""
    state = {k: v for k, v in reference.state_dict().items() if k.startswith("decoder.")}
    model = TaesdDecoder(cfg).eval().requires_grad_(False)
    model.load_state_dict(state)
    return model


@pytest.mark.parametrize("cfg", FORMATS.values(), ids=FORMATS)
def test_pixels_are_those_of_autoencoder_tiny(off_initial, cfg):
    reference = oracle(off_initial, cfg)
    model = ours(cfg, reference)
    latents = 2.0 * normal(6, 2, cfg.latent_channels, 4, 5)
    with torch.no_grad():  # what pipelines run after the last step
        unscaled = latents / reference.config.scaling_factor + reference.config.shift_factor
        expected = reference.decode(unscaled, return_dict=False)[0]
    pixels = model.decode(latents)
    assert pixels.shape == (2, 3, 4 * cfg.factor, 5 * cfg.factor)
    assert expected.std() > 1e-3
    assert decibels(pixels, expected) >= SAME_DB


@pytest.mark.parametrize("cfg", FORMATS.values(), ids=FORMATS)
def test_the_mobile_form_is_the_decoder(off_initial, cfg):
    model = off_initial(TaesdDecoder(cfg), 1) if cfg is not TAEF1 else TaesdDecoder(cfg).eval()
    latents = 2.0 * normal(7, 1, cfg.latent_channels, 4, 5)
    expected = model.decode(latents)
    assert decibels(MobileTaesd(model)(latents), expected) >= SAME_DB
    assert torch.equal(model.decode(latents), expected), "the source must stay as it was"


@pytest.mark.parametrize("cfg", [TAEF1, FORMATS["two stages"]], ids=["taef1", "two stages"])
def test_files_of_the_decoder_alone_number_the_clamp(off_initial, cfg):
    """Their names are those of a row of layers that begins with the clamp."""
    reference = oracle(off_initial, cfg)
    alone = nn.Sequential(nn.Identity(), *reference.decoder.layers).state_dict()
    table = published_keys(cfg)
    assert set(table.values()) == set(alone)
    back = {published: name for name, published in table.items()}
    assert len(back) == len(table)
    model = TaesdDecoder(cfg)
    model.load_state_dict({back[key]: tensor for key, tensor in alone.items()})
    again = {table[name]: tensor for name, tensor in model.state_dict().items()}
    assert all(torch.equal(again[key], alone[key]) for key in alone)


def test_published_names_of_taef1():
    """A few names of taef1_decoder.safetensors, written out."""
    table = published_keys(TAEF1)
    assert {
        "decoder.layers.0.weight": "1.weight",
        "decoder.layers.2.conv.0.weight": "3.conv.0.weight",
        "decoder.layers.6.weight": "7.weight",
        "decoder.layers.17.conv.4.bias": "18.conv.4.bias",
        "decoder.layers.18.bias": "19.bias",
    }.items() <= table.items()
    assert "decoder.layers.6.bias" not in table, "convolutions after upsampling have no bias"


def test_taef1_has_the_parameters_of_its_file():
    with torch.device("meta"):
        model = TaesdDecoder(TAEF1)
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == 1.23


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"decoder_block_out_channels": (64, 64, 32, 64)}, "are not all equal"),
        ({"num_decoder_blocks": (3, 3, 1)}, "has 4 entries and num_decoder_blocks 3"),
    ],
    ids=["two widths", "too few depths"],
)
def test_what_the_format_cannot_hold_is_refused(settings, said):
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(TAEF1, **settings)


def _published_decoder(weights: dict[str, Tensor], z: Tensor) -> Tensor:
    """A TAESD file evaluated layer by layer from its own key names, as taesd.py orders them."""
    x, last = torch.tanh(z / 3) * 3, max(int(name.partition(".")[0]) for name in weights)
    for i in range(1, last + 1):
        own = {k.partition(".")[2]: v for k, v in weights.items() if k.startswith(f"{i}.")}
        if "conv.0.weight" in own:
            if "pool.0.weight" in own:
                y = F.conv2d(x, own["pool.0.weight"])
                y = F.relu(F.group_norm(y, 4, own["pool.1.weight"], own["pool.1.bias"]))
                x = x + F.conv2d(y, own["pool.3.weight"])
            y = x
            for j in (0, 2, 4):
                y = F.conv2d(y, own[f"conv.{j}.weight"], own[f"conv.{j}.bias"], padding=1)
                y = F.relu(y) if j < 4 else y
            x = F.relu(x + y)
        elif own:
            x = F.conv2d(x, own["weight"], own.get("bias"), padding=1)
        elif i == 2:
            x = F.relu(x)
        else:
            x = F.interpolate(x, scale_factor=2.0)
    return 2 * x - 1


@pytest.mark.parametrize("cfg", [TAEF1, TAEF2], ids=["taef1", "taef2"])
def test_a_published_file_decodes_as_its_own_key_names_say(cfg: TaesdConfig) -> None:
    torch.manual_seed(0)
    decoder = TaesdDecoder(cfg).eval()
    for parameter in decoder.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))  # so that norms are no identity
    keys, state = published_keys(cfg), decoder.state_dict()
    z = torch.randn(1, cfg.latent_channels, 6, 6)
    with torch.no_grad():
        wanted = _published_decoder({keys[name]: value for name, value in state.items()}, z)
        given, mobile = decoder.decode(z), MobileTaesd(decoder)(z)
    for found in (given, mobile):
        assert psnr_db(found.numpy(), wanted.numpy()) >= 100.0  # float32, the same sums


def test_the_decoder_of_flux_2_has_its_published_size() -> None:
    with torch.device("meta"):
        decoder = TaesdDecoder(TAEF2)
    assert sum(p.numel() for p in decoder.parameters()) == 1_338_499
    pooled = [name for name in published_keys(TAEF2).values() if "pool" in name]
    assert sorted({name.partition(".")[0] for name in pooled}) == ["3", "4", "5"]
