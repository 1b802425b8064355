"""Stable Diffusion 1, 2.1 and XL as diffusers builds them: UNet, decoder, text encoder.

Multiply-accumulates and parameters agree with diffusers' own models (a test compares them): 402.1 G
for a pass of 2.1's UNet at 512 px with its attention, 1257 G for the decoder, 1821 G for XL's UNet
at 768 px. Figures near 339 G for the first leave the attention's two products out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from layers import Block, Graph, upsample

TEXTS = 77


@dataclass(frozen=True)
class UNet:
    """Channels, transformer depth (0: none) and head width per level, and the text's width."""

    widths: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    context: int


SD1 = UNet((320, 640, 1280, 1280), (1, 1, 1, 0), (40, 80, 160, 160), 768)
SD21 = UNet((320, 640, 1280, 1280), (1, 1, 1, 0), (64, 64, 64, 64), 1024)
SDXL = UNet((320, 640, 1280), (0, 2, 10), (64, 64, 64), 2048)


def unet(cfg: UNet, side: int) -> Graph:
    """One pass over a square latent of `side` cells."""
    last, width, time = len(cfg.widths) - 1, cfg.widths[0], 4 * cfg.widths[0]
    graph = [_ends(side * side, width, time)]
    skips = [(side * side, width)]

    def layer(name: str, level: int, fan_in: int) -> None:
        kept = sum(pixels * channels for pixels, channels in skips)
        block = Block(name, kept)
        block.residual(side * side, fan_in, cfg.widths[level], time)
        graph.append(block)
        if cfg.depths[level]:
            graph.append(_transformer(f"{name}.attention", cfg, level, side * side, kept))

    for level, out in enumerate(cfg.widths):
        for i in range(2):
            layer(f"down{level}.{i}", level, width)
            width = out
            skips.append((side * side, width))
        if level < last:
            side //= 2
            graph.append(Block(f"down{level}.sample"))
            graph[-1].conv(side * side, width, width, stride=2)
            skips.append((side * side, width))
    for i in range(2):
        graph.append(Block(f"mid{i}", sum(pixels * channels for pixels, channels in skips)))
        graph[-1].residual(side * side, width, width, time)
    graph.append(_transformer("mid.attention", cfg, last, side * side, graph[-1].kept))
    for level in range(last, -1, -1):
        for i in range(3):
            layer(f"up{level}.{i}", level, width + skips.pop()[1])
            width = cfg.widths[level]
        if level:
            side *= 2
            kept = sum(pixels * channels for pixels, channels in skips)
            graph.append(upsample(f"up{level}.sample", side * side, width, kept))
    return graph


def _ends(pixels: int, width: int, time: int) -> Block:
    ends = Block("ends")
    ends.conv(pixels, 4, width)
    ends.linear(1, width, time)
    ends.linear(1, time, time)
    ends.pointwise(pixels * width, pixels * width)
    ends.conv(pixels, width, 4)
    return ends


def _transformer(name: str, cfg: UNet, level: int, length: int, kept: int) -> Block:
    width, block = cfg.widths[level], Block(name, kept + length * cfg.widths[level])
    heads = width // cfg.heads[level]
    block.pointwise(length * width)
    block.linear(length, width, width)
    for _ in range(max(cfg.depths[level], 1)):
        block.pointwise(*[length * width] * 6)
        for _ in range(6):
            block.linear(length, width, width)
        block.attend(length, length, heads, cfg.heads[level])
        block.linear(TEXTS, cfg.context, width)
        block.linear(TEXTS, cfg.context, width)
        block.attend(length, TEXTS, heads, cfg.heads[level])
        block.linear(length, width, 8 * width)
        block.pointwise(length * 4 * width, length * 4 * width)
        block.linear(length, 4 * width, width)
    block.linear(length, width, width)
    block.pointwise(length * width)
    return block


def decoder(side: int, channels: int) -> Graph:
    """The autoencoder's decoder for a square latent of `side` cells."""
    width, widths = 512, (512, 512, 256, 128)
    graph = [Block("start"), Block("mid0"), Block("mid1"), Block("mid.attention")]
    graph[0].conv(side * side, channels, width)
    graph[1].residual(side * side, width, width)
    graph[2].residual(side * side, width, width)
    graph[3].pointwise(side * side * width)
    for _ in range(4):
        graph[3].linear(side * side, width, width)
    graph[3].attend(side * side, side * side, 1, width)
    for level, out in enumerate(widths):
        for i in range(3):
            graph.append(Block(f"up{level}.{i}", side * side * width))
            graph[-1].residual(side * side, width, out)
            width = out
        if level < len(widths) - 1:
            side *= 2
            graph.append(upsample(f"up{level}.sample", side * side, width))
    graph.append(Block("end"))
    graph[-1].pointwise(side * side * width, side * side * width)
    graph[-1].conv(side * side, width, 3)
    return graph


def text_encoder(layers: int, width: int, heads: int) -> Graph:
    """CLIP's text transformer; its embedding is a look-up and counts nothing."""
    graph: Graph = []
    for i in range(layers):
        block = Block(f"layer{i}", TEXTS * width)
        block.pointwise(*[TEXTS * width] * 4, TEXTS * width * 4)
        for _ in range(4):
            block.linear(TEXTS, width, width)
        block.attend(TEXTS, TEXTS, heads, width // heads)
        block.linear(TEXTS, width, 4 * width)
        block.linear(TEXTS, 4 * width, width)
        graph.append(block)
    return graph


def batch(graph: Sequence[Block], count: int) -> Graph:
    """A graph over so many samples at once: the same weights, everything else so many times."""
    return [
        Block(
            block.name,
            block.kept * count,
            block.macs * count,
            block.weights,
            block.traffic * count,
            block.largest * count,
            block.ops,
        )
        for block in graph
    ]
