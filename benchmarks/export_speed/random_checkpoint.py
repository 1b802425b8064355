"""A checkpoint of a system's true shapes with random weights, to export where none was trained.

    python random_checkpoint.py OUT --variant nanoflux-2.4b [--blocks 4,4]
    python random_checkpoint.py OUT --variant snapgen

Written tensor by tensor in half precision, so any size passes through little memory. `--blocks`
keeps that many double and single blocks of a FLUX denoiser.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers
from torch import Tensor, nn

from nanoflux_mobile import plugins, variants
from nanoflux_mobile.families import nanoflux, snapgen
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.tokenizer import CLIP_END, CLIP_START, clip_tokenizer, load_tokenizer
from nanoflux_mobile.variants import Variant
from nanoflux_mobile.weights import Network, Stored

SCHEDULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}
"""As FLUX.1-schnell has it."""
CLIP_WORDS = 49_408
"""Ids of CLIP's vocabulary; the last two are the start and the end."""
TINY = resources.files("nanoflux_mobile") / "assets" / "tiny"


def random_network(module: nn.Module) -> Network[Any]:
    """A network of the shapes of a meta module; each tensor is drawn anew whenever it is read."""
    state = module.state_dict()
    return Network(module, {name: _stored(name, tensor) for name, tensor in state.items()})


def _stored(name: str, like: Tensor) -> Stored:
    shape = tuple(like.shape)
    return Stored(shape, "float16", 2 * like.numel(), lambda: _drawn(name, shape))


def _drawn(name: str, shape: tuple[int, ...]) -> Tensor:
    """Weights that keep the scale of what passes through; norms near one, the rest small."""
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    values = torch.randn(shape, generator=generator)
    if name == "step_table":
        return 0.1 * values
    if len(shape) == 1:
        return 1.0 + 0.05 * values if "norm" in name and name.endswith("weight") else 0.02 * values
    return values * math.prod(shape[1:]) ** -0.5


def shrunk(cfg: FluxConfig, doubles: int, singles: int) -> FluxConfig:
    """The same transformer with fewer blocks and no resamplers."""
    return dataclasses.replace(
        cfg, num_layers=doubles, num_single_layers=singles, low_resolution_blocks=(0, 0)
    )


def letters() -> Tokenizer:
    """CLIP's tokenizer without a merge: it knows every letter and no word."""
    bytes_ = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*bytes_, *(f"{byte}</w>" for byte in bytes_)]
    ends = {CLIP_START: CLIP_WORDS - 2, CLIP_END: CLIP_WORDS - 1}
    return clip_tokenizer({token: i for i, token in enumerate(tokens)} | ends, [])


def _flux(made: Mapping[str, Network[Any]], variant: Variant) -> nanoflux.FluxParts:
    """The tokenizer is that of the tiny checkpoint."""
    return nanoflux.FluxParts(
        networks=nanoflux.Networks(made["transformer"], made["text_encoder_2"], made["vae"]),
        tokenizer=load_tokenizer(Path(str(TINY)) / "tokenizer_2"),
        clip=None,
        scheduler=SCHEDULER,
        text_tokens=variant.text_tokens,
        side=variant.side,
    )


def _snapgen(made: Mapping[str, Network[Any]], variant: Variant) -> snapgen.SnapGenParts:
    clip_l, clip_g = (made.get(name) for name in snapgen.TOWERS)
    networks = snapgen.Networks(made["unet"], clip_l, clip_g, made["vae"])
    return snapgen.SnapGenParts(networks, letters(), SCHEDULER, variant.side)


PARTS: Mapping[str, Callable[[Mapping[str, Network[Any]], Variant], Any]] = {
    "nanoflux": _flux,
    "snapgen": _snapgen,
}
"""What each family calls a checkpoint, out of networks by their folders."""


def random_parts(variant: Variant, blocks: tuple[int, int] | None) -> Any:
    """A variant's parts, every weight random."""
    components = dict(variant.components)
    if blocks:
        part = components["transformer"]
        components["transformer"] = dataclasses.replace(part, config=shrunk(part.config, *blocks))
    made = {key: random_network(variants.skeleton(part)) for key, part in components.items()}
    return PARTS[variant.family](made, variant)


def main() -> None:
    """Write the checkpoint."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument("--variant", default="nanoflux-2.4b")
    parser.add_argument("--blocks", help="double,single", default="")
    told = parser.parse_args()
    doubles, singles = map(int, (told.blocks or "0,0").split(","))
    blocks = (doubles, singles) if told.blocks else None
    variant = variants.load(told.variant)
    family = plugins.load("nanoflux_mobile.families", variant.family)
    family.save(random_parts(variant, blocks), told.out, torch.float16)
    print(told.out)


if __name__ == "__main__":
    main()
