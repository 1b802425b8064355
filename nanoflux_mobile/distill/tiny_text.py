"""Train the tiny family's text towers to say what a caption claims.

Both towers learn by describing the claim back: the T5-shaped encoder group by group through small
reading heads that are thrown away afterwards, the CLIP-shaped tower from its pooled state alone.
A denoiser then meets text states in which colour, shape, count and relation lie ready to read.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_mobile.data.captions import RELATIONS, Claim
from nanoflux_mobile.data.scenes import BACKGROUNDS, COLOURS, RADII, SHAPES
from nanoflux_mobile.distill.learning import TrainConfig
from nanoflux_mobile.distill.lessons import CLIP_TOKENS, Claims, Words
from nanoflux_mobile.distill.trainer import Lesson, train
from nanoflux_mobile.models.clip import ClipConfig, ClipText
from nanoflux_mobile.models.t5 import T5Config, T5Encoder

GROUPS = 4
FIELDS = {
    "count": range(5),
    "shape": (None, *SHAPES),
    "colour": (None, *COLOURS),
    "size": (None, *RADII),
}
WHOLE = {"relation": (None, *RELATIONS), "background": (None, *BACKGROUNDS)}


def t5_config(vocab_size: int) -> T5Config:
    """T5 v1.1 in miniature: 4 layers of width 128."""
    return T5Config(vocab_size, 128, 32, 256, 4, 4, 32, 128, 1e-6, "gated-gelu")


def clip_config(vocab_size: int) -> ClipConfig:
    """CLIP's text tower in miniature: 2 layers of width 64; the end token is the last id."""
    return ClipConfig(vocab_size, 64, 128, 2, 4, CLIP_TOKENS, 1e-5, "quick_gelu", vocab_size - 1)


def answers(claim: Claim) -> list[int]:
    """The claim as class numbers: four fields for each of four groups, then the whole scene."""
    rows: list[int] = []
    for i in range(GROUPS):
        group = claim.groups[i] if i < len(claim.groups) else None
        for field, words in FIELDS.items():
            absent = 0 if field == "count" else None
            rows.append(list(words).index(getattr(group, field) if group else absent))
    rows += [list(words).index(getattr(claim, field)) for field, words in WHOLE.items()]
    return rows


CLASSES = [len(words) for words in FIELDS.values()] * GROUPS + [len(w) for w in WHOLE.values()]


class Reader(nn.Module):
    """Answers every question from a set of states: one learned query and one head each."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(len(CLASSES), width) * width**-0.5)
        self.key = nn.Linear(width, width)
        self.heads = nn.ModuleList(nn.Linear(width, n) for n in CLASSES)

    def forward(self, states_BSD: Tensor) -> list[Tensor]:
        """(B, S, D) -> one (B, classes) for each question."""
        scores_BSQ = self.key(states_BSD) @ self.queries.T
        read_BQD = torch.softmax(scores_BSQ, 1).transpose(1, 2) @ states_BSD
        return [head(read_BQD[:, i]) for i, head in enumerate(self.heads)]


class TextTowers(nn.Module):
    """Both towers and their readers, trained together."""

    def __init__(self, t5: T5Config, clip: ClipConfig) -> None:
        super().__init__()
        self.t5, self.clip = T5Encoder(t5), ClipText(clip)
        self.t5_reader, self.clip_reader = Reader(t5.d_model), Reader(clip.hidden_size)

    def forward(self, ids_BS: Tensor, clip_ids_BS: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Answers of the T5 tower and of the CLIP tower."""
        pooled_BD = self.clip(clip_ids_BS)
        return self.t5_reader(self.t5(ids_BS)), self.clip_reader(pooled_BD[:, None])


def _loss(answered: list[Tensor], truth_BQ: Tensor) -> tuple[Tensor, float]:
    losses = [F.cross_entropy(a, truth_BQ[:, i]) for i, a in enumerate(answered)]
    right = torch.stack([a.argmax(1) == truth_BQ[:, i] for i, a in enumerate(answered)])
    return torch.stack(losses).mean(), right.all(0).float().mean().item()


def new_towers(words: Words) -> TextTowers:
    """Untrained towers for the vocabularies of two tokenizers."""
    sizes = words.unigram.get_vocab_size(), words.bytepair.get_vocab_size()
    model = TextTowers(t5_config(sizes[0]), clip_config(sizes[1]))
    # T5 attention is unscaled, so its first scores must start small.
    for name, p in model.t5.named_parameters():
        if p.ndim == 2:
            nn.init.normal_(p, std=(0.4 if ".q." in name else 1.0) * p.shape[1] ** -0.5)
    return model


def train_text(words: Words, out: Path, batch: int, seed: int, config: TrainConfig) -> None:
    """Train both towers; resumes from `out`."""
    torch.manual_seed(seed)
    model = new_towers(words)

    def loss_of(lesson: Lesson, step: int) -> tuple[Tensor, dict[str, float]]:
        ids_BT, clip_ids_BS, truth_BQ = lesson
        by_t5, by_clip = model(ids_BT, clip_ids_BS)
        loss_t5, right_t5 = _loss(by_t5, truth_BQ)
        loss_clip, right_clip = _loss(by_clip, truth_BQ)
        return loss_t5 + loss_clip, {"t5_right": right_t5, "clip_right": right_clip}

    lessons, who = Claims(seed, batch, words, answers), {"seed": seed, "batch": batch}
    train(model, lessons, loss_of, config, out, identity=who)
