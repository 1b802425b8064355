"""The graphs a SnapGen student ships, segment by segment, with their static shapes.

Every piece of a network is loaded when its segment is built and not before, so that memory holds
one segment at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from nanoflux_export.graph import MAIN, MobileGraph
from nanoflux_export.image_decoder import image_decoder
from nanoflux_export.mobile.clip_text import JoinedStates, MaskedClipLayer, MobileClipEmbedding
from nanoflux_export.mobile.unet import MobileContextProjection
from nanoflux_export.mobile.unet_stages import (
    CellsStage,
    Grid,
    LatentsStage,
    LayerStage,
    OutStage,
    PictureStage,
    ResnetStage,
)
from nanoflux_export.tape import Lazy, Tape
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.families.snapgen import SnapGenParts
from nanoflux_mobile.models.clip import ClipText
from nanoflux_mobile.models.snapgen import SnapGen, Stage, grid_rope
from nanoflux_mobile.spec import ComponentName, TensorSpec
from nanoflux_mobile.weights import Network

LAYER_CLASSES: Mapping[ComponentName, Mapping[str, tuple[str, ...]]] = {
    "text_encoder": {
        "embedding": ("*.embedding/*",),
        "attention": ("*/layer.[qkv].*", "*/layer.out.*"),
        "feed_forward": ("*/layer.feed.*",),
    },
    "denoiser": {
        "edges": ("conv_in/*", "conv_out/*"),
        "attention": ("*attention.*", "*/proj.*"),
        "feed_forward": ("*.feed.*",),
        "convolutions": ("*depthwise.*", "*pointwise.*", "*upsamplers.*", "*.shortcut.*"),
        "time": ("*.time.*",),
    },
    "decoder": {"convolutions": ("decoder/*",)},
}
"""Layers by what they do, as patterns of their names: what recipes may call them."""

Shape = tuple[int, ...]
LAYERS = "text_model.encoder.layers"


def graphs(parts: SnapGenParts) -> tuple[MobileGraph, ...]:
    """The mobile graphs of a student; InputError for one that phone graphs are not made from."""
    if not parts.unet.multi_query:
        raise InputError(
            "this UNet has a key and value head for every query head; phone graphs are made from "
            "multi-query students, which have one"
        )
    decoder = image_decoder(parts.networks.vae, parts.canvas.shape, parts.side)
    return text_encoder(parts), denoiser(parts), decoder


def _states(parts: SnapGenParts) -> TensorSpec:
    axes = ("batch", "text channels", "one", "text tokens")
    shape = 1, parts.unet.text_width, 1, parts.text_tokens
    return TensorSpec("text_states", axes, shape, "float32")


def text_encoder(parts: SnapGenParts) -> MobileGraph:
    """Token ids to text states: the towers at hand one after another, then their states joined.

    Of a tower's layers only the last is missing, whose states nothing reads.
    """
    own, tokens, spec = parts.networks, parts.text_tokens, _states(parts)
    left, right, whole = parts.joined_widths
    before, between = 0 if own.clip_l else left, [0] * (len(own.towers) - 1)
    margins = before, *between, whole - left - right
    joined = len(own.towers) > 1 or any(margins)
    tape = Tape()
    ends = tuple(
        _put_tower(tape, name, tower, tokens, f"{name}_states" if joined else spec.name)
        for name, tower in own.towers.items()
    )
    if joined:
        join = Lazy(partial(JoinedStates, margins, tokens), sum(margins) * tokens)
        tape.put("join", join, ends, text_states=spec.shape)
    ids = TensorSpec("token_ids", ("batch", "text tokens"), (1, tokens), "int32")
    return MobileGraph("text_encoder", {MAIN: tape.function((ids,), (spec,))})


def _put_tower(tape: Tape, name: str, tower: Network[ClipText], tokens: int, end: str) -> str:
    """One tower's embedding and all its layers but the last; returns the last wire, `end`."""
    cfg = tower.skeleton.cfg
    path, count = "text_model.embeddings", cfg.num_hidden_layers - 1
    wires = [f"{name}_x_{i}" for i in range(count)] + [end]
    shape = 1, cfg.hidden_size, 1, tokens
    embedding = _piece(tower, path, partial(MobileClipEmbedding, tokens=tokens))
    made = [{wire: shape} for wire in wires]
    tape.put(f"{name}.embedding", embedding, ("token_ids",), f"{name}.embedding", **made[0])
    for i in range(count):
        layer = _piece(tower, f"{LAYERS}.{i}", partial(MaskedClipLayer, tokens=tokens))
        weights, kind = f"{name}.layers.{i}", f"{name}.layers"
        tape.put(weights, layer, (wires[i],), kind, **made[i + 1])
    return end


def denoiser(parts: SnapGenParts) -> MobileGraph:
    """Velocity of latents, whose cells the host passes in a row as tokens."""
    network, cfg, canvas = parts.networks.denoiser, parts.unet, parts.canvas
    row = 1, canvas.channels, 1, canvas.tokens
    axes = ("batch", "latent channels", "one", "image tokens")
    latents, velocity = (TensorSpec(n, axes, row, "float32") for n in ("latents", "velocity"))
    table = TensorSpec(
        "step_table",
        ("batch", "time channels", "one", "one"),
        (1, cfg.time_embed_dim, 1, 1),
        "float32",
    )
    tape = Tape()
    line = _Line(tape, network, _put_context(tape, parts))
    line.run((canvas.height, canvas.width))
    line.put("out", ("conv_norm_out", "conv_out"), OutStage, row, makes="velocity")
    return MobileGraph(
        "denoiser", {MAIN: tape.function((latents, _states(parts), table), (velocity,))}
    )


def _put_context(tape: Tape, parts: SnapGenParts) -> str:
    """The value that text attention reads: text states, projected where the UNet does so."""
    cfg, name = parts.unet, "encoder_hid_proj"
    if not cfg.encoder_hid_dim:
        return "text_states"
    context = _piece(parts.networks.denoiser, name, MobileContextProjection)
    shape = 1, cfg.cross_attention_dim, 1, parts.text_tokens
    tape.put(name, context, ("text_states",), context=shape)
    return "context"


@dataclass
class _Line:
    """The UNet's way from the latents on: `value` is the wire it has come to.

    `text` is the value that text attention reads, `kept` are the wires that wait for the way up.
    """

    tape: Tape
    network: Network[SnapGen]
    text: str
    value: str = "latents"
    kept: list[str] = field(default_factory=list)

    @property
    def shape(self) -> Shape:
        """Of the value it has come to."""
        return self.tape.wires[self.value]

    def put(
        self,
        form: str,
        paths: tuple[str, ...],
        make: Callable[..., nn.Module],
        shape: Shape,
        *also: str,
        makes: str = "",
    ) -> None:
        """One segment, named after the last of the pieces of the UNet that `make` takes.

        Segments of one form are of one kind where they take and make as many channels and cells.
        """
        takes, after = (self.value, *also), makes or f"x_{len(self.tape.segments)}"
        widths = (self.tape.wires[name][1] for name in takes if name in self.tape.wires)
        kind = "_".join(map(str, (form, *widths, *shape[1:])))
        built = Lazy(
            lambda: make(*map(self.network.piece, paths)), sum(map(self.network.count, paths))
        )
        self.tape.put(paths[-1], built, takes, kind, **{after: shape})
        self.value = after

    def run(self, grid: Grid) -> None:
        """Everything but the end."""
        unet: Any = self.network.skeleton  # a list of modules forgets which they are
        widths = unet.cfg.block_out_channels
        self.put("latents", ("conv_in",), partial(LatentsStage, grid=grid), (1, widths[0], *grid))
        self.kept.append(self.value)
        for i, stage in enumerate(unet.down_blocks):
            self._down(f"down_blocks.{i}", stage, widths[i])
        self._stage("mid_block", unet.mid_block, widths[-1])
        for i, stage in enumerate(unet.up_blocks):
            self._up(f"up_blocks.{i}", stage, widths[-1 - i])

    def _down(self, path: str, stage: Stage, width: int) -> None:
        """A stage, all of whose values are kept, the smaller picture of its end among them."""
        self._stage(path, stage, width, keep=True)
        rows, columns = self.shape[2:]
        if len(stage.downsamplers):
            half = 1, width, rows // 2, columns // 2
            self.put("downsamplers", (f"{path}.downsamplers.0",), _as_it_is, half)
            self.kept.append(self.value)

    def _up(self, path: str, stage: Stage, width: int) -> None:
        """A stage, each of whose residual blocks takes what was kept last, and a larger picture."""
        self._stage(path, stage, width, join=True)
        rows, columns = self.shape[2:]
        if len(stage.upsamplers):
            twice = 1, width, 2 * rows, 2 * columns
            self.put("upsamplers", (f"{path}.upsamplers.0",), _as_it_is, twice)

    def _stage(
        self, path: str, stage: Stage, width: int, *, keep: bool = False, join: bool = False
    ) -> None:
        """Residual blocks, each with its transformer where it has one."""
        for i in range(len(stage.resnets)):
            also = (*((self.kept.pop(),) if join else ()), "step_table")
            shape = 1, width, *self.shape[2:]
            self.put("resnets", (f"{path}.resnets.{i}",), ResnetStage, shape, *also)
            if i < len(stage.attentions):
                self._transformer(f"{path}.attentions.{i}", stage.attentions[i])
            if keep:
                self.kept.append(self.value)

    def _transformer(self, path: str, source: Any) -> None:
        picture, shape = self.value, self.shape
        _, width, rows, columns = shape
        cells = 1, width, 1, rows * columns
        rope = grid_rope(rows, columns, source.head_dim) if source.self_attention else None
        self.put("cells", (f"{path}.norm", f"{path}.proj_in"), CellsStage, cells)
        for i in range(len(source.transformer_blocks)):
            block = f"{path}.transformer_blocks.{i}"
            self.put("layers", (block,), partial(LayerStage, rope=rope), cells, self.text)
        self.put("pictures", (f"{path}.proj_out",), PictureStage, shape, picture)


def _as_it_is(module: nn.Module) -> nn.Module:
    return module


def _piece(network: Network[Any], path: str, make: Callable[[Any], nn.Module]) -> Lazy:
    """A stage made from one piece of a network."""
    return Lazy(lambda: make(network.piece(path)), network.count(path))
