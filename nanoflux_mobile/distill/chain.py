"""A plan carried out: cut after cut, each student saved, scored and taught, resumable anywhere."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from nanoflux_mobile import plugins
from nanoflux_mobile.checkpoint import Checkpoint, open_checkpoint
from nanoflux_mobile.distill import chain_page, run_page
from nanoflux_mobile.distill.answers import Answers
from nanoflux_mobile.distill.chain_files import (
    CUT,
    PICTURES,
    STUDENT,
    TRAINED,
    Finished,
    read_scores,
    stages_of,
    write_scores,
)
from nanoflux_mobile.distill.desk import Desk, check_latents
from nanoflux_mobile.distill.learning import check_compiler, check_device
from nanoflux_mobile.distill.material import Material, material_of
from nanoflux_mobile.distill.pictures import write_pictures
from nanoflux_mobile.distill.plan import STAGES, Plan, Stage
from nanoflux_mobile.distill.run_files import check_identity
from nanoflux_mobile.distill.scoring import StageScores, parameters, score, score_student
from nanoflux_mobile.distill.teaching import check_phases
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.families.nanoflux import FluxParts, load, save
from nanoflux_mobile.spec import content_digest
from nanoflux_mobile.storage import alone_in, write_file
from nanoflux_mobile.strict_json import to_plain

SECONDS, MARK = "seconds", "student.json"
MINUTE_S = 60.0


@dataclass(frozen=True)
class Watch:
    """Who hears of progress: a stage's beginning, a step of something, a stage's scores."""

    on_stage: Callable[[int, int, str], None] = lambda number, count, name: None
    on_step: Callable[[str, int, int], None] = lambda what, done, total: None
    on_scores: Callable[[str, StageScores], None] = lambda name, scores: None


@dataclass(frozen=True)
class Choices:
    """What a call adds to a plan.

    data: material, over the plan's own. device: "cpu" or "cuda". untrained: cuts only.
    prompts: how many pictures a scene score is made of, 0 for none. compiled: train by
    torch.compile.
    """

    data: str = ""
    device: str = "cpu"
    untrained: bool = False
    prompts: int = 120
    compiled: bool = False


def outline(teacher: FluxParts, plan: Plan) -> Iterator[tuple[Stage, FluxParts]]:
    """Every stage and the student after it, in shapes only; InputError if the plan cannot apply."""
    parts = teacher
    for number, stage in enumerate(plan.stages, 1):
        before = parts
        try:
            parts = plugins.load(STAGES, stage.cut).outline(before, stage.settings)
            check_phases(teacher, before, parts, stage.settings)
        except (InputError, ValueError) as problem:
            raise InputError(f"stage {number} of plan {plan.name}, {stage.name}: {problem}") from (
                problem
            )
        check_latents(teacher, parts)
        yield stage, parts


def compress(checkpoint: Path, plan: Plan, out: Path, choices: Choices, watch: Watch) -> FluxParts:
    """Carry out a plan and return the student, which is saved in OUT/student.

    Args:
        checkpoint: the teacher's folder.
        plan: the chain of cuts.
        out: a folder for everything, laid out as `chain_files` says; a second call goes on where
            the first was killed.
        choices: data, device and the like.
        watch: who hears of progress.

    Raises:
        InputError: a plan that does not apply, a folder of another run or one that another
            process works in, before any work.
        CheckFailed: training diverged; what was saved last stays.
    """
    _check_places(checkpoint, out)
    check_device(choices.device)
    if choices.compiled:
        check_compiler(choices.device)
    opened = open_checkpoint(checkpoint)
    teacher = _teacher(opened, plan)
    material = None
    if not choices.untrained:
        material = material_of(choices.data or plan.data, teacher, choices.device)
    identity = _identity(opened, plan, material)
    with alone_in(out):
        check_identity(out, identity)
        for one in stages_of(out, plan):
            if one.folder.exists():
                check_identity(one.folder, _own_identity(identity, plan, one))
        if material is None:
            parts = _cut_only(teacher, plan, out, watch, identity)
        else:
            parts = _carry_out(teacher, plan, out, choices, watch, material, identity)
        _save_student(parts, out, _own_identity(identity, plan, stages_of(out, plan)[-1]), watch)
        chain_page.write_report(out, plan)
    return load(open_checkpoint(out / STUDENT))


def _check_places(checkpoint: Path, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise InputError(f"{out} is a file; name a folder, new or of an earlier run")
    if out.resolve().is_relative_to(checkpoint.resolve()):
        raise InputError(f"{out} lies in the teacher's own folder; name a folder outside it")


def _teacher(opened: Checkpoint, plan: Plan) -> FluxParts:
    """The teacher, if the whole plan applies to it."""
    if opened.family != plan.family:
        raise InputError(
            f"plan {plan.name} is for the family {plan.family}, but {opened.path} is of "
            f"{opened.family}"
        )
    teacher = load(opened)
    if teacher.clip is None:
        raise InputError(
            f"{opened.path} is a Static-LN student, which has no modulation to learn from any "
            "more; give its AdaLN teacher"
        )
    list(outline(teacher, plan))
    return teacher


def _identity(opened: Checkpoint, plan: Plan, material: Material | None) -> Mapping[str, Any]:
    """What the whole chain is of; a run that goes on must have the same."""
    told: dict[str, Any] = {"euler_steps": plan.steps, "seed": plan.seed, "batch": plan.batch}
    told |= {"answers": plan.answers, "untrained": material is None, "teacher": opened.digest()}
    return told | dict(material.identity if material else {"data": None})


def _own_identity(identity: Mapping[str, Any], plan: Plan, one: Finished) -> Mapping[str, Any]:
    """The same with every setting of the stages up to this one by name, so errors can tell it."""
    own: dict[str, Any] = dict(identity)
    for stage in plan.stages[: one.number]:
        own |= _flat(f"{stage.name}.cut", stage.cut) | _flat(stage.name, to_plain(stage.settings))
    return own


def _flat(name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict | list):
        return {name: value}
    inner = value.items() if isinstance(value, dict) else enumerate(value, 1)
    return {k: v for key, item in inner for k, v in _flat(f"{name}.{key}", item).items()}


def _save_student(parts: FluxParts, out: Path, identity: Mapping[str, Any], watch: Watch) -> None:
    """OUT/student, unless it is there already and was made by the same stages."""
    mark, told = out / MARK, json.dumps({"made_by": content_digest(identity)}) + "\n"
    if (out / STUDENT).exists() and mark.exists() and mark.read_text() == told:
        return
    watch.on_step("saving the student", 0, 1)
    save(parts, out / STUDENT, torch.float16)
    write_file(mark, told)
    watch.on_step("saving the student", 1, 1)


def _cut_only(
    teacher: FluxParts, plan: Plan, out: Path, watch: Watch, identity: Mapping[str, Any]
) -> FluxParts:
    """The student after all cuts; no weight of it is in memory until it is saved."""
    write_scores(out, StageScores(parameters(teacher), None, None, 0.0))
    parts, stages = teacher, stages_of(out, plan)
    for one in stages:
        watch.on_stage(one.number, len(stages), one.stage.name)
        check_identity(one.folder, _own_identity(identity, plan, one))
        module, began = plugins.load(STAGES, one.stage.cut), time.monotonic()
        bare = getattr(module, "bare", None)
        if bare is None:
            parts = module.outline(parts, one.stage.settings)
        else:
            parts = bare(parts, one.stage.settings, plan.steps)
        scores = StageScores(parameters(parts), None, None, time.monotonic() - began)
        write_scores(one.folder, scores)
        watch.on_scores(one.stage.name, scores)
    return parts


def _carry_out(
    teacher: FluxParts,
    plan: Plan,
    out: Path,
    choices: Choices,
    watch: Watch,
    material: Material,
    identity: Mapping[str, Any],
) -> FluxParts:
    """The student after all stages, each read from the disk where it is finished."""
    answers = Answers(out / "answers", plan.answers) if plan.answers else None

    def desk(before: FluxParts, own: Mapping[str, Any]) -> Desk:
        return Desk(
            teacher, before, material, answers, plan.steps, plan.batch, plan.seed, choices.device,
            own, watch.on_step, choices.compiled,
        )  # fmt: skip

    if read_scores(out) is None:
        own = score(desk(teacher, identity), teacher, choices.prompts)
        write_scores(out, StageScores(parameters(teacher), None, own, 0.0))
    parts, stages = teacher, stages_of(out, plan)
    for one in stages:
        watch.on_stage(one.number, len(stages), one.stage.name)
        own_identity = _own_identity(identity, plan, one)
        check_identity(one.folder, own_identity)
        parts = _stage(desk(parts, own_identity), one, choices, watch)
        chain_page.write_report(out, plan)
    return parts


def _stage(desk: Desk, one: Finished, choices: Choices, watch: Watch) -> FluxParts:
    """The student after one stage, read from the folder where it is finished."""
    folder, settings = one.folder, one.stage.settings
    if one.scores is not None:
        return load(open_checkpoint(folder / TRAINED))
    module, diary = plugins.load(STAGES, one.stage.cut), _Diary(folder)
    desk = diary.kept(desk)
    if not (folder / CUT).exists():
        save(module.cut(desk, settings), folder / CUT)
    bare = load(open_checkpoint(folder / CUT))
    if not (folder / TRAINED).exists():
        save(module.train(desk, bare, settings, folder), folder / TRAINED)
    taught = load(open_checkpoint(folder / TRAINED))
    if choices.prompts:
        columns = {"teacher": desk.source, "after the cut": bare, "trained": taught}
        write_pictures(desk, columns, folder / PICTURES)
    scores = score_student(desk, bare, taught, choices.prompts, diary.write())
    write_scores(folder, scores)
    watch.on_scores(one.stage.name, scores)
    return taught


@dataclass
class _Diary:
    """Once a minute: the pages of a stage's runs anew, and how long the stage has taken so far."""

    folder: Path
    before: float = 0.0
    began: float = field(default_factory=time.monotonic)
    written: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        path = self.folder / SECONDS
        self.before = float(path.read_text()) if path.exists() else 0.0

    def kept(self, desk: Desk) -> Desk:
        """The desk, every step of which is a chance to write."""

        def on_step(what: str, done: int, total: int) -> None:
            desk.on_step(what, done, total)
            if done == total or time.monotonic() - self.written > MINUTE_S:
                self.write()

        return replace(desk, on_step=on_step)

    def write(self) -> float:
        """Write both; the seconds of this stage, those before a kill among them."""
        self.written = time.monotonic()
        seconds = self.before + self.written - self.began
        write_file(self.folder / SECONDS, f"{seconds:.1f}\n")
        run_page.write_pages(self.folder)
        return seconds
