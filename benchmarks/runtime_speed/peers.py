"""One denoiser in LiteRT, ONNX Runtime, ExecuTorch and PyTorch, side by side in one run.

    python benchmarks/runtime_speed/peers.py --scale block --threads 2

The shipped form (1x1 convolutions, rank 4) runs in LiteRT, and, as files for phone CPUs have it,
with FULLY_CONNECTED in place of the convolutions. Everybody else gets the same weights as linear
layers, which suits them better, and LiteRT's int8 once more in that form, so that form and runtime
can be told apart. All take and return the same tensors; PSNR against PyTorch in float32
shows whose speed is bought with accuracy.

Engines take turns, a round being one call of each, in an order that moves on by one every round. A
row gives the median of an engine's time over that of ours (LiteRT int8) in the same round, and the
range; above 1 is slower than ours. A peer that is not installed is listed as missing: onnxruntime
is in the extra `onnx`; ExecuTorch 1.5 installs beside torch 2.13. The last line is JSON.

`tiny` runs in a second and says little: calls cost more than their arithmetic. `block` is one
single block of 24 heads and width 1536 over 512 tokens.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from peer_engines import ENGINES, OURS, SCALES, Case, Engine, Inputs, eager, make_case

from nanoflux_mobile.parity import psnr_db

WARM_UPS = 3
PACKAGES = ("ai-edge-litert", "onnxruntime", "executorch", "torch")


def ready(case: Case) -> tuple[dict[str, Engine], dict[str, str]]:
    """Every engine that has answered once, and why the others are missing."""
    engines: dict[str, Engine] = {}
    missing: dict[str, str] = {}
    for name, make in ENGINES.items():
        print(f"preparing {name}", flush=True)
        try:
            engines[name] = make(case)
            engines[name](case.inputs)
        except Exception as error:
            # Other people's exporters fail in their own ways; that is a row, not the end.
            if name == OURS:
                raise
            engines.pop(name, None)
            words = str(error).strip().splitlines() or [type(error).__name__]
            missing[name] = words[0][:100]
    return engines, missing


def by_turns(engines: Mapping[str, Engine], inputs: Inputs, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each engine in each round."""
    names = list(engines)
    for name in names * WARM_UPS:
        engines[name](inputs)
    times: dict[str, list[float]] = {name: [] for name in names}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            begun = time.perf_counter()
            engines[name](inputs)
            times[name].append(1e3 * (time.perf_counter() - begun))
    return times


def rows(
    engines: Mapping[str, Engine], case: Case, times: Mapping[str, list[float]]
) -> dict[str, dict[str, float]]:
    """What is printed of each engine."""
    expected = eager(case, torch.float32)(case.inputs)
    table = {}
    for name, taken in times.items():
        ratios = [a / b for a, b in zip(taken, times[OURS], strict=True)]
        table[name] = {
            "ms": statistics.median(taken),
            "ratio": statistics.median(ratios),
            "lowest": min(ratios),
            "highest": max(ratios),
            "psnr_db": psnr_db(engines[name](case.inputs), expected),
        }
    return table


def main() -> None:
    """Print the table, then everything as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scale", choices=SCALES, default="tiny")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-given.threads :])
    torch.set_num_threads(given.threads)
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # exporters have much to say
    with tempfile.TemporaryDirectory() as folder:
        case = make_case(SCALES[given.scale], Path(folder))
        engines, missing = ready(case)
        table = rows(engines, case, by_turns(engines, case.inputs, given.rounds))
    print(f"\n{'engine':26}{'ms':>10}{'ratio':>8}{'range':>16}{'PSNR dB':>9}")
    for name, row in table.items():
        spread = f"{row['lowest']:.2f} to {row['highest']:.2f}"
        print(f"{name:26}{row['ms']:10.2f}{row['ratio']:8.2f}{spread:>16}{row['psnr_db']:9.1f}")
    for name, reason in missing.items():
        print(f"{name:26}   missing: {reason}")
    print(json.dumps({**vars(given), "versions": _versions(), "rows": table, "missing": missing}))


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found


if __name__ == "__main__":
    main()
