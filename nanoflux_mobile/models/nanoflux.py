"""The FLUX diffusion transformer at any size, with AdaLN or with Static-LN.

Module names are those of diffusers' FluxTransformer2DModel, so its checkpoints load without a key
map. Every shift, scale and gate of the network is one row of a modulation matrix: AdaLN computes
the rows from time and pooled text, Static-LN (NanoFLUX, section on AdaLN removal) looks them up by
step. The trunk sees only rows, so the two forms share it.

Progressive Token Downsampling (NanoFLUX again) runs some single blocks of the noisy steps on a grid
of half the side. One set of weights has two ways through it: a low step is one that is given RoPE
tables of the small grid, and a full step never touches the resamplers.

The modulation matrix, top to bottom: 12 rows per double block, 3 per single block; where tokens are
downsampled, 2 for the downsampler and 2 + 2 for the upsampler, in the order they run; the last
norm's 2. Full and low steps read one matrix.

Shapes: B batch, S image tokens, T text tokens, L = T + S, C token channels, D width, J text width,
P pooled width, N modulation rows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nanoflux_mobile.models._blocks import Rows
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.nanoflux_layers import (
    Conditioning,
    DoubleBlock,
    Rope,
    SingleBlock,
    modulate,
)
from nanoflux_mobile.models.token_resampling import Downsampler, Grid, Upsampler, square_grid


class NanoFlux(nn.Module):
    """Predicts the flow-matching velocity, noise minus image, of packed latents."""

    def __init__(self, cfg: FluxConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.x_embedder = nn.Linear(cfg.in_channels, cfg.width)
        self.context_embedder = nn.Linear(cfg.joint_attention_dim, cfg.width)
        self.transformer_blocks = nn.ModuleList(DoubleBlock(cfg) for _ in range(cfg.num_layers))
        self.single_transformer_blocks = nn.ModuleList(
            SingleBlock(cfg) for _ in range(cfg.num_single_layers)
        )
        if cfg.downsamples:
            adaln, separable = not cfg.static_steps, cfg.separable_resamplers
            self.downsampler = Downsampler(cfg.width, adaln, separable)
            self.upsampler = Upsampler(cfg.width, adaln, separable)
        self.proj_out = nn.Linear(cfg.width, cfg.in_channels)
        if cfg.static_steps:
            shape = (cfg.static_steps, cfg.modulation_rows, cfg.width)
            self.step_table = nn.Parameter(torch.zeros(shape))
        else:
            self.time_text_embed = Conditioning(cfg)
            self.norm_out = Rows(cfg.width, 2)

    def modulations(
        self, t_B: Tensor, pooled_BP: Tensor, guidance_B: Tensor | None = None
    ) -> Tensor:
        """AdaLN: all rows for times in [0, 1] (1 is noise) and pooled text, (B, N, D)."""
        c_BD = self.time_text_embed(t_B, pooled_BP, guidance_B)
        modulated = [*self.transformer_blocks, *self.single_transformer_blocks]
        if self.cfg.downsamples:
            modulated += [self.downsampler, self.upsampler]
        # The last norm stores scale before shift, unlike every other.
        last = self.norm_out(c_BD).flip(1)
        return torch.cat([*(part.rows(c_BD) for part in modulated), last], 1)

    def forward(
        self,
        x_BSC: Tensor,
        text_BTJ: Tensor,
        rows_BND: Tensor,
        rope: Rope,
        low_rope: Rope | None = None,
        grid: Grid | None = None,
    ) -> Tensor:
        """Packed latents, text states and this step's rows -> velocity (B, S, C).

        Args:
            x_BSC: the latents' tokens, row by row.
            text_BTJ: the text encoder's states.
            rows_BND: of `modulations`, or one step of the step table.
            rope: tables of all tokens, text first.
            low_rope: tables of `low_ids`; given, this is a low step.
            grid: rows and columns of the tokens, a square by default; only low steps look at it.

        Raises:
            ValueError: a low step of a network without low blocks, or a grid of odd sides.
        """
        cfg, doubles = self.cfg, self.cfg.num_layers
        resampled = [2, 4] if cfg.downsamples else []
        counts = [12] * doubles + [3] * cfg.num_single_layers + resampled + [2]
        rows = rows_BND.split(counts, 1)
        x_BSD, y_BTD = self.x_embedder(x_BSC), self.context_embedder(text_BTJ)
        for block, m in zip(self.transformer_blocks, rows[:doubles], strict=True):
            x_BSD, y_BTD = block(x_BSD, y_BTD, m, rope)
        h_BLD = torch.cat((y_BTD, x_BSD), 1)
        if low_rope is None:
            h_BLD = self._singles(h_BLD, rows, rope, 0, cfg.num_single_layers)
        else:
            grid = grid or square_grid(x_BSC.shape[1])
            h_BLD = self._low_singles(h_BLD, rows, (rope, low_rope), grid)
        shift, scale = rows[-1].unbind(1)
        return self.proj_out(modulate(h_BLD[:, y_BTD.shape[1] :], shift, scale))

    def _singles(
        self, h_BLD: Tensor, rows: Sequence[Tensor], rope: Rope, start: int, stop: int
    ) -> Tensor:
        """Through the single blocks [start, stop)."""
        for i in range(start, stop):
            block = self.single_transformer_blocks[i]
            h_BLD = block(h_BLD, rows[self.cfg.num_layers + i], rope)
        return h_BLD

    def _low_singles(
        self, h_BLD: Tensor, rows: Sequence[Tensor], ropes: tuple[Rope, Rope], grid: Grid
    ) -> Tensor:
        """Through all single blocks, the low ones with a quarter of the image tokens."""
        if not self.cfg.downsamples:
            raise ValueError("low_rope is given, but low_resolution_blocks is (0, 0)")
        start, stop = self.cfg.low_resolution_blocks
        text = h_BLD.shape[1] - grid[0] * grid[1]
        h_BLD = self._singles(h_BLD, rows, ropes[0], 0, start)
        full = h_BLD[:, text:]
        low = self.downsampler(full, rows[-3], grid)
        h_BLD = torch.cat((h_BLD[:, :text], low), 1)
        h_BLD = self._singles(h_BLD, rows, ropes[1], start, stop)
        if self.cfg.low_resolution_skip:
            image = full + self.upsampler(h_BLD[:, text:] - low, rows[-2], grid)
        else:
            image = self.upsampler(h_BLD[:, text:], rows[-2], grid)
        h_BLD = torch.cat((h_BLD[:, :text], image), 1)
        return self._singles(h_BLD, rows, ropes[0], stop, self.cfg.num_single_layers)
