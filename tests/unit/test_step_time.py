"""Seconds of a graph by the bytes of its weights: what predictions say, block by block."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoflux_export.fitting.step_time import step_time
from nanoflux_mobile.cost import BlockCost, Cost
from nanoflux_mobile.device import load_device
from nanoflux_mobile.errors import InputError

PHONE = load_device("iphone-15-pro")


def block(name: str, function: str = "main", macs: int = 0, weights: int = 10**8) -> BlockCost:
    return BlockCost("denoiser", function, name, macs, weights, 0, 0, 1)


def cost(*blocks: BlockCost) -> Cost:
    return Cost("cost/1", "coreml", blocks, 0)


def test_a_block_that_waits_for_memory_is_as_fast_as_its_weights_are_small() -> None:
    timing = step_time(cost(block("a")), PHONE, "cpuAndNeuralEngine")
    whole, half = timing.seconds({}), timing.seconds({"a": 5e7})
    rest = timing.seconds({"a": 0})
    assert (half - rest) == pytest.approx((whole - rest) / 2)
    assert timing.per_byte["a"] * 5e7 == pytest.approx(whole - half)


def test_a_block_that_computes_longer_gains_nothing() -> None:
    timing = step_time(cost(block("a", macs=10**13)), PHONE, "cpuAndNeuralEngine")
    assert timing.per_byte == {"a": 0.0}
    assert timing.seconds({"a": 0}) == timing.seconds({})


BLOCKS = st.lists(
    st.tuples(st.integers(0, 10**13), st.integers(0, 10**9), st.integers(0, 10**9)), min_size=1
)


@given(BLOCKS, st.data())
def test_a_sum_over_layers_is_never_below_the_roofline(parts: list[tuple[int, ...]], data) -> None:
    """Blocks without weights, and what moving them costs each: what a budget of time adds up."""
    blocks = [
        BlockCost("denoiser", "main", str(i), macs, weights, moved, moved, 1)
        for i, (macs, weights, moved) in enumerate(parts)
    ]
    timing = step_time(cost(*blocks), PHONE, "cpuAndNeuralEngine")
    stored = {block.block: data.draw(st.integers(0, block.weight_bytes)) for block in blocks}
    added = sum(timing.per_byte[name] * size for name, size in stored.items())
    most = timing.seconds(dict.fromkeys(stored, 0)) + added
    assert timing.seconds(stored) <= most * (1 + 1e-9)


def test_the_bandwidth_is_that_of_the_device_file() -> None:
    """10**8 bytes at the nominal bandwidth take no longer than predicted, and half as long at
    most: predictions take 78 % of it."""
    timing = step_time(cost(block("a")), PHONE, "cpuAndNeuralEngine")
    nominal = 1e8 / PHONE.memory_bytes_per_s.value
    waiting = timing.seconds({}) - timing.seconds({"a": 0})
    assert nominal < waiting < 2 * nominal


def test_of_several_functions_the_slowest_counts() -> None:
    both = cost(block("a", "step_low", 10**9), block("a", "step_full", 10**12, weights=10))
    timing = step_time(both, PHONE, "cpuAndNeuralEngine")
    assert [one.function for one in timing.blocks] == ["step_full"]


@pytest.mark.parametrize(
    ("layer", "held"),
    [
        ("singles.1/block.mlp.weight", "singles_1"),
        ("singles.12/block.mlp.weight", "singles.12"),
        ("embed/image.weight", "embed"),
        ("decoder/decoder.up_blocks.0.resnets.1.conv1.weight", "decoder.up_blocks.0"),
        ("decoder/decoder.conv_in.weight", "decoder_conv_in"),
        ("decoder/decoder.mid.weight", ""),
        ("singles.3/block.mlp.weight", ""),
    ],
)
def test_layers_are_found_in_the_blocks_of_either_file(layer: str, held: str) -> None:
    """Core ML writes names as identifiers; a graph of one segment is divided by its modules."""
    names = ["embed", "singles_1", "singles.12", "decoder.up_blocks.0", "decoder_conv_in"]
    timing = step_time(cost(*map(block, names)), PHONE, "cpuAndNeuralEngine")
    assert timing.block_of(layer) == held


def test_a_processor_that_no_device_file_describes() -> None:
    with pytest.raises(InputError, match=r"how fast a cpu is; limit bits, megabytes"):
        step_time(cost(block("a")), PHONE, "cpu")
