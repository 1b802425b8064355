"""Whole systems by name, such as nanoflux-2.4b: their sizes as data, their networks as shapes.

A variant is one TOML file: what a picture of it asks for, and a table per component that holds the
sizes of its config.json and `kind`, the row of KINDS that builds it. A component that is that of
another variant says only `same_as = "NAME"`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nanoflux_mobile import shipped_toml
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models.clip import ClipConfig, ClipText
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.models.nanoflux_layers import Rope
from nanoflux_mobile.models.snapgen import SnapGen, SnapGenConfig
from nanoflux_mobile.models.t5 import T5Config, T5Encoder
from nanoflux_mobile.models.tiny_decoder import TinyDecoder, TinyDecoderConfig
from nanoflux_mobile.models.vae import Autoencoder, Decoder, VaeConfig
from nanoflux_mobile.sizing import Runs, Sizes, measure
from nanoflux_mobile.strict_json import from_plain

VARIANTS = resources.files("nanoflux_mobile") / "variants"
FULL, LOW = "full", "low"
"""Names of the two kinds of steps."""
ONCE = "once"
"""Name of the only run of a network that works once per picture."""


@dataclass(frozen=True)
class PictureShape:
    """What one picture asks of the networks; latents are channels, rows, columns."""

    text_tokens: int
    latents: tuple[int, int, int]


@dataclass(frozen=True)
class Kind:
    """How a component is built of its config, and what a phone runs of it.

    graph: the submodule that ships, "" for the whole.
    runs: the ways through that submodule, given it and the picture.
    """

    config: type[Any]
    module: Callable[[Any], nn.Module]
    role: Literal["text", "denoiser", "decoder"]
    runs: Callable[[Any, PictureShape], Runs]
    graph: str = ""


@dataclass(frozen=True)
class Component:
    """One network of a variant: a name of KINDS and a config of its type."""

    kind: str
    config: Any

    @property
    def role(self) -> str:
        """What it does in the system: text, denoiser or decoder."""
        return KINDS[self.kind].role


@dataclass(frozen=True)
class Variant:
    """A system that draws: components under the names of a checkpoint's folders.

    side: pixels along each side of the picture that all figures are of.
    text_tokens: the length prompts are padded to.
    steps: how often the denoiser runs.
    latents: channels, rows and columns of what the decoder reads.
    """

    schema: Literal["variant/1"]
    family: str
    summary: str
    side: int
    text_tokens: int
    steps: int
    latents: tuple[int, int, int]
    name: str = ""
    components: Mapping[str, Component] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        """Counts are positive."""
        for field in ("side", "text_tokens", "steps"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} is {getattr(self, field)}; it counts from 1")

    @property
    def picture(self) -> PictureShape:
        """What one of its pictures asks of the networks."""
        return PictureShape(self.text_tokens, self.latents)

    @property
    def denoiser(self) -> str:
        """The component that runs once per step."""
        return next(name for name, part in self.components.items() if part.role == "denoiser")


def names() -> tuple[str, ...]:
    """The variants inside the package."""
    return shipped_toml.shipped(VARIANTS)


def load(name: str) -> Variant:
    """A variant inside the package by name, or any .toml file by path.

    Raises:
        InputError: an unknown variant, kind or size, with what is accepted.
    """
    data, where = shipped_toml.load_toml(VARIANTS, "variant", name)
    tables = {key: value for key, value in data.items() if isinstance(value, dict)}
    rest = {key: value for key, value in data.items() if key not in tables}
    parts = {key: _component(key, table, f"{where}.{key}") for key, table in tables.items()}
    if sum(part.role == "denoiser" for part in parts.values()) != 1:
        raise InputError(f"{where} must have one denoiser among its tables, such as [transformer]")
    variant = from_plain(Variant, rest, where)
    title = Path(name).name.removesuffix(".toml")
    return dataclasses.replace(variant, name=title, components=parts)


def _component(name: str, table: Mapping[str, Any], where: str) -> Component:
    if set(table) == {"same_as"}:
        return _shared(name, table["same_as"], where)
    kind = table.get("kind")
    if kind not in tuple(KINDS):  # a tuple, because TOML can hold what no dict can look up
        raise InputError(f"{where}.kind is {kind!r}; known: {', '.join(KINDS)}")
    sizes = {key: value for key, value in table.items() if key != "kind"}
    return Component(kind, from_plain(KINDS[kind].config, sizes, where))


def _shared(name: str, other: Any, where: str) -> Component:
    if other not in names():
        raise InputError(f"{where}.same_as is {other!r}; known: {', '.join(names())}")
    parts = load(other).components
    if name not in parts:
        raise InputError(f"{where}: {other} has no {name}; it has {', '.join(parts)}")
    return parts[name]


def skeleton(component: Component) -> nn.Module:
    """The component's network on the meta device: every shape, no numbers."""
    with torch.device("meta"):
        return KINDS[component.kind].module(component.config)


def skeletons(variant: Variant) -> Mapping[str, nn.Module]:
    """Every component's network on the meta device."""
    return {name: skeleton(part) for name, part in variant.components.items()}


def sizes(variant: Variant) -> Mapping[str, Sizes]:
    """What a phone runs of every component: an autoencoder counts by its decoder.

    Multiply-accumulates of the denoiser are per step, full and, where it has them, low.

    Raises:
        InputError: sizes that no network can have.
    """
    found = {}
    for name, part in variant.components.items():
        try:
            found[name] = _sizes(part, variant.picture)
        except (ArithmeticError, IndexError, RuntimeError, ValueError) as broken:
            raise InputError(f"{name} of {variant.name} is no network: {broken}") from broken
    return found


@functools.lru_cache(maxsize=64)
def _sizes(component: Component, picture: PictureShape) -> Sizes:
    kind = KINDS[component.kind]
    graph = skeleton(component).get_submodule(kind.graph)
    return measure(graph, kind.runs(graph, picture))


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _flux_steps(model: NanoFlux, picture: PictureShape) -> Runs:
    """A full step and, with downsampling, a low one; AdaLN computes its modulation in both."""
    cfg, words = model.cfg, picture.text_tokens
    channels, height, width = picture.latents
    patch = math.isqrt(cfg.in_channels // channels)
    grid = height // patch, width // patch
    tokens = grid[0] * grid[1]
    x_BSC, text_BTJ = _meta(1, tokens, cfg.in_channels), _meta(1, words, cfg.joint_attention_dim)

    def rope(length: int) -> Rope:
        return (_meta(length, cfg.attention_head_dim // 2),) * 2

    def rows() -> Tensor:
        if cfg.static_steps:
            return _meta(1, cfg.modulation_rows, cfg.width)
        guidance = _meta(1) if cfg.guidance_embeds else None
        return model.modulations(_meta(1), _meta(1, cfg.pooled_projection_dim), guidance)

    high, low = rope(words + tokens), rope(words + tokens // 4)
    runs: dict[str, Callable[[], object]] = {FULL: lambda: model(x_BSC, text_BTJ, rows(), high)}
    if cfg.downsamples:
        runs[LOW] = lambda: model(x_BSC, text_BTJ, rows(), high, low, grid)
    return runs


def _unet_step(model: SnapGen, picture: PictureShape) -> Runs:
    """A step without the embedding of its time, which the host computes."""
    cfg = model.cfg
    text_BTJ = _meta(1, picture.text_tokens, cfg.text_width)
    states_BE = _meta(1, cfg.time_embed_dim)
    return {FULL: lambda: model(_meta(1, *picture.latents), text_BTJ, states_BE)}


def _words(model: T5Encoder, picture: PictureShape) -> Runs:
    return {ONCE: lambda: model(_meta(1, picture.text_tokens, dtype=torch.int64))}


def _clip_words(model: ClipText, picture: PictureShape) -> Runs:
    length = model.cfg.max_position_embeddings
    return {ONCE: lambda: model(_meta(1, length, dtype=torch.int64))}


def _pixels(model: Decoder | TinyDecoder, picture: PictureShape) -> Runs:
    return {ONCE: lambda: model(_meta(1, *picture.latents))}


KINDS: Mapping[str, Kind] = {
    "flux": Kind(FluxConfig, NanoFlux, "denoiser", _flux_steps),
    "t5": Kind(T5Config, T5Encoder, "text", _words),
    "clip": Kind(ClipConfig, ClipText, "text", _clip_words),
    "vae": Kind(VaeConfig, Autoencoder, "decoder", _pixels, graph="decoder"),
    "tiny_decoder": Kind(TinyDecoderConfig, TinyDecoder, "decoder", _pixels),
    "snapgen": Kind(SnapGenConfig, SnapGen, "denoiser", _unet_step),
}
"""Every network a table may name: a new one is one line here."""
