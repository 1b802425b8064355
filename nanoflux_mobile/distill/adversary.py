"""A decoder's adversary: a critic that tells its pictures from the full decoder's, patch by patch.

The losses are hinges (Lim and Ye, 2017), which keep a critic without norms from growing without
end. Both sides learn in one pass of one loop, from the same state of both: the decoder's term runs
the critic on detached copies of its weights, the critic's term gets detached pictures, so no
gradient crosses over. Both live in one module, so a saved state holds the whole contest and a
killed run goes on to the bit.

Shapes: B batch, C channels, H W pixels, h w patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

LEAK = 0.2


class Critic(nn.Module):
    """A score for each patch of 18 pixels; the scores take a quarter of the picture's side.

    Small patches, because the other losses hold what is large: this one is for edges and texture.
    """

    def __init__(self, widths: Sequence[int] = (24, 48)) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(cin, cout, 4, stride=2, padding=1) for cin, cout in pairwise((3, *widths))
        )
        self.mix = nn.Conv2d(widths[-1], widths[-1], 3, padding=1)
        self.score = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, pixels_BCHW: Tensor) -> Tensor:
        """(B, 3, H, W) in [-1, 1] -> scores (B, 1, h, w), higher for the full decoder's."""
        x = pixels_BCHW
        for layer in (*self.layers, self.mix):
            x = F.leaky_relu(layer(x), LEAK)
        return self.score(x)


class Contest(nn.Module):
    """What is trained together: a decoder and, where it has one, its critic.

    Both are `blocks`, which the trainer updates by Muon, kernels at the ends included. A tiny
    decoder was 1.5 dB better for it after a hundred steps than with AdamW outside its blocks, at
    one learning rate and one seed, on 32 pictures and squared error alone.
    """

    def __init__(self, decoder: nn.Module, critic: Critic | None) -> None:
        super().__init__()
        both = {"decoder": decoder, "critic": critic}
        self.blocks = nn.ModuleDict({name: part for name, part in both.items() if part is not None})

    @property
    def decoder(self) -> Any:
        """The decoder, of any kind."""
        return self.blocks["decoder"]

    @property
    def critic(self) -> Critic | None:
        """Its critic, None where there is no contest."""
        return cast(Critic, self.blocks["critic"]) if "critic" in self.blocks else None


def seeded_critic(seed: int) -> Critic:
    """A fresh critic."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Critic()


def fooling(critic: Critic, ours_BCHW: Tensor) -> Tensor:
    """The decoder's loss: lower the more its pictures pass; the critic gets no gradient."""
    held = {name: tensor.detach() for name, tensor in critic.named_parameters()}
    scores: Tensor = functional_call(critic, held, (ours_BCHW,))
    return -scores.float().mean()


def telling(critic: Critic, ours_BCHW: Tensor, theirs_BCHW: Tensor) -> Tensor:
    """The critic's loss, 0 once it tells all pictures apart by a margin of 2; 2 for a blind one.

    The pictures get no gradient.
    """
    both = critic(torch.cat((theirs_BCHW, ours_BCHW)).detach()).float()
    true, false = both.chunk(2)
    return F.relu(1 - true).mean() + F.relu(1 + false).mean()
