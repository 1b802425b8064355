"""The words every part shares: tensors, graphs, weight schemes, recipes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from nanoflux_mobile.strict_json import to_plain

RECIPE_SCHEMA = "recipe/1"
DType = Literal["float32", "float16", "int32"]
ComponentName = Literal["text_encoder", "denoiser", "decoder"]


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph: `axes` says in words what each entry of `shape` counts."""

    name: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    dtype: DType

    def __post_init__(self) -> None:
        """Every axis has a name."""
        if len(self.axes) != len(self.shape):
            raise ValueError(f"{self.name} names {len(self.axes)} axes for shape {self.shape}")


@dataclass(frozen=True)
class Component:
    """One graph of a student, with all its static shapes."""

    name: ComponentName
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Scheme:
    """How the weights of a graph are stored.

    `kind` is fp16, palette or int; `group` counts the output channels that share one palette,
    0 meaning the whole tensor. Written fp16, palette4, palette4-g16, int8.
    """

    kind: Literal["fp16", "palette", "int"]
    bits: int
    group: int = 0

    def __str__(self) -> str:
        """The name recipes use."""
        tail = f"-g{self.group}" if self.group else ""
        return "fp16" if self.kind == "fp16" else f"{self.kind}{self.bits}{tail}"


def parse_scheme(text: str) -> Scheme:
    """The scheme a name stands for; ValueError lists the forms."""
    if text == "fp16":
        return Scheme("fp16", 16)
    if match := re.fullmatch(r"palette([1-8])(?:-g([1-9]\d*))?", text):
        return Scheme("palette", int(match[1]), int(match[2] or 0))
    if text == "int8":
        return Scheme("int", 8)
    raise ValueError(f"unknown scheme {text!r}; known: fp16, palette1..8, palette4-g16, int8")


@dataclass(frozen=True)
class Floors:
    """Least accepted agreement in dB of PSNR.

    `graph` compares with PyTorch on the same rounded weights: is the graph right. `quality`
    compares with PyTorch in fp32: what did compression cost.
    """

    graph: float
    quality: float


@dataclass(frozen=True)
class ComponentRecipe:
    """How one graph is stored and how close it must stay."""

    scheme: str
    floors: Floors

    def __post_init__(self) -> None:
        """Refuse a scheme nobody knows."""
        parse_scheme(self.scheme)


@dataclass(frozen=True)
class TargetRecipe:
    """All graphs of one runtime, and the floors of the whole image."""

    components: Mapping[str, ComponentRecipe]
    image: Floors


@dataclass(frozen=True)
class Recipe:
    """One shippable combination, as parsed from recipes/<name>.toml.

    proof: what the saved files are checked on: a whole picture, or, for networks that would take
        many minutes to draw with, one step of every form of the denoiser.
    side: pixels along each side of the picture, 0 for what the checkpoint says.
    non_finite: what becomes of weights that are NaN or infinite: the export stops, or zeros.
    loras: LoRA files, and the strength at which each is fused.
    """

    schema: Literal["recipe/1"]
    family: str
    summary: str
    steps: int
    calibration_prompts: tuple[str, ...]
    targets: Mapping[str, TargetRecipe]
    proof: Literal["image", "steps"] = "image"
    side: int = 0
    non_finite: Literal["refuse", "zero"] = "refuse"
    loras: Mapping[str, float] = field(default_factory=dict)
    name: str = ""
    overrides: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse step counts no schedule has."""
        if not 1 <= self.steps <= 100:
            raise ValueError(f"steps is {self.steps}; accepted: 1 to 100")
        if self.side and not 64 <= self.side <= 4096:
            raise ValueError(f"side is {self.side}; accepted: 64 to 4096 pixels")
        if not self.calibration_prompts:
            raise ValueError("calibration_prompts is empty; Static-LN averages over at least one")

    @property
    def digest(self) -> str:
        """sha256 of everything the recipe says."""
        return content_digest(to_plain(self))


def content_digest(value: object) -> str:
    """sha256 of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
