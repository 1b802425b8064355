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

Shapes: B batch, S image tokens, T text tokens, L = T + S, C token channels, D width, H heads,
K head width, J text width, P pooled width, N modulation rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanoflux_mobile.models._blocks import Rows, layer_norm
from nanoflux_mobile.models.token_resampling import Downsampler, Grid, Upsampler, square_grid

Rope = tuple[Tensor, Tensor]
"""Cosine and sine of every position and frequency, each (L, K/2)."""


@dataclass(frozen=True)
class FluxConfig:
    """Sizes of a FLUX transformer, by the names of diffusers' transformer/config.json.

    The last five are ours. `static_steps`: 0 means AdaLN, n means a Static-LN table of n scheduled
    steps. `low_resolution_blocks`: the single blocks [start, stop) that low steps run at half the
    side, (0, 0) for none. `low_resolution_share`: how much of the sampling runs so, from its noisy
    end. `separable_resamplers`: whether the convolutions between both grids are separable.
    `low_resolution_skip`: whether image tokens go round the low blocks at full resolution, and what
    these change is added; otherwise all of the picture goes through a quarter of its tokens.
    """

    in_channels: int
    num_layers: int
    num_single_layers: int
    attention_head_dim: int
    num_attention_heads: int
    joint_attention_dim: int
    pooled_projection_dim: int
    guidance_embeds: bool
    axes_dims_rope: tuple[int, ...]
    static_steps: int = 0
    low_resolution_blocks: tuple[int, int] = (0, 0)
    low_resolution_share: float = 0.5
    separable_resamplers: bool = False
    low_resolution_skip: bool = False

    def __post_init__(self) -> None:
        """Refuse a RoPE split that leaves a head unfilled, and low blocks that do not exist."""
        if sum(self.axes_dims_rope) != self.attention_head_dim:
            raise ValueError(
                f"axes_dims_rope {self.axes_dims_rope} sums to {sum(self.axes_dims_rope)}, "
                f"but attention_head_dim is {self.attention_head_dim}"
            )
        if any(n % 2 for n in self.axes_dims_rope):
            raise ValueError(f"axes_dims_rope {self.axes_dims_rope} must be even on every axis")
        start, stop = self.low_resolution_blocks
        if (start, stop) != (0, 0) and not 0 <= start < stop <= self.num_single_layers:
            raise ValueError(
                f"low_resolution_blocks {start, stop} is no range of the "
                f"{self.num_single_layers} single blocks; give (0, 0) for none"
            )
        if not 0 <= self.low_resolution_share <= 1:
            raise ValueError(f"low_resolution_share is {self.low_resolution_share}, not 0 to 1")

    @property
    def width(self) -> int:
        """D: channels of the residual stream."""
        return self.attention_head_dim * self.num_attention_heads

    @property
    def modulation_rows(self) -> int:
        """N, as the top of this file counts them."""
        resamplers = 6 if self.downsamples else 0
        return 12 * self.num_layers + 3 * self.num_single_layers + resamplers + 2

    @property
    def downsamples(self) -> bool:
        """Whether there are low steps at all."""
        return self.low_resolution_blocks != (0, 0)

    def low_steps(self, steps: int) -> int:
        """How many of `steps`, from the noisy end, run low: those that begin within the share."""
        if not self.downsamples:
            return 0
        return sum(step / steps < self.low_resolution_share for step in range(steps))


def rope_tables(ids_LA: Tensor, axes: tuple[int, ...], theta: float = 10_000.0) -> Rope:
    """Rotation tables for positions (L, axes): float32 cosine and sine, each (L, K/2)."""
    angles = []
    for axis, width in enumerate(axes):
        frequency = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
        angles.append(ids_LA[:, axis, None].double() * frequency)
    angle = torch.cat(angles, 1)
    return angle.cos().float(), angle.sin().float()


def rotate(x_BHLK: Tensor, rope: Rope) -> Tensor:
    """Rotate interleaved pairs (0, 1), (2, 3), ... of every head by their position's angle."""
    cos, sin = rope
    even, odd = x_BHLK[..., 0::2], x_BHLK[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)


def sinusoid(t_B: Tensor, channels: int = 256) -> Tensor:
    """Cosines then sines of 1000 t at geometric frequencies, (B, channels)."""
    half = channels // 2
    frequency = torch.exp(-math.log(10_000) * torch.arange(half, device=t_B.device) / half)
    angle = 1000.0 * t_B.float()[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), 1)


def modulate(x_BLD: Tensor, shift_BD: Tensor, scale_BD: Tensor) -> Tensor:
    """Normalise, scale by 1 + scale, shift."""
    return layer_norm(x_BLD) * (1 + scale_BD[:, None]) + shift_BD[:, None]


class Embedder(nn.Module):
    """Two linears around SiLU."""

    def __init__(self, cin: int, width: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(cin, width)
        self.linear_2 = nn.Linear(width, width)

    def forward(self, x_BC: Tensor) -> Tensor:
        """(B, cin) -> (B, D)."""
        return self.linear_2(F.silu(self.linear_1(x_BC)))


class Conditioning(nn.Module):
    """The vector AdaLN reads: time, pooled text and, in guidance-distilled models, guidance."""

    def __init__(self, cfg: FluxConfig) -> None:
        super().__init__()
        self.timestep_embedder = Embedder(256, cfg.width)
        self.text_embedder = Embedder(cfg.pooled_projection_dim, cfg.width)
        if cfg.guidance_embeds:
            self.guidance_embedder = Embedder(256, cfg.width)

    def forward(self, t_B: Tensor, pooled_BP: Tensor, guidance_B: Tensor | None) -> Tensor:
        """(B,) times in [0, 1] and (B, P) -> (B, D)."""
        c_BD = self.timestep_embedder(sinusoid(t_B)) + self.text_embedder(pooled_BP)
        return c_BD if guidance_B is None else c_BD + self.guidance_embedder(sinusoid(guidance_B))


class Attention(nn.Module):
    """Projections and per-head RMS norms of one block; text projections in double blocks only."""

    def __init__(self, cfg: FluxConfig, double: bool) -> None:
        super().__init__()
        width, head = cfg.width, cfg.attention_head_dim
        self.heads = cfg.num_attention_heads
        self.norm_q = nn.RMSNorm(head, eps=1e-6)
        self.norm_k = nn.RMSNorm(head, eps=1e-6)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        if double:
            self.norm_added_q = nn.RMSNorm(head, eps=1e-6)
            self.norm_added_k = nn.RMSNorm(head, eps=1e-6)
            self.add_q_proj = nn.Linear(width, width)
            self.add_k_proj = nn.Linear(width, width)
            self.add_v_proj = nn.Linear(width, width)
            self.to_out = nn.ModuleList([nn.Linear(width, width)])
            self.to_add_out = nn.Linear(width, width)

    def _heads(self, x_BLD: Tensor) -> Tensor:
        return x_BLD.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def qkv(self, x_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of the main stream, each (B, H, L, K), q and k normed."""
        q, k, v = (self._heads(f(x_BLD)) for f in (self.to_q, self.to_k, self.to_v))
        return self.norm_q(q), self.norm_k(k), v

    def text_qkv(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The same of the text stream."""
        projections = (self.add_q_proj, self.add_k_proj, self.add_v_proj)
        q, k, v = (self._heads(f(x_BTD)) for f in projections)
        return self.norm_added_q(q), self.norm_added_k(k), v


def attend(q_BHLK: Tensor, k_BHLK: Tensor, v_BHLK: Tensor, rope: Rope) -> Tensor:
    """Rotary attention over all tokens, heads joined again: (B, L, D)."""
    y = F.scaled_dot_product_attention(rotate(q_BHLK, rope), rotate(k_BHLK, rope), v_BHLK)
    return y.transpose(1, 2).flatten(2)


class Projection(nn.Module):
    """The first linear of a feed-forward, under the name diffusers gives it."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.proj = nn.Linear(cin, cout)

    def forward(self, x: Tensor) -> Tensor:
        """Linear, then GELU (tanh form)."""
        return F.gelu(self.proj(x), approximate="tanh")


class FeedForward(nn.Module):
    """Four times the width and back."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers = [Projection(width, 4 * width), nn.Identity(), nn.Linear(4 * width, width)]
        self.net = nn.ModuleList(layers)

    def forward(self, x_BLD: Tensor) -> Tensor:
        """Same shape in and out."""
        return self.net[2](self.net[0](x_BLD))


class DoubleBlock(nn.Module):
    """Image and text keep their own weights and meet in one attention."""

    def __init__(self, cfg: FluxConfig) -> None:
        super().__init__()
        if not cfg.static_steps:
            self.norm1 = Rows(cfg.width, 6)
            self.norm1_context = Rows(cfg.width, 6)
        self.attn = Attention(cfg, double=True)
        self.ff = FeedForward(cfg.width)
        self.ff_context = FeedForward(cfg.width)

    def rows(self, c_BD: Tensor) -> Tensor:
        """(B, 12, D): image shift, scale, gate of attention, then of the MLP; text likewise."""
        return torch.cat((self.norm1(c_BD), self.norm1_context(c_BD)), 1)

    def forward(
        self, x_BSD: Tensor, y_BTD: Tensor, rows_BND: Tensor, rope: Rope
    ) -> tuple[Tensor, Tensor]:
        """Image and text tokens, each in and out."""
        m = rows_BND.unbind(1)
        image = self.attn.qkv(modulate(x_BSD, m[0], m[1]))
        text = self.attn.text_qkv(modulate(y_BTD, m[6], m[7]))
        q, k, v = (torch.cat(pair, 2) for pair in zip(text, image, strict=True))
        joint = attend(q, k, v, rope)
        length = y_BTD.shape[1]
        x_BSD = x_BSD + m[2][:, None] * self.attn.to_out[0](joint[:, length:])
        y_BTD = y_BTD + m[8][:, None] * self.attn.to_add_out(joint[:, :length])
        x_BSD = x_BSD + m[5][:, None] * self.ff(modulate(x_BSD, m[3], m[4]))
        y_BTD = y_BTD + m[11][:, None] * self.ff_context(modulate(y_BTD, m[9], m[10]))
        return x_BSD, y_BTD


class SingleBlock(nn.Module):
    """Text and image as one sequence; attention and MLP side by side."""

    def __init__(self, cfg: FluxConfig) -> None:
        super().__init__()
        if not cfg.static_steps:
            self.norm = Rows(cfg.width, 3)
        self.attn = Attention(cfg, double=False)
        self.proj_mlp = nn.Linear(cfg.width, 4 * cfg.width)
        self.proj_out = nn.Linear(5 * cfg.width, cfg.width)

    def rows(self, c_BD: Tensor) -> Tensor:
        """(B, 3, D): shift, scale, gate."""
        return self.norm(c_BD)

    def forward(self, x_BLD: Tensor, rows_BND: Tensor, rope: Rope) -> Tensor:
        """Same shape in and out."""
        shift, scale, gate = rows_BND.unbind(1)
        h_BLD = modulate(x_BLD, shift, scale)
        mlp = F.gelu(self.proj_mlp(h_BLD), approximate="tanh")
        joint = torch.cat((attend(*self.attn.qkv(h_BLD), rope), mlp), 2)
        return x_BLD + gate[:, None] * self.proj_out(joint)


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
