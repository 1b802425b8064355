"""Score checkpoints and bundles of the tiny family on held-out prompts, GenEval's six columns.

    python benchmarks/quality/scene_scores.py --count 120 PATH [PATH ...]

Each PATH is a checkpoint folder (PyTorch draws) or a bundle (its saved files draw). The judge is
nanoflux_mobile.evaluate.scene_accuracy, which has no learned part. Prompt i is drawn from seed i
by everyone, so the columns compare the same pictures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path

from nanoflux_export.pictures import open_painter, paint
from nanoflux_mobile.data.captions import held_out
from nanoflux_mobile.evaluate.scene_accuracy import Scores, score


def score_path(path: Path, count: int) -> tuple[Scores, float]:
    """Scores over `count` prompts, and seconds for each picture."""
    painter = open_painter(path)
    prompts = held_out(seed=0, count=count)
    start = time.perf_counter()
    drawn = [paint(painter, text, seed).pixels for seed, (text, _) in enumerate(prompts)]
    seconds = (time.perf_counter() - start) / count
    return score(zip((claim for _, claim in prompts), drawn, strict=True)), seconds


def main() -> None:
    """Print one row per path, then all figures as one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--count", type=int, default=120)
    arguments = parser.parse_args()
    names = [*(field.name for field in dataclasses.fields(Scores))]
    print(f"{'':28}" + "".join(f"{name:>12}" for name in ("overall", *names, "s/picture")))
    table = {}
    for path in arguments.paths:
        scores, seconds = score_path(path, arguments.count)
        figures = {"overall": scores.overall, **dataclasses.asdict(scores), "s/picture": seconds}
        print(f"{path.name:28}" + "".join(f"{v:12.3f}" for v in figures.values()), flush=True)
        table[str(path.name)] = {name: round(value, 4) for name, value in figures.items()}
    print(json.dumps({"prompts": arguments.count, "scores": table}))


if __name__ == "__main__":
    main()
