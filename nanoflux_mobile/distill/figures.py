"""The charts of an `Analysis`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import fmean

from nanoflux_mobile.compress.merging import Runs
from nanoflux_mobile.distill.analysis import Analysis, Curve
from nanoflux_mobile.distill.charts import (
    Axis,
    Points,
    Series,
    Shade,
    chart,
    counted,
    decades,
    stepped,
)


def _mean(curves: Sequence[Curve]) -> Curve:
    return tuple(fmean(column) for column in zip(*curves, strict=True))


def _by_kind(curves: Sequence[Curve], doubles: int) -> Mapping[str, Sequence[Curve]]:
    kinds = {"double": curves[:doubles], "single": curves[doubles:]}
    return {kind: some for kind, some in kinds.items() if some}


def _bundles(
    curves: Sequence[Curve], doubles: int, points: Callable[[Curve], Points]
) -> list[Series]:
    """Each block thin, and the mean of either kind."""
    kinds = _by_kind(curves, doubles)
    thin = [Series(k, points(c), width=1, faint=True) for k, some in kinds.items() for c in some]
    means = [
        Series(kind, points(_mean(some)), f"{kind} blocks: mean, and each thin")
        for kind, some in kinds.items()
    ]
    return thin + means


def _energy(title: str, of: str, curves: Sequence[Curve], doubles: int, kept: int) -> str:
    def points(curve: Curve) -> Points:
        return [(0.0, 0.0), *((float(i), 100 * share) for i, share in enumerate(curve, 1))]

    size = len(curves[0])
    even = Series("soft", [(0, 0), (size, 100)], "nothing redundant", width=1.5, dashes="4 4")
    x, y = counted(of, 0, size), stepped("energy kept, %", (0, 100), 20)
    cut = Shade(0, kept, f"the cut keeps {kept} of {size}")
    return chart(title, x, y, [even, *_bundles(curves, doubles, points)], [cut])


def head_energy(analysis: Analysis, kept: int) -> str:
    """Energy of the heads' outputs over the number of components, with the cut's count shaded."""
    title = "What the top components over the heads of a block keep"
    of = "components kept in every block"
    return _energy(title, of, analysis.head_energy, analysis.doubles, kept)


def channel_energy(analysis: Analysis, kept: int) -> str:
    """Energy of the heads' outputs over the number of directions in each head."""
    title = "What the top directions inside each head keep"
    of = "directions kept in every head"
    return _energy(title, of, analysis.channel_energy, analysis.doubles, kept)


def similarity(analysis: Analysis, runs: Runs) -> str:
    """Cosine of what enters and leaves each single block, with the merged runs shaded."""
    both = {"image tokens": analysis.similarity.image, "text tokens": analysis.similarity.text}
    colours = {"image tokens": "single", "text tokens": "double"}
    lines = [
        Series(colours[name], list(enumerate(values)), name, dots=3.5)
        for name, values in both.items()
    ]
    x = counted("single block", 0, len(analysis.similarity.image) - 1, room=0.5)
    least = min(*analysis.similarity.image, *analysis.similarity.text)
    y = stepped("cosine of input and output", (least, 1.0), 0.05 if least > 0.5 else 0.2)
    shades = [
        Shade(start - 0.5, stop - 0.5, f"{stop - start} become one")
        for start, stop in runs
        if stop - start > 1
    ]
    return chart("How little each single block turns its tokens", x, y, lines, shades)


def row_variance(analysis: Analysis) -> str:
    """How far AdaLN's rows move with the prompt, over the steps."""

    def points(curve: Curve) -> Points:
        return [(float(step), 100 * share) for step, share in enumerate(curve)]

    *blocks, last = zip(*analysis.row_variance, strict=True)
    lines = _bundles(blocks, analysis.doubles, points)
    lines.append(Series("other", points(last), "last norm"))
    y = decades(
        "variance over prompts, % of the mean square",
        (value for line in lines for _, value in line.points),
    )
    x = counted("step, from noise to picture", 0, len(analysis.sigmas) - 1)
    return chart("How little AdaLN's rows depend on the prompt", x, y, lines)


def tables(analysis: Analysis) -> str:
    """Velocities with a step table instead of AdaLN, over the prompts the table is made from."""
    pairs = [(n, db) for n, table in enumerate(analysis.tables) for db in table.db]
    means = [(n, fmean(table.db)) for n, table in enumerate(analysis.tables)]
    ticks = [(float(n), str(table.count)) for n, table in enumerate(analysis.tables)]
    x = Axis("prompts the table is averaged over", -0.5, len(ticks) - 0.5, ticks)
    y = stepped("velocity against AdaLN, dB", [db for _, db in pairs], 2)
    dots = Series("single", pairs, "one set of prompts", width=0, dots=3.5, faint=True)
    line = Series("single", means, "mean")
    return chart("A step table from a handful of prompts", x, y, [dots, line])


def importance(analysis: Analysis) -> str:
    """How much the velocity depends on each head, block by block."""
    most = max(map(max, analysis.head_importance))
    blocks = enumerate(analysis.head_importance)
    pairs = [[(float(i), value / most) for value in values] for i, values in blocks]
    what = "mean squared change of the velocity, 1 for the head that matters most"
    y = decades(what, (v for some in pairs for _, v in some))
    split = (pairs[: analysis.doubles], pairs[analysis.doubles :])
    dots = [
        Series(kind, [(i, max(v, y.low)) for some in of for i, v in some], name, width=0, dots=3)
        for kind, name, of in zip(
            ("double", "single"),
            ("heads of double blocks", "heads of single blocks"),
            split,
            strict=True,
        )
        if of
    ]
    x = counted("block, doubles first", 0, len(pairs) - 1, room=0.5)
    return chart("How much the velocity depends on each head", x, y, dots)


def figures(analysis: Analysis, heads: int, channels: int, runs: Runs) -> dict[str, str]:
    """Every chart by the name of its file; the rest is what the plan's cuts keep and join."""
    found = {
        "head-energy": head_energy(analysis, heads),
        "channel-energy": channel_energy(analysis, channels),
        "similarity": similarity(analysis, runs),
        "head-importance": importance(analysis),
    }
    if analysis.row_variance:
        found |= {"row-variance": row_variance(analysis), "step-tables": tables(analysis)}
    return {f"{name}.svg": svg for name, svg in found.items()}
