"""Our exact palettes against the k-means of coremltools, on the same tensors in the same run.

    python benchmarks/export_speed/palettes.py

Prints, for each case, seconds of coremltools, of ours on one thread and on two (the best of three,
taken in turns; coremltools' groups once, for it takes long), how many times faster ours is on one,
our (weighted) squared error as a share of theirs, and the seconds that a denoiser of 1.95 billion
weights would take at our speed. Ours counts without the first call, which compiles.

Unweighted, coremltools runs its own pass, one process, as `palettize_weights` does. Its pass takes
no weights, so there it is its bundled k-means, given what each distinct value weighs in all, group
by group: it takes weights, and so few values are the least work for it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanoflux_export.compression.palettes import snapped
from nanoflux_export.targets.coreml.quiet import quiet

REPEATS = 3
THREADS = (1, 2)
WIDTH = 1536  # channels of the denoiser's residual stream
DENOISER = 1.95e9  # its weights

Half = NDArray[np.float16]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Case:
    """A weight matrix, how its values are spread, and how it is to be stored."""

    rows: int
    columns: int
    spread: str
    bits: int
    group: int
    weighted: bool = False

    def __str__(self) -> str:
        """The case as a row label."""
        share = f"groups of {self.group}" if self.group else "whole tensor"
        weighted = ", weighted" * self.weighted
        return f"{self.rows}x{self.columns} {self.spread} {self.bits} bits, {share}{weighted}"

    @property
    def groups(self) -> int:
        """How many palettes it has."""
        return self.rows // self.group if self.group else 1


@dataclass(frozen=True)
class Timed:
    """The seconds of a call and the weights it made."""

    seconds: float
    stored: Half


CASES = (
    Case(WIDTH, WIDTH, "normal", 4, 0),
    Case(WIDTH, WIDTH, "laplace", 4, 0),
    Case(WIDTH, WIDTH, "normal", 6, 0),
    Case(4 * WIDTH, WIDTH, "normal", 4, 0),
    *(Case(WIDTH, WIDTH, spread, 4, 16) for spread in ("normal", "laplace", "student")),
    Case(WIDTH, WIDTH, "normal", 6, 16),
    Case(WIDTH, WIDTH, "normal", 4, 0, weighted=True),
    Case(WIDTH, WIDTH, "normal", 6, 0, weighted=True),
    *(Case(WIDTH, WIDTH, spread, 4, 16, weighted=True) for spread in ("normal", "laplace")),
    Case(WIDTH, WIDTH, "normal", 6, 16, weighted=True),
)


def main() -> None:
    """Run every case and print the table."""
    for weighted in (False, True):  # compiles
        _ours(Case(64, 64, "normal", 4, 0, weighted), _weights(Case(64, 64, "normal", 4, 0)), 1)
    heads = (
        "theirs s",
        *(f"ours x{threads} s" for threads in THREADS),
        "faster",
        "error",
        "1.95 B",
    )
    print(f"{'case':<56}" + "".join(f"{head:>11}" for head in heads))
    for case in CASES:
        weights = _weights(case)
        theirs, *ours = _compare(case, weights)
        seconds = "".join(f"{run.seconds:>11.3f}" for run in (theirs, *ours))
        error = _error(case, weights, ours[0].stored) / _error(case, weights, theirs.stored)
        whole = "/".join(f"{run.seconds * DENOISER / weights.size:.0f}" for run in ours)
        print(
            f"{case!s:<56}{seconds}{theirs.seconds / ours[0].seconds:>10.1f}x{error:>11.6f}"
            f"{whole:>9} s",
            flush=True,
        )


def _compare(case: Case, weights: Half) -> list[Timed]:
    """The best runs of coremltools and of ours with each number of threads; all take turns."""
    rounds: list[list[Timed]] = []
    for turn in range(REPEATS):
        ours = [_timed(partial(_ours, case, weights, n)) for n in THREADS]
        again = turn and case.group  # much the longest, and the seconds hardly differ
        theirs = rounds[0][0] if again else _timed(lambda: _theirs(case, weights))
        rounds.append([theirs, *ours])
    return [min(runs, key=lambda run: run.seconds) for runs in zip(*rounds, strict=True)]


def _timed(call: Callable[[], Half]) -> Timed:
    start = time.perf_counter()
    stored = call()
    return Timed(time.perf_counter() - start, stored)


def _ours(case: Case, weights: Half, threads: int) -> Half:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    importance = _importance(case) if case.weighted else None
    return snapped(weights, case.bits, groups=case.groups, weights=importance)


def _theirs(case: Case, weights: Half) -> Half:
    if case.weighted:
        parts = zip(
            np.split(weights, case.groups), np.split(_spread(case), case.groups), strict=True
        )
        return np.concatenate([_their_group(case, *part) for part in parts])
    with quiet():
        from coremltools.optimize.coreml._quantization_passes import palettize_weights

        stored = palettize_weights.blockwise_compress(weights, "KMEANS", case.bits, [case.group, 0])
        dense: Half = palettize_weights.decompress(stored)
    return dense


def _their_group(case: Case, weights: Half, importance: Floats) -> Half:
    with quiet():
        from coremltools._deps import kmeans1d

    values, places = np.unique(weights.astype(np.float64), return_inverse=True)
    masses = np.bincount(places.reshape(-1), importance.reshape(-1))
    found = kmeans1d.cluster(values, 1 << case.bits, weights=masses)
    entries = np.array(found.centroids).astype(np.float16)
    return entries[np.array(found.clusters)][places].reshape(weights.shape)


def _importance(case: Case) -> Floats:
    """Mean squares of input channels, a few of them large, as in trained transformers."""
    return np.random.default_rng(case.columns).lognormal(0, 2, case.columns)


def _spread(case: Case) -> Floats:
    return np.broadcast_to(_importance(case), (case.rows, case.columns))


def _weights(case: Case) -> Half:
    generator = np.random.default_rng(case.rows + case.bits)
    shape = case.rows, case.columns
    draws: dict[str, Callable[..., Any]] = {
        "normal": generator.standard_normal,
        "laplace": lambda size: generator.laplace(size=size),
        "student": lambda size: generator.standard_t(4, size),
    }
    drawn: Half = (draws[case.spread](size=shape) * case.columns**-0.5).astype(np.float16)
    return drawn


def _error(case: Case, weights: Half, stored: Half) -> float:
    squares = np.square(weights.astype(np.float64) - stored.astype(np.float64))
    return float((squares * _spread(case) if case.weighted else squares).sum())


if __name__ == "__main__":
    main()
