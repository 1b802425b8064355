"""Where the time of an image goes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nanoflux_benchmarks.page.stacks import Piece, Stack, stacks
from nanoflux_benchmarks.page.svg import chart, missing
from nanoflux_benchmarks.page.values import limit_of, median
from nanoflux_benchmarks.page.words import figure, percent, worded
from nanoflux_mobile.markup import Markup
from nanoflux_mobile.report import Image, LatencyReport

if TYPE_CHECKING:
    from nanoflux_benchmarks.session import Judgement

STAGES = ("text_encoder", "steps", "decoder", "rest")


def split(report: LatencyReport) -> dict[str, float]:
    """Medians in ms over the measured images that have a text encoder, steps, decoder and total."""
    rows = [parts for each in report.launches for image in each.measured if (parts := _of(image))]
    return {name: median([row[i] for row in rows]) for i, name in enumerate(STAGES) if rows}


def _of(image: Image) -> tuple[float, ...] | None:
    text, decoder, total = image.text_encoder_ms, image.decoder_ms, image.total_ms
    if text is None or decoder is None or total is None or not image.step_ms:
        return None
    steps = sum(image.step_ms)
    return text, steps, decoder, max(0.0, total - text - steps - decoder)


def stage_split(found: Judgement) -> Markup:
    """Bars of what an image spends where, for the candidate and for the baseline."""
    limit = limit_of(found, "image")
    reports = {"candidate": found.report, "baseline": found.baseline}
    bars = [_bar(name, split(report), limit) for name, report in reports.items() if report]
    bars = [bar for bar in bars if bar.amount > 0]
    if not bars or bars[0].name != "candidate":
        return missing("No image of the report has all of its stages timed.")
    most = max(bars[0].pieces, key=lambda piece: piece.amount)
    verb = "take" if most.name == "steps" else "takes"
    share = percent(most.amount / bars[0].amount)
    finding = f"The {most.name} {verb} {share} of an image."
    reading = "Medians of each stage, which need not add up to the median of the whole."
    if limit <= 2 * bars[0].amount:
        reading += f" The tick is the budget of an image, {figure(limit)}."
    return chart(finding, reading, stacks(bars))


def _bar(name: str, parts: dict[str, float], limit: float) -> Stack:
    total = sum(parts.values()) or 1.0
    pieces = (
        Piece(stage, worded(stage), ms, f"{figure(ms)}, {percent(ms / total)}")
        for stage, ms in parts.items()
    )
    return Stack(name, figure(sum(parts.values())), tuple(pieces), limit)
