"""Sizes of a FLUX transformer, full or cut down."""

from __future__ import annotations

from dataclasses import dataclass


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
        """N, as the top of nanoflux.py counts them."""
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
