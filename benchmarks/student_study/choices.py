"""What each way of making a cut leaves of a teacher before any training, in dB of its velocity.

    python benchmarks/student_study/choices.py nanoflux_mobile/assets/tiny

Every row is one cut of the checkpoint itself, by the stages of `nanoflux compress`, and the PSNR of
the velocity against the checkpoint's on held-out batches over all steps.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from nanoflux_mobile import plugins
from nanoflux_mobile.checkpoint import open_checkpoint
from nanoflux_mobile.distill.desk import Desk
from nanoflux_mobile.distill.material import material_of
from nanoflux_mobile.distill.plan import STAGES, load
from nanoflux_mobile.distill.scoring import velocity_db
from nanoflux_mobile.families import nanoflux as family
from nanoflux_mobile.strict_json import from_plain

PROMPTS = ["a red circle above a blue square", "three green triangles on a black background"]
ABSORB = {"steps": 1, "lr": 1e-3}
SKIP = {"absorb": ABSORB, "skip": True}
ROWS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("8 of 12 heads, the first", "heads", {"choose": "first"}),
    ("8 of 12 heads, by importance", "heads", {"choose": "importance"}),
    ("12 of 16 channels, the first", "features", {"choose": "first"}),
    ("12 of 16 channels, by SVD", "features", {"choose": "svd"}),
    ("5 of 8 blocks, similar ones averaged", "merging", {"blocks": "5/8"}),
    ("5 of 8 blocks, similar ones deleted", "merging", {"blocks": "5/8", "how": "delete"}),
    ("5 of 8 blocks, the first four averaged", "merging", {"blocks": "5/8", "first": 0}),
    ("Static-LN, two prompts", "static_ln", {"prompts": PROMPTS}),
    ("all at once, by magnitude", "one_shot", {"blocks": "5/8"}),
    ("low steps from block 7", "token_downsampling", {"start": 7, "absorb": ABSORB}),
    ("low steps from block 4", "token_downsampling", {"start": 4, "absorb": ABSORB}),
    ("low steps from block 1", "token_downsampling", {"start": 1, "absorb": ABSORB}),
    ("the same with a skip, from block 7", "token_downsampling", {**SKIP, "start": 7}),
    ("the same with a skip, from block 4", "token_downsampling", {**SKIP, "start": 4}),
    ("the same with a skip, from block 1", "token_downsampling", {**SKIP, "start": 1}),
)


def main() -> None:
    """Print a row for each choice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    arguments = parser.parse_args()
    plan, parts = load("tiny"), family.load(open_checkpoint(arguments.checkpoint))
    material = material_of("scenes", parts)
    desk = Desk(parts, parts, material, None, plan.steps, plan.batch, plan.seed, "cpu", {})
    for name, cut, settings in ROWS:
        stage = plugins.load(STAGES, cut)
        student = stage.cut(desk, from_plain(stage.Settings, settings, name))
        millions = student.networks.denoiser.count() / 1e6
        print(f"{name:40}{millions:7.2f} M{velocity_db(desk, student):8.1f} dB", flush=True)


if __name__ == "__main__":
    main()
