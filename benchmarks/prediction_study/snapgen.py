"""SnapGen and SnapGen++ at 1024 px, as far as they are published.

What is not published was chosen so that the published parameter and MAC figures come out; each
function says which those are. A wrong choice shows as an error of its row.
"""

from __future__ import annotations

from layers import Block, Graph

WIDTHS, DEPTHS = (256, 512, 896), (1, 2, 4)
CONTEXT, TIME, HEAD = 2304, 1024, 64
TEXTS = 154  # two CLIP encoders' 77; Gemma's tokens are not stated


def unet(side: int) -> Graph:
    """One pass of SnapGen's UNet over a square latent: 379 M parameters, 38 G at 32 cells.

    Published: widths, depths, separable convolutions of doubled width, FFN of 3, multi-query
    attention, self-attention at the lowest resolution alone. Chosen: plain strided convolutions
    down, separable ones up, as many transformer layers up as down, 154 text tokens.
    """
    graph, width = [_ends(side * side)], WIDTHS[0]
    skips = [(side * side, width)]

    def layer(name: str, level: int, fan_in: int, *, attention: bool = True) -> None:
        kept = sum(pixels * channels for pixels, channels in skips)
        graph.append(_residual(name, side * side, fan_in, WIDTHS[level], kept))
        if attention:
            graph.append(_transformer(f"{name}.attention", level, side * side, kept))

    for level, out in enumerate(WIDTHS):
        for i in range(2):
            layer(f"down{level}.{i}", level, width)
            width = out
            skips.append((side * side, width))
        if level < 2:
            side //= 2
            graph.append(Block(f"down{level}.sample"))
            graph[-1].conv(side * side, width, width, stride=2)
            skips.append((side * side, width))
    layer("mid0", 2, width)
    layer("mid1", 2, width, attention=False)
    for level in (2, 1, 0):
        for i in range(3):
            layer(f"up{level}.{i}", level, width + skips.pop()[1])
            width = WIDTHS[level]
        if level:
            side *= 2
            graph.append(Block(f"up{level}.sample"))
            graph[-1].pointwise(side * side * width)
            graph[-1].separable(side * side, width, width)
    return graph


def _ends(pixels: int) -> Block:
    ends = Block("ends")
    ends.conv(pixels, 16, WIDTHS[0])
    ends.linear(1, WIDTHS[0], TIME)
    ends.linear(1, TIME, TIME)
    ends.pointwise(pixels * WIDTHS[0], pixels * WIDTHS[0])
    ends.conv(pixels, WIDTHS[0], 16)
    return ends


def _residual(name: str, pixels: int, width: int, out: int, kept: int) -> Block:
    block = Block(name, kept)
    block.pointwise(pixels * width, pixels * width)
    block.separable(pixels, width, 2 * out)
    block.linear(1, TIME, 2 * out)
    block.pointwise(*[pixels * 2 * out] * 3)
    block.separable(pixels, 2 * out, out)
    if width != out:
        block.linear(pixels, width, out)
    block.pointwise(pixels * out)
    return block


def _transformer(name: str, level: int, length: int, kept: int) -> Block:
    width, block = WIDTHS[level], Block(name, kept + length * WIDTHS[level])
    block.pointwise(length * width)
    block.linear(length, width, width)
    for _ in range(DEPTHS[level]):
        if level == 2:
            _shared_keys(block, length, length, width, width)
        _shared_keys(block, length, TEXTS, width, CONTEXT)
        block.pointwise(length * width, length * width)
        block.linear(length, width, 6 * width)
        block.pointwise(length * 3 * width, length * 3 * width)
        block.linear(length, 3 * width, width)
    block.linear(length, width, width)
    return block


def _shared_keys(block: Block, queries: int, keys: int, width: int, source: int) -> None:
    """Attention with one key and value head for all, its norm and its residual."""
    block.pointwise(queries * width, queries * width)
    block.linear(queries, width, width)
    block.linear(keys, source, HEAD)
    block.linear(keys, source, HEAD)
    block.attend(queries, keys, width // HEAD, HEAD)
    block.linear(queries, width, width)


def decoder(side: int) -> Graph:
    """The tiny decoder: 1.38 M parameters and 224 G at 128 cells.

    Published: separable convolutions, no attention, few norms. Chosen: widths and depths.
    """
    graph, width = [Block("start")], 256
    graph[0].conv(side * side, 16, width)
    for level, (out, count) in enumerate(((256, 2), (192, 2), (192, 2), (128, 1))):
        if level:
            side *= 2
            graph.append(Block(f"up{level}.sample"))
            graph[-1].pointwise(side * side * width)
            graph[-1].separable(side * side, width, out)
            width = out
        for i in range(count):
            block = Block(f"up{level}.{i}", side * side * width)
            block.separable(side * side, width, 2 * width)
            block.pointwise(side * side * 2 * width)
            block.separable(side * side, 2 * width, width)
            block.pointwise(side * side * width)
            graph.append(block)
    graph.append(Block("end"))
    graph[-1].pointwise(side * side * width)
    graph[-1].conv(side * side, width, 3)
    return graph


def dit(width: int) -> Graph:
    """One pass of SnapGen++'s three-stage transformer: 0.3, 0.4, 1.6 B for 768, 1024, 2048.

    Published: 64x64 tokens outside and 32x32 in the middle, half of 28 layers moved outwards by
    two each, eight key and value heads, FFN of 4 outside and 3 in the middle, keys and values
    reduced 2x2, sixteen blocks that see themselves and both neighbours. Chosen: 8, 10 and 10
    layers, heads of 64, and the widths, whose ratios 0.375, 0.5 and 1 are published.
    """
    texts, graph = 333, [Block("ends")]
    graph[0].linear(4096, 64, width)
    graph[0].linear(4096, width, 64)
    graph[0].linear(texts, 2560, width)
    graph[0].linear(1, width, 6 * width)
    graph[0].linear(1, width, width)
    graph[0].linear(1024, 4 * width, width)
    graph[0].linear(1024, width, 4 * width)
    return [*graph, *(_dit_layer(f"layer{i}", width, texts, 8 <= i < 18) for i in range(28))]


def _dit_layer(name: str, width: int, texts: int, middle: bool) -> Block:
    heads, keys = width // HEAD, 8 * HEAD
    length, ratio = (1024, 3) if middle else (4096, 4)
    block = Block(name, length * width)
    block.pointwise(*[length * width] * 12)
    block.linear(length, width, width)
    block.linear(length, width, keys)
    block.linear(length, width, keys)
    if middle:
        block.attend(length, length, heads, HEAD)
    else:
        block.op(length * keys, 1024 * keys, 1024 * keys * 4 * HEAD, keys * 4 * HEAD, times=2)
        block.attend(length, 1024, heads, HEAD)
        for _ in range(16):
            block.attend(length // 16, 3 * length // 16, heads, HEAD)
        block.pointwise(length * width, length * width)
    block.linear(length, width, width)
    block.linear(length, width, width)
    block.linear(texts, width, keys)
    block.linear(texts, width, keys)
    block.attend(length, texts, heads, HEAD)
    block.linear(length, width, width)
    block.linear(length, width, ratio * width)
    block.pointwise(length * ratio * width)
    block.linear(length, ratio * width, width)
    return block
