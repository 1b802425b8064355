"""The folder of a chain: where every stage and its student lie, and the scores they left.

OUT/01-heads/cut is the student straight after the cut, OUT/01-heads/checkpoint after training; both
are checkpoints like any other. OUT/student is the last of them in half precision, OUT/report.html
tells of all.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from nanoflux_mobile.distill.plan import Plan, Stage
from nanoflux_mobile.distill.scoring import StageScores
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.storage import write_file
from nanoflux_mobile.strict_json import from_plain, to_plain

STUDENT, SCORES, REPORT = "student", "scores.json", "report.html"
CUT, TRAINED, PICTURES = "cut", "checkpoint", "pictures.png"


@dataclass(frozen=True)
class Finished:
    """A stage of a plan in its folder; `scores` are None until it is finished."""

    number: int
    stage: Stage
    folder: Path
    scores: StageScores | None


def stages_of(out: Path, plan: Plan) -> list[Finished]:
    """Every stage of a plan, finished or not, in order."""
    folders = [out / f"{number:02}-{stage.name}" for number, stage in enumerate(plan.stages, 1)]
    return [
        Finished(number, stage, folder, read_scores(folder))
        for number, (stage, folder) in enumerate(zip(plan.stages, folders, strict=True), 1)
    ]


def read_scores(folder: Path) -> StageScores | None:
    """The scores a finished stage left in its folder; the teacher's are in OUT itself."""
    path = folder / SCORES
    try:
        return from_plain(StageScores, json.loads(path.read_text()), str(path))
    except FileNotFoundError:
        return None
    except ValueError as broken:
        raise InputError(
            f"{path} is damaged ({broken}); remove it to score the stage again"
        ) from broken


def write_scores(folder: Path, scores: StageScores) -> None:
    """Say that a stage is finished."""
    write_file(folder / SCORES, json.dumps(to_plain(scores), indent=2) + "\n")
