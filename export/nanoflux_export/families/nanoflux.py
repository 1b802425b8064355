"""The three graphs a NanoFLUX student ships, with their static shapes."""

from __future__ import annotations

from nanoflux_export.graph import MobileGraph
from nanoflux_export.mobile.decoder import MobileDecoder
from nanoflux_export.mobile.denoiser import MobileDenoiser
from nanoflux_export.mobile.text_encoder import MobileTextEncoder
from nanoflux_mobile.families.nanoflux import FluxParts, joint_rope
from nanoflux_mobile.spec import Component, TensorSpec


def components(parts: FluxParts) -> tuple[Component, ...]:
    """Names, axes and shapes of every graph, known without building one."""
    cfg, canvas, side = parts.denoiser.cfg, parts.canvas, parts.side
    states = TensorSpec(
        "text_states",
        ("batch", "text channels", "one", "text tokens"),
        (1, cfg.joint_attention_dim, 1, parts.text_tokens),
        "float32",
    )
    token_axes = ("batch", "latent channels", "one", "image tokens")
    token_shape = (1, cfg.in_channels, 1, canvas.tokens)
    return (
        Component(
            "text_encoder",
            (TensorSpec("token_ids", ("batch", "text tokens"), (1, parts.text_tokens), "int32"),),
            (states,),
        ),
        Component(
            "denoiser",
            (
                TensorSpec("latents", token_axes, token_shape, "float32"),
                states,
                TensorSpec(
                    "step_table",
                    ("batch", "width", "one", "shifts, scales and gates"),
                    (1, cfg.width, 1, cfg.modulation_rows),
                    "float32",
                ),
            ),
            (TensorSpec("velocity", token_axes, token_shape, "float32"),),
        ),
        Component(
            "decoder",
            (
                TensorSpec(
                    "latents", ("batch", "channels", "rows", "columns"), canvas.shape, "float32"
                ),
            ),
            (
                TensorSpec(
                    "image", ("batch", "RGB", "rows", "columns"), (1, 3, side, side), "float32"
                ),
            ),
        ),
    )


def graphs(parts: FluxParts) -> tuple[MobileGraph, ...]:
    """The mobile modules of a Static-LN student, weights shared with it where possible."""
    text, denoiser, decoder = components(parts)
    return (
        MobileGraph(text, MobileTextEncoder(parts.text_encoder, parts.text_tokens).eval()),
        MobileGraph(denoiser, MobileDenoiser(parts.denoiser, joint_rope(parts)).eval()),
        MobileGraph(decoder, MobileDecoder(parts.vae).eval()),
    )
