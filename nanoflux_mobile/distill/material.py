"""What students learn from: procedural scenes, or a folder of pictures with captions.

A kind of material is a function from a teacher to a `Material`; KINDS names them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from nanoflux_mobile.data.folder import digest_of, open_folder
from nanoflux_mobile.data.scenes import CANVAS
from nanoflux_mobile.distill.learning import check_device
from nanoflux_mobile.distill.lessons import CaptionedFolder, CaptionedScenes, Words, unit
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.families.nanoflux import FluxParts
from nanoflux_mobile.families.nanoflux.flow import Clean
from nanoflux_mobile.models.vae import Autoencoder
from nanoflux_mobile.sampler import pack


@dataclass(frozen=True)
class Material:
    """Batches by step, and how a teacher's encoders read them.

    lessons: (seed, batch size) to a dataset of batches, each made from (seed, step) alone.
    clean: one batch to latents and text states, without gradients.
    ids: one batch to token ids (B, T) of the text encoder.
    pixels: one batch to pictures in [-1, 1], (B, 3, H, W).
    identity: what tells this material from others, for resuming.
    """

    lessons: Callable[[int, int], Dataset[Any]]
    clean: Callable[[tuple[Tensor, ...]], Clean]
    ids: Callable[[tuple[Tensor, ...]], Tensor]
    pixels: Callable[[tuple[Tensor, ...]], Tensor]
    identity: Mapping[str, Any]


Lessons = Callable[[Words], Callable[[int, int], Dataset[Any]]]


def scenes(teacher: FluxParts, device: str) -> Material:
    """Fresh captioned scenes of 64 pixels without end, what the tiny family was trained on."""
    if teacher.side != CANVAS:
        raise InputError(
            f"scenes are pictures of {CANVAS} pixels, this teacher draws {teacher.side}; "
            "give --data FOLDER with pictures and captions"
        )

    def lessons(words: Words) -> Callable[[int, int], Dataset[Any]]:
        return lambda seed, batch: CaptionedScenes(seed, batch, words, 0.0)

    return _encoded(teacher, device, lessons, {"data": "scenes"})


def folder(path: Path, teacher: FluxParts, device: str) -> Material:
    """Pictures with captions on disk, cut to the side that the teacher draws.

    Captions longer than its text encoders read are cut.
    """
    pairs = open_folder(path)

    def lessons(words: Words) -> Callable[[int, int], Dataset[Any]]:
        return lambda seed, batch: CaptionedFolder(seed, batch, words, pairs, teacher.side)

    told = f"{len(pairs)} pictures, {digest_of(pairs)}"
    return _encoded(teacher, device, lessons, {"data": told})


def _encoded(
    teacher: FluxParts, device: str, lessons: Lessons, identity: Mapping[str, Any]
) -> Material:
    """Material whose batches are pixels first and token ids last, through a teacher's encoders."""
    if teacher.clip is None:
        raise InputError("the teacher is a Static-LN student; give the AdaLN checkpoint")
    if not isinstance(teacher.networks.vae.skeleton, Autoencoder):
        raise InputError("the teacher's vae only decodes; give a checkpoint with the whole one")
    clip = teacher.clip.tower.to(device)
    vae, t5 = teacher.vae.to(device), teacher.text_encoder.to(device)
    length = clip.cfg.max_position_embeddings
    words = Words(teacher.tokenizer, teacher.clip.tokenizer, teacher.text_tokens, length)
    patch = teacher.canvas.patch

    @torch.no_grad()
    def clean(lesson: tuple[Tensor, ...]) -> Clean:
        pixels, *_, ids_BT, clip_ids_BU = (tensor.to(device) for tensor in lesson)
        x_BSC = pack(vae.encode(unit(pixels)), patch)
        return Clean(x_BSC.float(), t5(ids_BT), clip(clip_ids_BU))

    return Material(
        lessons(words),
        clean,
        lambda lesson: lesson[-2],
        lambda lesson: unit(lesson[0]),
        identity,
    )


Kind = Callable[[FluxParts, str], Material]
KINDS: Mapping[str, Kind] = {"scenes": scenes}
"""Material by name; a teacher and a device to what is learned from."""


def material_of(kind: str, teacher: FluxParts, device: str = "cpu") -> Material:
    """Material by a name in KINDS, or from the path of a folder or shard of captioned pictures.

    InputError for what is neither, what does not fit the teacher, or a device that is not there.
    """
    check_device(device)
    if kind in KINDS:
        return KINDS[kind](teacher, device)
    if not kind or not Path(kind).exists():
        raise InputError(
            f"the data to learn from are {kind!r}; give --data with {', '.join(KINDS)}, or with "
            "the path of a folder or .tar shard of captioned pictures"
        )
    return folder(Path(kind), teacher, device)
