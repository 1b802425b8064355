"""What a file of FLUX transformer weights is: its layout, its names, its sizes.

Sizes are read off the shapes of the tensors, for files that come without a config.json.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nanoflux_mobile.bfl import from_bfl, is_bfl
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.weights import Stored, Weights

DIFFUSERS, BFL = "diffusers' layout", "Black Forest Labs' layout"
PREFIXES = ("model.diffusion_model.", "diffusion_model.")
"""What stands before the transformer's names in files made for ComfyUI."""
OURS = ("x_embedder.", "context_embedder.", "transformer_blocks.", "single_transformer_blocks.")
STRANGERS = {
    "lora_": "a LoRA, which is fused into a checkpoint and is none itself",
    "distilled_guidance_layer.": "a Chroma transformer",
    "double_stream_modulation_img": "a FLUX.2 transformer",
    "joint_blocks.": "a Stable Diffusion 3 transformer",
    "pos_embed.": "a Stable Diffusion 3 transformer",
    "input_blocks.": "a Stable Diffusion 1, 2 or XL checkpoint",
    "down_blocks.": "a UNet or an autoencoder",
    "encoder.down": "an autoencoder",
    "encoder.block.": "a T5 text encoder",
    "text_model.": "a CLIP text tower",
}
"""Parts of names that give away what else a file may be."""
ROPE_AXES: Mapping[int, tuple[int, ...]] = {128: (16, 56, 56), 96: (12, 42, 42)}
"""How heads of a width share it among the axes of positions, which no shape tells."""


@dataclass(frozen=True)
class FluxFile:
    """A transformer's weights under our names, and what had to be found out about them."""

    where: Path
    weights: Weights
    notes: tuple[str, ...]
    layout: str

    def config(self) -> dict[str, Any]:
        """transformer/config.json as the shapes imply it; InputError names what they leave open."""
        found, questions = self.sizes(), self.questions()
        if questions:
            raise InputError(
                f"{self.where}: config.json is missing and the shapes do not tell {questions[0]}; "
                "put the model's own beside the weights, in the transformer folder of a checkpoint"
            )
        return found

    def sizes(self) -> dict[str, Any]:
        """What of the config the shapes tell; InputError if a tensor that tells is missing."""
        table = self.weights.get("step_table")
        head = self._size("attn.norm_q.weight", 0, "transformer_blocks.0.")
        pooled = "time_text_embed.text_embedder.linear_1.weight"
        return {
            "in_channels": self._size("x_embedder.weight", 1),
            "num_layers": _blocks("transformer_blocks", self.weights),
            "num_single_layers": _blocks("single_transformer_blocks", self.weights),
            "attention_head_dim": head,
            "num_attention_heads": self._size("x_embedder.weight", 0) // max(head, 1),
            "joint_attention_dim": self._size("context_embedder.weight", 1),
            "pooled_projection_dim": 0 if table else self._size(pooled, 1),
            "guidance_embeds": any("guidance_embedder." in name for name in self.weights),
            "axes_dims_rope": list(ROPE_AXES.get(head, ())),
            "static_steps": table.shape[0] if table and table.shape else 0,
        }

    def questions(self) -> list[str]:
        """What the shapes leave open: the field of the config and why."""
        head = self._size("attn.norm_q.weight", 0, "transformer_blocks.0.")
        rope = f"axes_dims_rope (heads of {head} may share their width in many ways)"
        low = (
            "low_resolution_blocks, low_resolution_skip (any blocks may run between its resamplers)"
        )
        resampled = any(name.startswith("downsampler.") for name in self.weights)
        return [rope] * (head not in ROPE_AXES) + [low] * resampled

    def all_notes(self) -> tuple[str, ...]:
        """What was found out, with the sizes, for weights that have no config.json."""
        return (*self.notes, _told(self.sizes()), *(f"unknown: {q}" for q in self.questions()))

    def _size(self, name: str, axis: int, block: str = "") -> int:
        stored = self.weights.get(block + name) or self.weights.get(f"single_{block}{name}")
        if stored is None or len(stored.shape) <= axis:
            raise InputError(
                f"{self.where} holds no whole FLUX transformer: {block}{name} is missing or has "
                "no size; take the whole file, or a folder with a config.json"
            )
        return stored.shape[axis]


def _told(found: Mapping[str, Any]) -> str:
    heads, head = found["num_attention_heads"], found["attention_head_dim"]
    text = (
        f"sizes read off the tensors: {found['num_layers']} double and "
        f"{found['num_single_layers']} single blocks, width {heads * head} in heads of {head}"
    )
    if axes := found["axes_dims_rope"]:
        text += f", RoPE axes {' + '.join(map(str, axes))} as heads of this width have them"
    text += ", a guidance embedder" * found["guidance_embeds"]
    return text + (f", a table of {n} steps" if (n := found["static_steps"]) else "")


def flux_file(stored: Weights, where: Path) -> FluxFile:
    """The transformer in a file's tensors, whatever layout they have.

    Raises:
        InputError: they are those of something else, which is named, or hold a tensor twice.
    """
    bare, notes = _unwrapped(stored)
    if stranger := _stranger(bare):
        raise InputError(f"{where} holds no FLUX transformer; its names are those of {stranger}")
    if is_bfl(bare):
        return FluxFile(where, from_bfl(bare), (*notes, f"{where.name} has {BFL}"), BFL)
    if not any(name.startswith(OURS) for name in bare):
        shown = ", ".join(name[:60] for name in list(bare)[:3]) or "none at all"
        raise InputError(f"{where} holds no FLUX transformer; its tensors are {shown}")
    return FluxFile(where, bare, tuple(notes), DIFFUSERS)


def _unwrapped(stored: Weights) -> tuple[Weights, list[str]]:
    """The tensors behind the first prefix that occurs, and a note on all others."""
    for prefix in PREFIXES:
        if inside := {n.removeprefix(prefix): t for n, t in stored.items() if n.startswith(prefix)}:
            left: dict[str, Stored] = {n: t for n, t in stored.items() if not n.startswith(prefix)}
            if twice := sorted(inside.keys() & left.keys()):
                raise InputError(f"{prefix}{twice[0]} is a second {twice[0]}; keep one of them")
            return inside, [_set_aside(left)] if left else []
    return stored, []


def _set_aside(left: Collection[str]) -> str:
    counts = Counter(name.partition(".")[0][:60] for name in left)
    listed = ", ".join(f"{count} of {part}" for part, count in counts.most_common(3))
    return f"{len(left)} tensors beside the transformer were left aside: {listed}"


def _stranger(names: Collection[str]) -> str | None:
    for mark, kind in STRANGERS.items():
        if any(name.startswith(mark) or f".{mark}" in name for name in names):
            return kind
    return None


def _blocks(kind: str, names: Collection[str]) -> int:
    numbered = re.compile(rf"{kind}\.([0-9]+)\.")
    return len({match[1] for name in names if (match := numbered.match(name))})
