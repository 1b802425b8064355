"""Distilling a denoiser: its velocity, and where the shapes agree what its heads give out.

L = |v_S - v_T|^2 + gamma sum_l |mean_h o_S - mean_h o_T|^2, the paper's loss for fewer heads, with
means over tokens and channels in place of its unpublished norms.

Shapes: B batch, L tokens, S image tokens, C channels, H heads, K head width.
"""

from __future__ import annotations

import copy
import dataclasses
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from nanoflux_mobile.compress.importance import inputs_of
from nanoflux_mobile.distill.answers import NAMES, as_kept
from nanoflux_mobile.distill.desk import Desk, check_latents, with_network
from nanoflux_mobile.distill.learning import TrainConfig
from nanoflux_mobile.distill.lessons import STRIDE
from nanoflux_mobile.distill.trainer import Lesson, LossOf, train
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.families.nanoflux import FluxParts
from nanoflux_mobile.families.nanoflux.flow import Clean, Noised, noised, path_of, velocity
from nanoflux_mobile.families.nanoflux.flow import Path as FlowPath
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.weights import network


@dataclass(frozen=True)
class Phase:
    """One stretch of training.

    teacher: "source" is the checkpoint that is compressed, "before" the student as it entered this
    stage, "data" no teacher at all: plain flow matching.
    head_features: gamma, the weight of the heads' means. features_share: of the batch, which they
    are compared on; the teacher runs live there.
    """

    steps: int
    lr: float
    teacher: Literal["source", "before", "data"] = "source"
    head_features: float = 0.0
    features_share: float = 0.25
    warmup: int = 20
    ema: float = 0.99
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        """Refuse counts and shares that mean nothing."""
        if self.steps < 1 or self.lr <= 0 or not 0 < self.features_share <= 1:
            raise ValueError(
                f"steps {self.steps}, lr {self.lr}, features_share {self.features_share}: give "
                "steps from 1, lr above 0, a share above 0 up to 1"
            )


def attention_outputs(model: NanoFlux) -> dict[str, nn.Module]:
    """The modules that attention's outputs enter, for `inputs_of`."""
    found: dict[str, nn.Module] = {}
    for i, block in enumerate(model.transformer_blocks):
        found[f"{i}.image"] = block.get_submodule("attn.to_out.0")
        found[f"{i}.text"] = block.get_submodule("attn.to_add_out")
    for j, block in enumerate(model.single_transformer_blocks):
        found[f"single {j}"] = block.get_submodule("proj_out")
    return found


def head_outputs(model: NanoFlux, seen: Mapping[str, Tensor], rows: slice) -> list[Tensor]:
    """Per block, doubles first, what every head gives out for some rows: (B, L, H, K)."""
    heads, width = model.cfg.num_attention_heads, model.cfg.width
    found = [
        torch.cat((seen[f"{i}.text"][rows], seen[f"{i}.image"][rows]), 1)
        for i in range(model.cfg.num_layers)
    ]
    singles = range(model.cfg.num_single_layers)
    found += [seen[f"single {j}"][rows][..., :width] for j in singles]
    return [joint.unflatten(-1, (heads, -1)) for joint in found]


def phases_of(settings: Any) -> Iterator[Phase]:
    """Every phase among a stage's settings, alone or in a row."""
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        several = value if isinstance(value, tuple) else (value,)
        yield from (one for one in several if isinstance(one, Phase))


def check_phases(source: FluxParts, before: FluxParts, after: FluxParts, settings: Any) -> None:
    """InputError for heads that are to be compared but do not correspond block by block."""
    for phase in phases_of(settings):
        teacher = (source if phase.teacher == "source" else before).flux
        blocks = teacher.num_layers, teacher.num_single_layers, teacher.attention_head_dim
        cfg = after.flux
        alike = blocks == (cfg.num_layers, cfg.num_single_layers, cfg.attention_head_dim)
        if phase.head_features and (cfg.downsamples or not alike):
            raise InputError(
                "head_features compares heads of equal width, block by block, at full resolution, "
                "which this student and its teacher no longer have; leave it out of this stage"
            )


def teach(
    desk: Desk, parts: FluxParts, phase: Phase, out: Path, frozen: Sequence[str] = ()
) -> FluxParts:
    """The parts with their denoiser trained for a phase; resumes from the folder `out`.

    `frozen` are beginnings of parameter names that stay as they are.
    """
    teacher = desk.source if phase.teacher == "source" else desk.before
    check_latents(teacher, parts)
    # A cut may share tensors with the network it was made from, which must not learn with it.
    student = copy.deepcopy(parts.networks.denoiser.whole()).train()
    loss_of = _loss(desk, parts, student, phase, teacher)
    config = TrainConfig(
        phase.steps,
        phase.lr,
        warmup=phase.warmup,
        cooling="cosine",
        weight_decay=phase.weight_decay,
        ema=phase.ema,
        device=desk.device,
        log_every=5,
    )
    who = {**desk.identity, "phase": dataclasses.asdict(phase), "batch": desk.batch}
    trained = train(
        student, _Steps(desk, out), loss_of, config, out, frozen=frozen, identity=who,
        on_step=lambda done: desk.on_step(out.name, done, phase.steps),
    )  # fmt: skip
    finished = cast(NanoFlux, trained).cpu().eval().requires_grad_(False)
    return with_network(parts, network(finished))


def taught(desk: Desk, parts: FluxParts, phases: Sequence[Phase], out: Path) -> FluxParts:
    """The parts after every phase, each in a folder of its own."""
    for number, phase in enumerate(phases, 1):
        parts = teach(desk, parts, phase, out / f"phase-{number}")
    return parts


PLACES = 900_000
"""Where runs may begin among the batches of a seed."""


class _Steps(torch.utils.data.Dataset[tuple[Tensor, ...]]):
    """The batches of a run: the number of each, then its tensors unless answers are recorded.

    Every run begins at another place, so a chain does not meet its first batches in every stage.
    """

    def __init__(self, desk: Desk, out: Path) -> None:
        self.lessons: Any = desk.material.lessons(desk.seed, desk.batch)
        self.answers = desk.answers
        self.first = zlib.crc32(f"{out.parent.name}/{out.name}".encode()) % PLACES

    def __getitem__(self, step: int) -> tuple[Tensor, ...]:
        number = self.first + step
        if self.answers is None:
            return (torch.tensor(number), *self.lessons[number])
        return (torch.tensor(self.answers.index(number)),)


def _loss(
    desk: Desk, parts: FluxParts, student: NanoFlux, phase: Phase, teacher: FluxParts
) -> LossOf:
    model = teacher.denoiser.to(desk.device)
    theirs = path_of(teacher, desk.steps, desk.device)
    path = path_of(parts, desk.steps, desk.device)
    rows = slice(None, None, round(1 / phase.features_share))
    # Hooks read the heads, and compiled code would not call them.
    if desk.compiled and not phase.head_features:
        compile_blocks(student)

    def loss_of(lesson: Lesson, step: int) -> tuple[Tensor, dict[str, float]]:
        clean, answer_BSC = _read(desk, lesson)
        batch = noised(clean, path.sigmas, _rng(desk, int(lesson[0])))
        with inputs_of(attention_outputs(student) if phase.head_features else {}) as ours:
            said_BSC = velocity(student, batch, path)
        if phase.teacher == "data":
            target_BSC = batch.target_BSC
        elif answer_BSC is None or teacher is not desk.source:
            with torch.no_grad():
                target_BSC = velocity(model, batch, theirs)
        else:
            target_BSC = answer_BSC
        loss = (said_BSC.float() - target_BSC.float()).square().mean()
        figures = {"velocity": loss.item()}
        if phase.head_features:
            features = head_loss(model, student, ours, batch, theirs, rows)
            figures["features"] = features.item()
            loss = loss + phase.head_features * features
        return loss, figures

    return loss_of


def compile_blocks(student: NanoFlux) -> None:
    """Every block by torch.compile, in place; blocks of a kind share one compilation.

    Of a whole network it takes minutes instead of one; steps of the tiny student are 1.3 times as
    fast this way on two AVX2 cores.
    """
    for block in (*student.transformer_blocks, *student.single_transformer_blocks):
        block.compile(dynamic=False)


def _rng(desk: Desk, index: int) -> torch.Generator:
    return torch.Generator().manual_seed(desk.seed * STRIDE + index)


def _read(desk: Desk, lesson: Lesson) -> tuple[Clean, Tensor | None]:
    """A lesson's latents and states, and the source's velocity where answers are recorded."""
    if desk.answers is None:
        return desk.material.clean(lesson[1:]), None
    index = int(lesson[0])
    stored = desk.answers.get(index, lambda: _recorded(desk, index))
    *clean, answer_BSC = (stored[name].to(desk.device) for name in NAMES)
    return Clean(*clean), answer_BSC


@torch.no_grad()
def _recorded(desk: Desk, index: int) -> dict[str, Tensor]:
    """What is kept of a batch: its clean latents and states, and the source's velocity."""
    lesson: Lesson = desk.material.lessons(desk.seed, desk.batch)[index]
    clean = desk.material.clean(tuple(tensor.to(desk.device) for tensor in lesson))
    kept = {name: as_kept(tensor).float() for name, tensor in clean.tensors().items()}
    path = path_of(desk.source, desk.steps, desk.device)
    batch = noised(Clean(**kept), path.sigmas, _rng(desk, index))
    return {**kept, "velocity": velocity(desk.source.denoiser, batch, path)}


def head_loss(
    teacher: NanoFlux,
    student: NanoFlux,
    ours: Mapping[str, Tensor],
    batch: Noised,
    path: FlowPath,
    rows: slice,
) -> Tensor:
    """Squared difference of the heads' means on some rows, means over tokens, a sum over blocks."""
    some = Noised(*(getattr(batch, f.name)[rows] for f in dataclasses.fields(batch)))
    with torch.no_grad(), inputs_of(attention_outputs(teacher)) as theirs:
        velocity(teacher, some, path)
    pairs = zip(
        head_outputs(student, ours, rows), head_outputs(teacher, theirs, slice(None)), strict=True
    )
    gaps = [(a.mean(2) - b.mean(2)).float().square().mean() for a, b in pairs]
    return torch.stack(gaps).sum()
