"""The graphs a NanoFLUX student ships, segment by segment, with their static shapes.

Every piece of a network is loaded when its segment is built and not before, so that none of this
depends on how large the student is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn

from nanoflux_export.graph import (
    MAIN,
    STEP_FULL,
    STEP_LOW,
    Function,
    MobileGraph,
)
from nanoflux_export.image_decoder import image_decoder
from nanoflux_export.mobile.denoiser import (
    DoubleStage,
    EmbedStage,
    JoinStage,
    RowsStage,
    SingleStage,
    VelocityStage,
)
from nanoflux_export.mobile.text_encoder import BiasedBlock, MobileEmbedding, MobileEnding
from nanoflux_export.mobile.token_resampling import DownStage, SkipUpStage, UpStage
from nanoflux_export.tape import Lazy, Tape
from nanoflux_mobile.families.nanoflux import FluxParts, joint_rope, low_rope
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.nanoflux_layers import Rope
from nanoflux_mobile.models.t5 import T5Config, position_bias
from nanoflux_mobile.models.token_resampling import half_grid, square_grid
from nanoflux_mobile.spec import ComponentName, TensorSpec
from nanoflux_mobile.weights import Network

Shape = tuple[int, ...]
LAYER_CLASSES: Mapping[ComponentName, Mapping[str, tuple[str, ...]]] = {
    "text_encoder": {
        "embedding": ("embedding/*",),
        "attention": ("blocks.*block.[qkvo].*",),
        "feed_forward": ("blocks.*feed.*",),
        "projection": ("ending/*",),
    },
    "denoiser": {
        "edges": ("embed/*", "velocity/*"),
        "attention": ("doubles.*image.[qkv].*", "doubles.*text.[qkv].*", "singles.*qkv.*"),
        "output": ("doubles.*_out.*", "singles.*.out.*"),
        "feed_forward": ("doubles.*_feed.*", "singles.*.mlp.*"),
        "resampling": ("downsampler/*", "upsampler/*"),
    },
    "decoder": {"convolutions": ("decoder/*",)},
}
"""Layers by what they do, as patterns of their names: what recipes may call them."""

T5_BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"


def graphs(parts: FluxParts) -> tuple[MobileGraph, ...]:
    """The mobile graphs of a Static-LN student."""
    decoder = image_decoder(parts.networks.vae, parts.canvas.shape, parts.side)
    return text_encoder(parts), denoiser(parts), decoder


def _states(width: int, tokens: int) -> TensorSpec:
    axes = ("batch", "text channels", "one", "text tokens")
    return TensorSpec("text_states", axes, (1, width, 1, tokens), "float32")


def text_encoder(parts: FluxParts) -> MobileGraph:
    """Token ids to text states: embedding, blocks of one kind, last norm and projection."""
    network, tokens = parts.networks.text_encoder, parts.text_tokens
    cfg: T5Config = network.skeleton.cfg
    bias = position_bias(cfg, network.weights[T5_BIAS].read().float(), tokens)[None]
    sequence = (1, cfg.d_model, 1, tokens)

    def ending() -> nn.Module:
        projection = network.piece("projection") if cfg.projection_width else None
        return MobileEnding(network.piece("encoder.final_layer_norm"), projection)

    tape = Tape()
    tape.put("embedding", _piece(network, "shared", MobileEmbedding), ("token_ids",), x_0=sequence)
    for i in range(cfg.num_layers):
        block = _piece(network, f"encoder.block.{i}", lambda source: BiasedBlock(source, bias))
        tape.put(f"blocks.{i}", block, (f"x_{i}",), **{f"x_{i + 1}": sequence})
    last = Lazy(ending, network.count("encoder.final_layer_norm") + network.count("projection"))
    states = _states(cfg.states_width, tokens)
    tape.put("ending", last, (f"x_{cfg.num_layers}",), text_states=states.shape)
    ids = TensorSpec("token_ids", ("batch", "text tokens"), (1, tokens), "int32")
    return MobileGraph("text_encoder", {MAIN: tape.function((ids,), (states,))})


def denoiser(parts: FluxParts) -> MobileGraph:
    """Velocity of packed latents; two functions over one set of weights with downsampling."""
    network, full, low = parts.networks.denoiser, joint_rope(parts), low_rope(parts)
    tokens = parts.canvas.tokens, parts.text_tokens
    whole = denoiser_function(network, *tokens, full)
    if low is None:
        return MobileGraph("denoiser", {MAIN: whole})
    short = denoiser_function(network, *tokens, full, low)
    return MobileGraph("denoiser", {STEP_LOW: short, STEP_FULL: whole})


def denoiser_function(
    network: Network[NanoFlux],
    image_tokens: int,
    text_tokens: int,
    full: Rope,
    low: Rope | None = None,
) -> Function:
    """One function: rows, embedding, double blocks, single blocks, end; a low step with `low`.

    `full` and `low` are the RoPE tables of all tokens. Wires of low steps have names of their own,
    as their shapes differ.
    """
    cfg = network.skeleton.cfg
    states = _states(cfg.joint_attention_dim, text_tokens)
    shape = (1, cfg.in_channels, 1, image_tokens)
    image, words = (1, cfg.width, 1, image_tokens), (1, cfg.width, 1, text_tokens)
    tape = Tape()
    put_rows(tape, cfg)
    embedders = ("x_embedder", "context_embedder")
    embed = Lazy(
        lambda: EmbedStage(*map(network.piece, embedders)), sum(map(network.count, embedders))
    )
    tape.put("embed", embed, ("latents", "text_states"), x_0=image, y_0=words)
    for i in range(cfg.num_layers):
        block = _piece(network, f"transformer_blocks.{i}", lambda b: DoubleStage(b, full, "full"))
        made = {f"x_{i + 1}": image, f"y_{i + 1}": words}
        tape.put(f"doubles.{i}", block, (f"x_{i}", f"y_{i}", f"rows_doubles.{i}"), **made)
    last = f"x_{cfg.num_layers}", f"y_{cfg.num_layers}"
    tape.put("join", Lazy(JoinStage), last, h_0=(1, cfg.width, 1, text_tokens + image_tokens))
    end = put_singles(tape, network, full, low, text_tokens)
    out = _piece(network, "proj_out", lambda source: VelocityStage(source, text_tokens))
    tape.put("velocity", out, (end, "rows_out"), velocity=shape)
    axes = ("batch", "latent channels", "one", "image tokens")
    latents, velocity = (TensorSpec(n, axes, shape, "float32") for n in ("latents", "velocity"))
    return tape.function((latents, states, _table(cfg)), (velocity,))


def _table(cfg: FluxConfig) -> TensorSpec:
    axes = ("batch", "width", "one", "shifts, scales and gates")
    return TensorSpec("step_table", axes, (1, cfg.width, 1, cfg.modulation_rows), "float32")


def put_rows(tape: Tape, cfg: FluxConfig) -> None:
    """The step table cut up: a value `rows_...` for every block, in the matrix's order."""
    counts = {f"doubles.{i}": 12 for i in range(cfg.num_layers)}
    counts |= {f"singles.{i}": 3 for i in range(cfg.num_single_layers)}
    counts |= {"downsampler": 2, "upsampler": 4} if cfg.downsamples else {}
    counts["out"] = 2
    made = {f"rows_{name}": (1, cfg.width, 1, count) for name, count in counts.items()}
    tape.put("rows", Lazy(lambda: RowsStage(tuple(counts.values()))), ("step_table",), **made)


def put_singles(
    tape: Tape, network: Network[NanoFlux], full: Rope, low: Rope | None, text: int
) -> str:
    """All single blocks, with the resamplers of a low step; returns the last wire."""
    cfg, value = network.skeleton.cfg, "h_0"
    start, stop = cfg.low_resolution_blocks if low else (0, 0)
    whole = tape.wires[value]
    grid = square_grid(whole[3] - text)
    small = (*whole[:3], text + math.prod(half_grid(grid))) if low else whole

    def put(name: str, kind: str, built: Lazy, after: str, shape: Shape, *more: str) -> str:
        tape.put(name, built, (value, f"rows_{name}", *more), kind, **{after: shape})
        return after

    skip = ("low_down", f"h_{start}") if cfg.low_resolution_skip else ()
    upward = SkipUpStage if skip else UpStage

    for i in range(cfg.num_single_layers):
        if low and i == start:
            down = _piece(network, "downsampler", lambda source: DownStage(source, grid))
            value = put("downsampler", "downsampler", down, "low_down", small)
        here = low is not None and start <= i < stop
        rope, name, shape = (low, "low", small) if here else (full, "full", whole)
        assert rope is not None
        stage = partial(SingleStage, rope=rope, grid=name)
        block = _piece(network, f"single_transformer_blocks.{i}", stage)
        prefix = "low_" if here else ""
        value = put(f"singles.{i}", f"singles_{name}", block, f"{prefix}h_{i + 1}", shape)
        if low and i + 1 == stop:
            up = _piece(network, "upsampler", lambda source: upward(source, grid))
            value = put("upsampler", "upsampler", up, "low_up", whole, *skip)
    return value


def _piece(network: Network[Any], path: str, make: Callable[[Any], nn.Module]) -> Lazy:
    """A stage made from one piece of a network."""
    return Lazy(lambda: make(network.piece(path)), network.count(path))
