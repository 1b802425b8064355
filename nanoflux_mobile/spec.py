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


Kind = Literal["fp16", "palette", "int", "bits"]


@dataclass(frozen=True)
class Scheme:
    """How the weights of a layer are stored.

    kind: half precision, palettes, integers, or `bits`: a wish for about that many bits per weight
        in whichever form a target stores best.
    bits: of a stored index or integer; 16 for fp16.
    group: of palettes, how many output channels share one, 0 meaning all; of integers, how many
        input channels share a scale, 0 meaning the whole output channel.
    vector: how many neighbouring output channels one palette index stands for.
    scaled: palettes of weights that were divided by a scale per output channel.
    int8_lut: palette entries in 8 bits instead of half precision.
    weighted: palettes fitted with what each input channel weighs in the layer's results.
    sparse: percent of the weights, the smallest, that are left out as zeros.
    rank: of a half-precision product U V that carries what few bits cannot; the rest W - U V is
        stored as the other fields say (SVDQuant, arXiv 2411.05007).
    activations: bits of the layer's input as it computes; 16, or 8 in calibrated ranges.

    Written fp16, palette4-g16, palette2-v2-scaled-lut8-weighted, sparse50-palette4, int4-b32,
    int8-a8, svd16-palette4, 4-bit.
    """

    kind: Kind
    bits: int
    group: int = 0
    vector: int = 1
    scaled: bool = False
    int8_lut: bool = False
    weighted: bool = False
    sparse: int = 0
    rank: int = 0
    activations: int = 16

    def __str__(self) -> str:
        """The name recipes use."""
        if self.kind == "bits":
            return f"{self.bits}-bit"
        parts = [f"svd{self.rank}"] * bool(self.rank) + [f"sparse{self.sparse}"] * bool(self.sparse)
        parts += ["fp16" if self.kind == "fp16" else f"{self.kind}{self.bits}"]
        parts += [f"{'b' if self.kind == 'int' else 'g'}{self.group}"] * bool(self.group)
        parts += [f"v{self.vector}"] * (self.vector > 1)
        flags = {"scaled": self.scaled, "lut8": self.int8_lut, "weighted": self.weighted}
        parts += [name for name, on in flags.items() if on]
        return "-".join(parts + ["a8"] * (self.activations == 8))

    @property
    def bits_per_weight(self) -> float:
        """Nominal bits of a weight, without palettes, scales and low-rank parts."""
        kept = self.bits / self.vector
        return 1 + kept * (100 - self.sparse) / 100 if self.sparse else kept


_SCHEME = re.compile(
    r"(?:svd(?P<rank>[1-9][0-9]*)-)?(?:sparse(?P<sparse>[1-9][0-9]?)-)?(?:(?P<fp16>fp16)"
    r"|palette(?P<palette>[1-8])(?:-g(?P<group>[1-9][0-9]*))?(?:-v(?P<vector>[248]))?"
    r"(?P<scaled>-scaled)?(?P<lut8>-lut8)?(?P<weighted>-weighted)?"
    r"|int(?P<int>[48])(?:-b(?P<block>[1-9][0-9]*))?(?P<a8>-a8)?)"
)


def parse_scheme(text: str) -> Scheme:
    """The scheme a name stands for; ValueError lists the forms."""
    if wish := re.fullmatch(r"([1-8])-bit", text):
        return Scheme("bits", int(wish[1]))
    match = _SCHEME.fullmatch(text)
    if match is None:
        raise ValueError(
            f"unknown scheme {text!r}; known: fp16, palette1..8, palette4-g16, int8, int4-b32, "
            "int8-a8, sparse50-palette4, svd16-palette4, 4-bit"
        )
    kind: Kind = "fp16" if match["fp16"] else "palette" if match["palette"] else "int"
    return Scheme(
        kind=kind,
        bits=int(match["palette"] or match["int"] or 16),
        group=int(match["group"] or match["block"] or 0),
        vector=int(match["vector"] or 1),
        scaled=bool(match["scaled"]),
        int8_lut=bool(match["lut8"]),
        weighted=bool(match["weighted"]),
        sparse=int(match["sparse"] or 0),
        rank=int(match["rank"] or 0),
        activations=8 if match["a8"] else 16,
    )


@dataclass(frozen=True)
class Floors:
    """Least accepted agreement in dB of PSNR.

    `graph` compares with PyTorch on the same rounded weights: is the graph right. `quality`
    compares with PyTorch in fp32: what did compression cost.
    """

    graph: float
    quality: float


@dataclass(frozen=True)
class Budget:
    """What a component may take; a scheme per layer is chosen so that its output suffers least.

    bits: mean bits of a weight, 0 for no limit.
    megabytes: of its files, in units of 1e6 bytes, 0 for no limit.
    step_ms: predicted milliseconds of one run on `device`, 0 for no limit.
    peak_megabytes: weights in memory while it runs, 0 for no limit.
    schemes: what to choose from; empty for what the target stores.
    """

    bits: float = 0.0
    megabytes: float = 0.0
    step_ms: float = 0.0
    device: str = ""
    peak_megabytes: float = 0.0
    schemes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """There is a limit, limits are positive, schemes are known, time is that of a device."""
        limits = (self.bits, self.megabytes, self.step_ms, self.peak_megabytes)
        if min(limits) < 0 or not any(limits):
            raise ValueError("a budget limits bits, megabytes, step_ms or peak_megabytes: set one")
        if bool(self.step_ms) != bool(self.device):
            raise ValueError("step_ms is that of a device: set both, or neither")
        for scheme in self.schemes:
            parse_scheme(scheme)


@dataclass(frozen=True)
class Intent:
    """How a component's weights are to be stored, whatever the target.

    scheme: of all layers that `layers` does not name.
    layers: schemes by class of layer, as the family names them, or by a pattern of layer names
        such as `singles.*`; the last that fits a layer holds.
    budget: chooses the schemes instead; `layers` then fixes those it names.
    """

    scheme: str
    layers: Mapping[str, str] = field(default_factory=dict)
    budget: Budget | None = None

    def __post_init__(self) -> None:
        """Refuse a scheme nobody knows."""
        for scheme in (self.scheme, *self.layers.values()):
            parse_scheme(scheme)


@dataclass(frozen=True)
class ComponentRecipe:
    """How close one graph must stay, and how it is stored where that is not the recipe's intent."""

    floors: Floors
    scheme: str = ""
    layers: Mapping[str, str] = field(default_factory=dict)
    budget: Budget | None = None

    def __post_init__(self) -> None:
        """Refuse a scheme nobody knows, and exceptions to a scheme that is not given."""
        if self.scheme:
            Intent(self.scheme, self.layers, self.budget)
        elif self.layers or self.budget:
            raise ValueError("layers and budget belong to a scheme: give it too")


Attention = Literal["", "batched", "per-head", "fused"]


@dataclass(frozen=True)
class TargetRecipe:
    """All graphs of one runtime, and the floors of the whole image.

    profile: which processor the files are shaped for, empty for the target's first.
    attention: how attention is written, empty for what suits the target best.
    """

    components: Mapping[str, ComponentRecipe]
    image: Floors
    profile: str = ""
    attention: Attention = ""


@dataclass(frozen=True)
class Suppression:
    """A lint rule that a component may break, and why that is right."""

    rule: str
    component: str
    reason: str

    def __post_init__(self) -> None:
        """There is a reason."""
        if not self.reason.strip():
            raise ValueError(f"the suppression of {self.rule} in {self.component} gives no reason")

    @property
    def engine(self) -> str:
        """The processor the rule is about: what stands before the slash, a profile of a target."""
        return self.rule.partition("/")[0]


@dataclass(frozen=True)
class Recipe:
    """One shippable combination, as parsed from recipes/<name>.toml.

    proof: what the saved files are checked on: a whole picture, or, for networks that would take
        many minutes to draw with, one step of every form of the denoiser.
    side: pixels along each side of the picture, 0 for what the checkpoint says.
    non_finite: what becomes of weights that are NaN or infinite: the export stops, or zeros.
    loras: LoRA files, and the strength at which each is fused.
    components: how each graph is stored on every target that says nothing else.
    headroom: how many times below the end of half precision values are kept, by powers of two moved
        between layers and measured on the prompts; 0 leaves the graphs as they are.
    suppress: lint findings that are known and right.
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
    components: Mapping[str, Intent] = field(default_factory=dict)
    headroom: float = 4.0
    suppress: tuple[Suppression, ...] = ()
    name: str = ""
    overrides: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse step counts no schedule has."""
        if not 1 <= self.steps <= 100:
            raise ValueError(f"steps is {self.steps}; accepted: 1 to 100")
        if self.side and not 64 <= self.side <= 4096:
            raise ValueError(f"side is {self.side}; accepted: 64 to 4096 pixels")
        if self.headroom and not 1 <= self.headroom <= 1024:
            raise ValueError(f"headroom is {self.headroom:g}; accepted: 1 to 1024, or 0 for none")
        if not self.calibration_prompts:
            raise ValueError("calibration_prompts is empty; Static-LN averages over at least one")
        for target, wanted in self.targets.items():
            for name, component in wanted.components.items():
                if not component.scheme and name not in self.components:
                    raise ValueError(
                        f"targets.{target}.components.{name} has no scheme, and components.{name} "
                        "does not say one for all targets: give either"
                    )

    def intent(self, target: str, component: str) -> Intent:
        """How a target is asked to store a component."""
        own = self.targets[target].components[component]
        if own.scheme:
            return Intent(own.scheme, own.layers, own.budget)
        return self.components[component]

    @property
    def digest(self) -> str:
        """sha256 of everything the recipe says."""
        return content_digest(to_plain(self))


def content_digest(value: object) -> str:
    """sha256 of a JSON value, independent of key order."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()
