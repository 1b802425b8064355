"""What each training step learns from: whole batches, each made from (seed, step) alone.

A data loader may make them in any number of workers and from any step on; the batches stay the
same, which is what lets a killed run go on as if nothing had happened.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import Dataset

from nanoflux_mobile.data.captions import Claim, crowd, training_examples
from nanoflux_mobile.data.folder import Pair, captions, drawn, picture
from nanoflux_mobile.data.scenes import Scene, cells, render
from nanoflux_mobile.tokenizer import CLIP_END, encode

TEXT_TOKENS, CLIP_TOKENS = 16, 24
STRIDE = 1_000_003
"""Steps a seed is allowed before its batches would meet those of the next seed."""


def pixels(scenes: list[Scene]) -> Tensor:
    """Scenes as uint8 (B, 3, 64, 64)."""
    return torch.from_numpy(np.stack([render(s) for s in scenes]).transpose(0, 3, 1, 2).copy())


def unit(pixels_BCHW: Tensor) -> Tensor:
    """uint8 pixels as float in [-1, 1]."""
    return pixels_BCHW.float() / 127.5 - 1.0


@dataclass(frozen=True)
class Words:
    """Both tokenizers, and captions as the two towers take them."""

    unigram: Tokenizer
    bytepair: Tokenizer
    text_tokens: int = TEXT_TOKENS
    clip_tokens: int = CLIP_TOKENS

    def ids(self, texts: list[str]) -> tuple[Tensor, Tensor]:
        """int64 ids of captions, long ones cut: (B, T) for the T5 tower, (B, U) for CLIP's."""
        t5 = [encode(self.unigram, text, self.text_tokens, "<pad>") for text in texts]
        clip = [encode(self.bytepair, text, self.clip_tokens, CLIP_END) for text in texts]
        return _rows(t5), _rows(clip)


def _rows(ids: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(ids)).long()


class CrowdedScenes(Dataset[Tensor]):
    """Batches of crowded scenes, uint8 (B, 3, 64, 64)."""

    def __init__(self, seed: int, batch: int) -> None:
        self.seed, self.batch = seed, batch

    def __getitem__(self, step: int) -> Tensor:  # noqa: D105
        rng = random.Random(self.seed * STRIDE + step)
        return pixels([crowd(rng) for _ in range(self.batch)])


class CaptionedScenes(Dataset[tuple[Tensor, ...]]):
    """Batches of (pixels, cells, T5 ids, CLIP ids); the first `dropout` of each says nothing."""

    def __init__(self, seed: int, batch: int, words: Words, dropout: float) -> None:
        self.seed, self.batch, self.words = seed, batch, words
        self.silent = round(batch * dropout)

    def __getitem__(self, step: int) -> tuple[Tensor, ...]:  # noqa: D105
        rows = list(itertools.islice(training_examples(self.seed * STRIDE + step), self.batch))
        texts = ["" if i < self.silent else text for i, (text, _, _) in enumerate(rows)]
        scenes = [scene for _, _, scene in rows]
        shown = torch.from_numpy(np.stack([cells(scene) for scene in scenes]))
        return (pixels(scenes), shown, *self.words.ids(texts))


class Claims(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Batches of (T5 ids, CLIP ids, answers), where `answer` turns a claim into class numbers."""

    def __init__(
        self, seed: int, batch: int, words: Words, answer: Callable[[Claim], list[int]]
    ) -> None:
        self.seed, self.batch, self.words, self.answer = seed, batch, words, answer

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D105
        rows = list(itertools.islice(training_examples(self.seed * STRIDE + step), self.batch))
        truth = torch.tensor([self.answer(claim) for _, claim, _ in rows])
        return (*self.words.ids([text for text, _, _ in rows]), truth)


class CaptionedFolder(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Batches of (pixels, T5 ids, CLIP ids) of pictures on disk; of several captions one is drawn.

    Every picture is shown once before any is shown again.
    """

    def __init__(
        self, seed: int, batch: int, words: Words, pairs: tuple[Pair, ...], side: int
    ) -> None:
        self.seed, self.batch, self.words = seed, batch, words
        self.pairs, self.side = pairs, side

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor, Tensor]:  # noqa: D105
        places = drawn(len(self.pairs), self.seed, step, self.batch)
        rows = [(self.pairs[i], rng) for i, rng in places]
        shown = np.stack([picture(pair, self.side) for pair, _ in rows])
        texts = [rng.choice(captions(pair)) for pair, rng in rows]
        return (torch.from_numpy(shown), *self.words.ids(texts))
