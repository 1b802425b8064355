"""What each block should take by the roofline of the device, beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nanoflux_benchmarks.page.stacks import Piece, Stack, stacks
from nanoflux_benchmarks.page.svg import chart
from nanoflux_benchmarks.page.values import evenly, measured, median
from nanoflux_benchmarks.page.words import figure, percent, plain, worded
from nanoflux_benchmarks.prediction import BlockTime, Call, Prediction
from nanoflux_mobile.markup import Markup, join, section

if TYPE_CHECKING:
    from nanoflux_benchmarks.session import Judgement

BLOCKS = 60
"""Bars of one graph; of a larger one some are left out, and the caption says so."""


def roofline(found: Judgement, prediction: Prediction) -> Markup:
    """The section with a bar for each block of each graph, in the colour of what it waits for."""
    lead = (
        f"A prediction for {prediction.device} from the bundle's saved graphs: the time each block "
        "should take, and what it waits for. No prediction takes part in the verdict."
    )
    drawings = [_graph(found, call) for call in prediction.calls if call.blocks]
    return section("roofline", "Roofline", lead, join(drawings))


def _graph(found: Judgement, call: Call) -> Markup:
    shown = evenly(call.blocks, BLOCKS)
    left_out = len(call.blocks) - len(shown)
    reading = f"One run of {worded(call.function)} on the {call.unit.upper()}, block by block"
    if left_out:
        reading += f"; {left_out} blocks between those shown are left out"
    return chart(_finding(found, call), f"{reading}.", stacks([_bar(block) for block in shown]))


def _bar(block: BlockTime) -> Stack:
    told = figure(1000 * block.seconds)
    return Stack(plain(block.block, 40), told, (Piece(_kind(block), block.limit, _ms(block), ""),))


def _ms(block: BlockTime) -> float:
    return 1000 * block.seconds


def _kind(block: BlockTime) -> str:
    return block.limit.replace(" ", "-")


def _finding(found: Judgement, call: Call) -> str:
    low, high = figure(1000 * call.seconds.low), figure(1000 * call.seconds.high)
    text = f"The {worded(call.component)} should take {low} to {high}"
    times = _times(found, call)
    if times:
        text += f" and took {figure(median(times))}"
    return f"{text}; {_share(call.blocks)} of it waits for {call.limit}."


def _times(found: Judgement, call: Call) -> Sequence[float]:
    if call.component == "denoiser":
        return measured(found.report, "step")
    return measured(found.report, "decoder" if call.component == "decoder" else "text_encoder")


def _share(blocks: Sequence[BlockTime]) -> str:
    limits = {block.limit for block in blocks}
    spent = {name: sum(b.seconds for b in blocks if b.limit == name) for name in limits}
    return percent(max(spent.values()) / (sum(spent.values()) or 1.0))
