"""Layers as sums of operations that stand for nothing but their arithmetic.

Multiply-accumulates, parameters, and the values read and written, counted as a saved graph's cost
is: every operation reads and writes anew. Attention is counted one head at a time, as the published
phone forms compute it. Lengths are in tokens or pixels, widths in channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass
class Block:
    """One layer; values are counted, not bytes. `kept` are those that later blocks still need."""

    name: str
    kept: int = 0
    macs: int = 0
    weights: int = 0
    traffic: int = 0
    largest: int = 0
    ops: int = 0

    def op(self, read: int, write: int, macs: int = 0, weights: int = 0, times: int = 1) -> None:
        """Count an operation that reads and writes so many values, `times` alike."""
        self.macs += macs * times
        self.weights += weights * times
        self.traffic += (read + write) * times
        self.largest = max(self.largest, read + write)
        self.ops += times

    def pointwise(self, *values: int) -> None:
        """Sums, products, activations or norms over so many values, one operation each."""
        for count in values:
            self.op(count, count)

    def linear(self, length: int, width: int, out: int) -> None:
        """A matrix and a bias, applied to every token or pixel."""
        self.op(length * width, length * out, length * width * out, width * out + out)

    def conv(self, pixels: int, width: int, out: int, *, groups: int = 1, stride: int = 1) -> None:
        """A 3x3 convolution with a bias; `pixels` are those of its result."""
        weights = 9 * width * out // groups
        read = pixels * stride**2 * width
        self.op(read, pixels * out, pixels * weights, weights + out)

    def separable(self, pixels: int, width: int, out: int) -> None:
        """A 3x3 convolution within each channel, then one across channels."""
        self.conv(pixels, width, width, groups=width)
        self.linear(pixels, width, out)

    def attend(self, queries: int, keys: int, heads: int, width: int) -> None:
        """Scores, softmax and the weighted sum, head by head; `width` is that of one head."""
        scores, one, other = queries * keys, queries * width, keys * width
        self.op(one + other, scores, scores * width, times=heads)
        self.op(scores, scores, times=heads)
        self.op(scores + other, one, scores * width, times=heads)

    def residual(self, pixels: int, width: int, out: int, time: int = 0) -> None:
        """Two convolutions behind norms and a shortcut, with a shift where there is a time."""
        self.pointwise(pixels * width, pixels * width)
        self.conv(pixels, width, out)
        if time:
            self.linear(1, time, out)
            self.pointwise(pixels * out)
        self.pointwise(pixels * out, pixels * out)
        self.conv(pixels, out, out)
        if width != out:
            self.linear(pixels, width, out)
        self.pointwise(pixels * out)


Graph = list[Block]


def upsample(name: str, pixels: int, width: int, kept: int = 0) -> Block:
    """Twice the side by repetition, then a convolution; `pixels` are those of the result."""
    block = Block(name, kept)
    block.pointwise(pixels * width)
    block.conv(pixels, width, width)
    return block


def totals(graph: Sequence[Block]) -> tuple[int, int]:
    """Multiply-accumulates and parameters of a graph."""
    return sum(block.macs for block in graph), sum(block.weights for block in graph)
