"""What each block should take by the roofline of the device, beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nanoflux_benchmarks.page.stacks import Piece, Stack, stacks
from nanoflux_benchmarks.page.svg import chart
from nanoflux_benchmarks.page.values import evenly, measured, median
from nanoflux_benchmarks.page.words import figure, plain, worded
from nanoflux_benchmarks.prediction import BlockTime, Call, Prediction
from nanoflux_benchmarks.prediction_text import seconds, spread
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
    kind = block.limit.replace(" ", "-")
    piece = Piece(kind, block.limit, 1000 * block.seconds, "")
    return Stack(plain(block.block, 40), seconds(block.seconds), (piece,))


def _finding(found: Judgement, call: Call) -> str:
    text = f"The {worded(call.component)} should take {spread(call.seconds)}"
    times = _times(found, call)
    if times:
        text += f" and took {figure(median(times))}"
    return f"{text}; most of it waits for {call.limit}."


def _times(found: Judgement, call: Call) -> Sequence[float]:
    if call.component == "denoiser":
        return measured(found.report, "step")
    return measured(found.report, "decoder" if call.component == "decoder" else "text_encoder")
