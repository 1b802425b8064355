"""The axis table, and networks cut along it: on FLUX.1's own sizes in shapes alone."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoflux_mobile import variants
from nanoflux_mobile.compress import narrowing
from nanoflux_mobile.compress.features import cut_features, first_channels
from nanoflux_mobile.compress.heads import cut_heads
from nanoflux_mobile.compress.merging import merged, one_run
from nanoflux_mobile.compress.narrowing import BlockCut, Cut, keep, narrowed
from nanoflux_mobile.compress.static_ln import to_static
from nanoflux_mobile.compress.token_downsampling import downsampled
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.weights import Network, Stored
from tests.unit.micro_flux import FLOAT32, FORMS, MICRO, make, runs, unread, velocity

PUBLISHED = 0.001
"""Counts are published in millions with four digits; ours are exact."""


def lines_of(name: str) -> list[tuple[str, ...]]:
    return [axes for pattern, axes in narrowing.AXES if re.fullmatch(pattern, name)]


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_has_one_line_with_a_kind_for_each_axis(form: str) -> None:
    with torch.device("meta"):
        state = NanoFlux(FORMS[form]).state_dict()
    for name, tensor in state.items():
        lines = lines_of(name)
        assert len(lines) == 1, name
        assert len(lines[0]) == tensor.ndim, name


def test_every_line_is_of_some_tensor() -> None:
    with torch.device("meta"):
        names = {name for cfg in FORMS.values() for name in NanoFlux(cfg).state_dict()}
    for pattern, _ in narrowing.AXES:
        assert any(re.fullmatch(pattern, name) for name in names), pattern


def test_a_line_says_residual_wherever_the_width_alone_decides_the_size() -> None:
    """Two networks that differ in one size tell which axes it decides: an oracle of the table."""
    small, large = MICRO, replace(MICRO, num_attention_heads=4)
    with torch.device("meta"):
        states = [NanoFlux(cfg).state_dict() for cfg in (small, large)]
    for name, tensor in states[0].items():
        kinds = lines_of(name)[0]
        pairs = zip(tensor.shape, states[1][name].shape, strict=True)
        grown = tuple(bool(kind) and kind != "head" for kind in kinds)
        assert grown == tuple(a != b for a, b in pairs), name


def shuffled(cfg: FluxConfig, seed: int) -> Cut:
    """A cut that keeps everything and changes its order, heads whole."""
    rng = torch.Generator().manual_seed(seed)

    def order(count: int) -> narrowing.Along:
        return keep(torch.randperm(count, generator=rng))

    def block(double: bool) -> BlockCut:
        heads = torch.randperm(cfg.num_attention_heads, generator=rng)
        inside = torch.arange(cfg.attention_head_dim)
        channels = keep((heads[:, None] * cfg.attention_head_dim + inside).flatten())
        text = order(4 * cfg.width) if double else None
        return BlockCut(channels, channels, keep(inside), order(4 * cfg.width), text)

    blocks = [block(i < cfg.num_layers) for i in range(cfg.num_layers + cfg.num_single_layers)]
    return Cut(order(cfg.width), order(cfg.width), order(cfg.width), blocks)


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=3)
@given(seed=st.integers(0, 2**32))
def test_another_order_of_everything_is_the_same_network(form: str, seed: int) -> None:
    before = make(FORMS[form])
    after = narrowed(before, FORMS[form], shuffled(FORMS[form], seed))
    for low in runs(FORMS[form]):
        expected = velocity(before.module, low)
        torch.testing.assert_close(velocity(after.module, low), expected, rtol=0, atol=FLOAT32)
        assert expected.std() > 1e-2, "the network must say something"


def test_the_order_matters_where_one_axis_alone_changes() -> None:
    """The test above can fail: units in another order at one end of an MLP are another network."""
    before = make(MICRO)
    wrong = dict(before.weights)
    name = "transformer_blocks.0.ff.net.2.weight"
    stored = wrong[name]
    wrong[name] = replace(stored, read=lambda: stored.read().flip(1))
    changed = velocity(Network(before.skeleton, wrong).whole())
    assert (changed - velocity(before.module)).abs().max() > 100 * FLOAT32


@pytest.mark.parametrize("form", FORMS)
def test_what_is_read_has_the_shape_that_was_said(form: str) -> None:
    cfg = FORMS[form]
    for cut in (cut_heads(make(cfg), 2), cut_features(make(cfg), 6, first_channels(cfg, 6))):
        assert cut.weights.keys() == cut.skeleton.state_dict().keys()
        for name, stored in cut.weights.items():
            tensor = stored.read()
            assert tuple(tensor.shape) == stored.shape, name
            assert (tensor.dtype, tensor.nbytes) == (torch.float32, stored.nbytes), name
            assert tensor.is_contiguous(), name
        cut.whole()


def test_a_tensor_is_cut_from_its_own_source_at_every_reading() -> None:
    before, read = make(MICRO), []

    def watched(name: str, stored: Stored) -> Stored:
        return replace(stored, read=lambda: read.append(name) or stored.read())

    weights = {name: watched(name, stored) for name, stored in before.weights.items()}
    cut = cut_heads(Network(before.skeleton, weights), 2)
    assert read == []
    first = cut.tensor("proj_out.weight")
    second = cut.tensor("proj_out.weight")
    assert read == ["proj_out.weight"] * 2
    assert torch.equal(first, second)
    assert first.data_ptr() != second.data_ptr()


def millions(network: Network[NanoFlux]) -> float:
    """Parameters in millions, without the step table, which the published counts leave out."""
    table = network.weights.get("step_table")
    return (network.count() - (torch.Size(table.shape).numel() if table else 0)) / 1e6


def test_flux_becomes_nanoflux_in_the_published_sizes_with_nothing_read() -> None:
    """12 B to 1.8 B, and the resamplers' 0.19 B while they read the conditioning vector."""
    teacher = unread(variants.load("flux-12b").components["transformer"].config)
    by_heads = cut_heads(teacher, 16)
    by_features = cut_features(by_heads, 96, first_channels(by_heads.skeleton.cfg, 96))
    by_blocks = merged(by_features, one_run(38, 7, 22))
    cfg = by_blocks.skeleton.cfg
    static = to_static(by_blocks, torch.zeros(10, cfg.modulation_rows, cfg.width))
    counts = [millions(n) for n in (teacher, by_heads, by_features, by_blocks, static)]
    assert counts == pytest.approx([11_891, 5_289, 2_978, 2_482, 1_763], rel=PUBLISHED)
    resampled = downsampled(by_blocks, 1)
    assert millions(resampled) - millions(by_blocks) == pytest.approx(187, rel=0.1)
    added = millions(downsampled(static, 1)) - millions(static)
    assert added * 1e6 == pytest.approx(8 * (9 * 1536**2 + 1536))
    shipped = variants.load("nanoflux-2.4b").components["transformer"].config
    assert downsampled(static, 1).skeleton.cfg == shipped


def test_a_guided_teacher_keeps_its_guidance() -> None:
    dev = variants.load("flux-12b-dev").components["transformer"].config
    cut = cut_heads(unread(replace(dev, num_layers=1, num_single_layers=1)), 16)
    assert cut.skeleton.cfg.guidance_embeds
    assert cut.weights["time_text_embed.guidance_embedder.linear_1.weight"].shape == (2048, 256)
