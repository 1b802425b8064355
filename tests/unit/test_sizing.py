"""Sizes from shapes alone, against torch's counter on the whole network and closed forms."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.vae import Autoencoder, VaeConfig
from nanoflux_mobile.sizing import BlockSize, Sizes, blocks_of, folded, measure

WIDTH, CHANNELS, WORDS, CELLS = 48, 16, 7, 16
FLUX = FluxConfig(CHANNELS, 2, 4, 16, 3, 20, 12, False, (4, 6, 6), 0, (1, 3))


def meta(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def built(build: Callable[[], nn.Module]) -> nn.Module:
    with torch.device("meta"):
        return build()


def flux_runs(model: NanoFlux) -> dict[str, Callable[[], object]]:
    def run(*low: int) -> Tensor:
        rows = model.modulations(meta(1), meta(1, 12))
        ropes = [(meta(n, 8), meta(n, 8)) for n in (WORDS + CELLS, *low)]
        return model(meta(1, CELLS, CHANNELS), meta(1, WORDS, 20), rows, *ropes)

    return {"full": run, "low": lambda: run(WORDS + CELLS // 4)}


@pytest.fixture(scope="module")
def model() -> NanoFlux:
    return built(lambda: NanoFlux(FLUX))


@pytest.fixture(scope="module")
def sizes(model: NanoFlux) -> Sizes:
    return measure(model, flux_runs(model))


def torch_count(run: Callable[[], object]) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def block(sizes: Sizes, name: str) -> BlockSize:
    return next(b for b in sizes.blocks if b.name == name)


def test_totals_are_those_of_torch_though_equal_blocks_run_once(model, sizes):
    for name, run in flux_runs(model).items():
        assert sizes.macs[name] == torch_count(run) > 0
        assert sizes.macs[name] == sum(b.macs[name] for b in sizes.blocks)
    assert sizes.parameters == sum(p.numel() for p in model.parameters())
    assert sizes.parameters == sum(b.parameters for b in sizes.blocks)
    assert sizes.fp16_bytes == 2 * sizes.parameters


def test_a_block_computes_what_its_layers_say(sizes):
    d, length = WIDTH, WORDS + CELLS
    attention, modulation = 2 * length**2 * d, 3 * d * d
    single = block(sizes, "single_transformer_blocks.0")
    assert single.macs["full"] == 12 * d * d * length + attention + modulation
    double = block(sizes, "transformer_blocks.0")
    assert double.macs["full"] == 12 * d * d * length + attention + 12 * d * d
    low = block(sizes, "single_transformer_blocks.1")
    short = WORDS + CELLS // 4
    assert low.macs["low"] == 12 * d * d * short + 2 * short**2 * d + modulation


def test_convolutions_count_where_they_run(sizes):
    d, kernel = WIDTH, 9 * WIDTH**2
    down, up = block(sizes, "downsampler"), block(sizes, "upsampler")
    rows = 2 * d * d
    assert down.macs["low"] == kernel * (2 * CELLS + CELLS // 4) + rows
    assert up.macs["low"] == kernel * (2 * CELLS // 4 + 3 * CELLS) + 2 * rows
    assert down.macs["full"] == rows, "AdaLN computes all rows; nothing else runs in a full step"


def test_blocks_are_entries_of_the_outermost_lists(model):
    names = [name for name, _ in blocks_of(model)]
    assert names == [
        *("x_embedder", "context_embedder", "transformer_blocks.0", "transformer_blocks.1"),
        *(f"single_transformer_blocks.{i}" for i in range(4)),
        *("downsampler", "upsampler", "proj_out", "time_text_embed", "norm_out"),
    ]


def test_equal_neighbours_fold_into_one_line(sizes):
    lines = [(fold.name, fold.count) for fold in folded(sizes.blocks)]
    assert lines[2:6] == [
        ("transformer_blocks.0..1", 2),
        ("single_transformer_blocks.0", 1),
        ("single_transformer_blocks.1..2", 2),
        ("single_transformer_blocks.3", 1),
    ]
    assert sum(count for _, count in lines) == len(sizes.blocks)


def test_the_step_table_is_no_part_of_the_network():
    static = FluxConfig(CHANNELS, 2, 4, 16, 3, 20, 12, False, (4, 6, 6), 10)
    model = built(lambda: NanoFlux(static))
    found = measure(model, {})
    table = model.step_table.numel()
    assert found.parameters == sum(p.numel() for p in model.parameters()) - table
    assert table == 10 * static.modulation_rows * WIDTH


def test_measuring_leaves_the_network_as_it_was(model, sizes):
    assert not any("forward" in vars(part) for part in model.modules())
    assert all(p.is_meta for p in model.parameters()), "nothing was allocated"


class Loose(nn.Module):
    """A network that holds and computes something outside its blocks, and one block it reuses."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(5))
        self.stem = nn.Conv2d(5, 5, 3, groups=5, padding=1, bias=False)
        self.layers = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)])

    def forward(self, x_BCHW: Tensor, twice: bool) -> Tensor:
        x_BSC = (self.stem(x_BCHW) * self.scale[:, None, None]).flatten(2).transpose(1, 2)
        for layer in self.layers:
            x_BSC = layer(layer(x_BSC) if twice else x_BSC)
        return F.softmax(x_BSC @ x_BSC.transpose(1, 2), -1)


def test_what_is_outside_every_block_is_the_rest():
    model = built(Loose)
    x = meta(2, 5, 4, 4)
    found = measure(model, {"once": lambda: model(x, False), "twice": lambda: model(x, True)})
    rest = block(found, "rest")
    assert (rest.parameters, rest.macs["once"]) == (5, 2 * 16 * 16 * 5)
    assert block(found, "stem").macs["once"] == 2 * 16 * 5 * 9, "a depthwise convolution"
    assert block(found, "layers.0").macs == {"once": 2 * 16 * 25, "twice": 4 * 16 * 25}
    assert found.macs["twice"] == torch_count(lambda: model(x, True))


def test_a_network_that_fails_is_put_back_together():
    model = built(Loose)
    with pytest.raises(RuntimeError):
        measure(model, {"once": lambda: model(meta(1, 3, 4, 4), False)})
    assert not any("forward" in vars(part) for part in model.modules())


def test_attention_over_pixels_counts():
    cfg = VaeConfig(3, 3, (8, 16), 1, 4, 4, 1.0, 0.0, True, False, False)
    decoder = built(lambda: Autoencoder(cfg)).decoder
    found = measure(decoder, {"once": lambda: decoder(meta(1, 4, 6, 6))})
    assert found.macs["once"] == torch_count(lambda: decoder(meta(1, 4, 6, 6)))
    attention = block(found, "mid_block.attentions.0")
    assert attention.macs["once"] == 36 * 4 * 16**2 + 2 * 36**2 * 16
