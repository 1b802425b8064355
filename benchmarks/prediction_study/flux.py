"""FLUX's transformer and NanoFLUX's students of it, at 512 px: 1024 image and 256 text tokens.

Parameters agree with the published stages to the digits given there: 11.9, 5.3, 3.0, 2.5 and 1.8 B.
"""

from __future__ import annotations

from dataclasses import dataclass

from layers import Block, Graph

IMAGES, TEXTS = 1024, 256
SMALL = IMAGES // 4


@dataclass(frozen=True)
class Flux:
    """Width, heads, double-stream and single-stream blocks, and whether AdaLN is computed."""

    width: int
    heads: int
    doubles: int
    singles: int
    adaln: bool = True


TEACHER = Flux(3072, 24, 19, 38)
FIVE = Flux(2048, 16, 19, 38)
THREE = Flux(1536, 16, 19, 38)
TWO_AND_HALF = Flux(1536, 16, 19, 24)
STATIC = Flux(1536, 16, 19, 24, adaln=False)


def step(cfg: Flux) -> Graph:
    """One pass at full resolution."""
    doubles = [_double(f"double{i}", cfg) for i in range(cfg.doubles)]
    singles = [_single(f"single{i}", cfg, IMAGES + TEXTS) for i in range(cfg.singles)]
    return [_ends(cfg), *doubles, *singles]


def low_step(cfg: Flux) -> Graph:
    """A pass whose single blocks, all but the first, see a quarter of the image tokens.

    The way down is a residual block and a strided convolution; the way up a residual block, a
    convolution after doubling, and another residual block. Published: about 0.2 B parameters.
    """
    kept, width = 1 + cfg.doubles + 1, cfg.width
    low = [_single(f"low{i}", cfg, SMALL + TEXTS) for i in range(cfg.singles - 1)]
    down, up = Block("down", TEXTS * width), Block("up", TEXTS * width)
    down.residual(IMAGES, width, width, width)
    down.conv(SMALL, width, width, stride=2)
    up.residual(SMALL, width, width, width)
    up.pointwise(IMAGES * width)
    up.conv(IMAGES, width, width)
    up.residual(IMAGES, width, width, width)
    return [*step(cfg)[:kept], down, *low, up]


def _ends(cfg: Flux) -> Block:
    ends, width = Block("ends"), cfg.width
    ends.linear(IMAGES, 64, width)
    ends.linear(TEXTS, 4096, width)
    ends.linear(IMAGES, width, 64)
    for fan_in in (256, 768, width, width) if cfg.adaln else ():
        ends.linear(1, fan_in, width)
    if cfg.adaln:
        ends.linear(1, width, 2 * width)
    return ends


def _double(name: str, cfg: Flux) -> Block:
    width, length = cfg.width, IMAGES + TEXTS
    block = Block(name, length * width)
    for tokens in (IMAGES, TEXTS):
        if cfg.adaln:
            block.linear(1, width, 6 * width)
        for _ in range(4):
            block.linear(tokens, width, width)
        block.linear(tokens, width, 4 * width)
        block.linear(tokens, 4 * width, width)
        block.pointwise(*[tokens * width] * 14, tokens * width * 4)
    block.attend(length, length, cfg.heads, width // cfg.heads)
    return block


def _single(name: str, cfg: Flux, length: int) -> Block:
    width = cfg.width
    block = Block(name, length * width)
    if cfg.adaln:
        block.linear(1, width, 3 * width)
    for _ in range(3):
        block.linear(length, width, width)
    block.linear(length, width, 4 * width)
    block.linear(length, 5 * width, width)
    block.pointwise(*[length * width] * 10, length * width * 4)
    block.attend(length, length, cfg.heads, width // cfg.heads)
    return block
