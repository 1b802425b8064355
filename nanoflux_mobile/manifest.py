"""What a bundle says of itself: the contract `bundle/1` that apps, gate and verify read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Final, Literal

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.parity import Parity
from nanoflux_mobile.spec import (
    Component,
    ComponentName,
    Floors,
    Suppression,
    TensorSpec,
    content_digest,
    parse_scheme,
)
from nanoflux_mobile.strict_json import from_plain, parse_json, to_plain

SCHEMA: Final = "bundle/1"
FILE = "manifest.json"


def _check_inside(path: str) -> None:
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path:
        raise ValueError(f"path {path!r} leaves the bundle")


@dataclass(frozen=True)
class Artifact:
    """One file of a bundle: path relative to it, sha256, size."""

    path: str
    sha256: str
    bytes: int

    def __post_init__(self) -> None:
        """A path stays inside the bundle."""
        _check_inside(self.path)


@dataclass(frozen=True)
class Interface:
    """What one function of a file takes and returns."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class Chunk:
    """One file of a graph: the package, its weights, and its functions by name."""

    path: str
    weight_bytes: int
    functions: Mapping[str, Interface]

    def __post_init__(self) -> None:
        """The package lies inside the bundle."""
        _check_inside(self.path)


@dataclass(frozen=True)
class ComponentEntry:
    """One graph: weight scheme, inputs and outputs, where it should run, and its files.

    `scheme` is that of all weights that `layers` does not name; `layers` are weights by name.
    A graph too large for one file is several chunks. To run a function, run it in each chunk that
    has it, in order; every value is passed on by name.
    """

    name: ComponentName
    scheme: str
    compute_unit: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    floors: Floors
    chunks: tuple[Chunk, ...]
    layers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """There is a file, and the schemes are known."""
        for scheme in (self.scheme, *self.layers.values()):
            parse_scheme(scheme)
        if not self.chunks:
            raise ValueError(f"{self.name} has no chunk")

    @property
    def stored(self) -> str:
        """How its weights are stored, in a word: the scheme, or that there are several."""
        return "mixed" if self.layers else self.scheme

    @property
    def bits(self) -> float:
        """Nominal bits of a weight, the mean over `layers` where there are any."""
        schemes = [parse_scheme(text) for text in self.layers.values() or (self.scheme,)]
        return sum(scheme.bits_per_weight for scheme in schemes) / len(schemes)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all its files."""
        return sum(chunk.weight_bytes for chunk in self.chunks)

    @property
    def functions(self) -> tuple[str, ...]:
        """Names of its entry points."""
        return tuple(dict.fromkeys(name for chunk in self.chunks for name in chunk.functions))

    @property
    def component(self) -> Component:
        """The graph without how it is stored."""
        return Component(self.name, self.inputs, self.outputs)


@dataclass(frozen=True)
class MemoryStep:
    """One step of the load order: `peak_bytes` counts the weights resident while it lasts."""

    action: Literal["load", "run", "unload"]
    component: str
    peak_bytes: int


@dataclass(frozen=True)
class Canvas:
    """Latents of one picture: channels, rows, columns, and the patch one token covers."""

    channels: int
    height: int
    width: int
    patch: int
    image_side: int


@dataclass(frozen=True)
class TokenizerEntry:
    """The tokenizer's file, the token that fills a prompt up, and the length filled to."""

    path: str
    pad: str
    length: int

    def __post_init__(self) -> None:
        """A path stays inside the bundle."""
        _check_inside(self.path)


Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """A rule of the accelerator that a file breaks.

    rule: its id, such as ane/linear-layer.
    severity: an error does not run there at all or computes wrong; a warning leaves the
        accelerator or slows it down; a note is worth knowing.
    count: how many ops or tensors break it; `ops` names the first few.
    why, fix, source: what happens, what mends it, and who says so.
    suppressed: why the recipe lets it pass; empty where it does not.
    """

    component: str
    rule: str
    severity: Severity
    count: int
    ops: tuple[str, ...]
    why: str
    fix: str
    source: str
    suppressed: str = ""


@dataclass(frozen=True)
class Hazard:
    """A value that half precision loses or nearly loses, measured on the recipe's prompts.

    op: the operation that makes it, by its module's path in the graph.
    most: its greatest magnitude over all prompts and steps; half precision ends at 65504.
    folded: whether a power of two was moved so that the shipped graph keeps it small.
    """

    component: str
    op: str
    most: float
    folded: bool


@dataclass(frozen=True)
class Unmet:
    """What a recipe asked of a target that it could not do, and what it did instead.

    asked, stored: schemes; `layers` counts the weights concerned.
    """

    component: str
    asked: str
    stored: str
    layers: int
    why: str


@dataclass(frozen=True)
class RecipeEntry:
    """The recipe a bundle was made by, with the one-off overrides it was given."""

    name: str
    digest: str
    overrides: Mapping[str, str]


@dataclass(frozen=True)
class Manifest:
    """Everything an app needs to check, load and run a bundle."""

    schema: Literal["bundle/1"]
    family: str
    target: str
    recipe: RecipeEntry
    source_sha256: str
    components: tuple[ComponentEntry, ...]
    memory_plan: tuple[MemoryStep, ...]
    canvas: Canvas
    sigmas: tuple[float, ...]
    low_steps: int
    tokenizer: TokenizerEntry
    image_floors: Floors
    parity: tuple[Parity, ...]
    lint: tuple[Finding, ...]
    tools: Mapping[str, str]
    created_by: str
    files: tuple[Artifact, ...]
    unmet: tuple[Unmet, ...] = ()
    hazards: tuple[Hazard, ...] = ()
    suppress: tuple[Suppression, ...] = ()

    def __post_init__(self) -> None:
        """Every graph has one entry."""
        names = [entry.name for entry in self.components]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"components lists {twice[0]} more than once")

    @property
    def digest(self) -> str:
        """sha256 of the manifest, which holds the hash of every other file: names the bundle."""
        return content_digest(to_plain(self))


def read_manifest(bundle: Path) -> Manifest:
    """The manifest of a bundle folder; InputError if there is none or it is not `bundle/1`."""
    path = bundle / FILE
    try:
        data = parse_json(path.read_text("utf-8"))
    except FileNotFoundError as missing:
        raise InputError(f"{bundle} is not a bundle: it has no {FILE}") from missing
    except (OSError, ValueError) as broken:
        raise InputError(f"{path} cannot be read as JSON: {broken}") from broken
    return from_plain(Manifest, data, FILE)


def manifest_json(manifest: Manifest) -> str:
    """The manifest as the text of its file."""
    return json.dumps(to_plain(manifest), indent=2, ensure_ascii=False) + "\n"
