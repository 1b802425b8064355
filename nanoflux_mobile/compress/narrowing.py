"""A FLUX transformer with less of every axis: what the cuts of heads and of features share.

Each tensor of the network has axes of a few kinds, such as the residual stream or the hidden units
of an MLP. A cut says once what becomes of each kind; the table below says where it occurs. Nothing
is read before it is asked for, so the 12 B of FLUX.1 pass through a small machine.

Shapes: D width, A = H K attention channels, F hidden units, C conditioning channels.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.weights import Network, Stored

Along = Callable[[Tensor, int], Tensor]
"""What happens to a tensor along one of its axes."""

AXES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"(x|context)_embedder\.weight", ("residual", "")),
    (r"(x|context)_embedder\.bias", ("residual",)),
    (r"proj_out\.weight", ("", "residual")),
    (r"proj_out\.bias", ("",)),
    (r"step_table", ("", "", "residual")),
    (r"time_text_embed\.\w+\.linear_1\.weight", ("embedder", "")),
    (r"time_text_embed\.\w+\.linear_1\.bias", ("embedder",)),
    (r"time_text_embed\.\w+\.linear_2\.weight", ("condition", "embedder")),
    (r"time_text_embed\.\w+\.linear_2\.bias", ("condition",)),
    (r".*\bnorm(_out|1|1_context)?\.linear\.weight", ("rows", "condition")),
    (r".*\bnorm(_out|1|1_context)?\.linear\.bias", ("rows",)),
    (r".*\.attn\.norm(_added)?_[qk]\.weight", ("head",)),
    (r".*\.attn\.(to_[qk]|add_[qk]_proj)\.weight", ("queries", "residual")),
    (r".*\.attn\.(to_[qk]|add_[qk]_proj)\.bias", ("queries",)),
    (r".*\.attn\.(to_v|add_v_proj)\.weight", ("values", "residual")),
    (r".*\.attn\.(to_v|add_v_proj)\.bias", ("values",)),
    (r".*\.attn\.(to_out\.0|to_add_out)\.weight", ("residual", "values")),
    (r".*\.attn\.(to_out\.0|to_add_out)\.bias", ("residual",)),
    (r".*\.ff\.net\.0\.proj\.weight", ("units", "residual")),
    (r".*\.ff\.net\.0\.proj\.bias", ("units",)),
    (r".*\.ff\.net\.2\.weight", ("residual", "units")),
    (r".*\.ff\.net\.2\.bias", ("residual",)),
    (r".*\.ff_context\.net\.0\.proj\.weight", ("text_units", "residual")),
    (r".*\.ff_context\.net\.0\.proj\.bias", ("text_units",)),
    (r".*\.ff_context\.net\.2\.weight", ("residual", "text_units")),
    (r".*\.ff_context\.net\.2\.bias", ("residual",)),
    (r"single_transformer_blocks\.\d+\.proj_mlp\.weight", ("units", "residual")),
    (r"single_transformer_blocks\.\d+\.proj_mlp\.bias", ("units",)),
    (r"single_transformer_blocks\.\d+\.proj_out\.weight", ("residual", "values+units")),
    (r"single_transformer_blocks\.\d+\.proj_out\.bias", ("residual",)),
    (r"(down|up)sampler\..*conv\d?\.weight", ("residual", "residual", "", "")),
    (r"(down|up)sampler\..*conv\d?\.bias", ("residual",)),
    (r"(down|up)sampler\..*\.depthwise\.weight", ("residual", "", "", "")),
    (r"(down|up)sampler\..*\.pointwise\.weight", ("residual", "residual", "", "")),
    (r"(down|up)sampler\..*\.pointwise\.bias", ("residual",)),
)
"""The kinds of axes of every tensor, by name; the first pattern that matches counts."""

BLOCK = re.compile(r"(single_transformer_blocks|transformer_blocks)\.(\d+)\.")


@dataclass(frozen=True)
class BlockCut:
    """What becomes of the axes one block has for itself; `text_units` in double blocks only."""

    queries: Along
    values: Along
    head: Along
    units: Along
    text_units: Along | None = None


@dataclass(frozen=True)
class Cut:
    """What becomes of every axis: those all blocks share, and each block's own, doubles first."""

    residual: Along
    condition: Along
    embedder: Along
    blocks: Sequence[BlockCut]


def keep(index: Tensor) -> Along:
    """Only these entries, in this order."""
    return lambda x, axis: x.index_select(axis, index.to(x.device))


def narrowed(network: Network[NanoFlux], cfg: FluxConfig, cut: Cut) -> Network[NanoFlux]:
    """The network with sizes `cfg`, every tensor of it cut from the wider one's as it is read."""
    with torch.device("meta"):
        skeleton = NanoFlux(cfg).eval().requires_grad_(False)
    old = network.skeleton.cfg
    weights = {
        name: _cut(network.weights[name], tuple(shape.shape), _ways(name, cut, old))
        for name, shape in skeleton.state_dict().items()
    }
    return Network(skeleton, weights)


def _cut(stored: Stored, shape: tuple[int, ...], ways: Mapping[int, Along]) -> Stored:
    def read() -> Tensor:
        tensor = stored.read().float()
        for axis, along in ways.items():
            tensor = along(tensor, axis)
        return tensor.contiguous()

    return Stored(shape, "float32", 4 * torch.Size(shape).numel(), read)


def _ways(name: str, cut: Cut, old: FluxConfig) -> dict[int, Along]:
    """What to do with each axis of the tensor `name`."""
    kinds = next((axes for pattern, axes in AXES if re.fullmatch(pattern, name)), None)
    if kinds is None:
        raise KeyError(f"{name} has no line in narrowing.AXES")
    return {axis: _way(kind, name, cut, old) for axis, kind in enumerate(kinds) if kind}


def _way(kind: str, name: str, cut: Cut, old: FluxConfig) -> Along:
    if kind == "rows":
        return _in_rows(cut.residual, old.width)
    if kind in ("residual", "condition", "embedder"):
        along: Along = getattr(cut, kind)
        return along
    found = BLOCK.match(name)
    assert found is not None, name
    number = int(found[2]) + (old.num_layers if found[1].startswith("single") else 0)
    block = cut.blocks[number]
    if kind == "values+units":
        return _joined(block.values, block.units, old.width)
    own: Along = getattr(block, kind)
    return own


def _in_rows(along: Along, width: int) -> Along:
    """Modulation rows lie below each other, each of them a whole residual stream wide."""
    return lambda x, axis: along(x.unflatten(axis, (-1, width)), axis + 1).flatten(axis, axis + 1)


def _joined(first: Along, second: Along, width: int) -> Along:
    """Attention channels and hidden units side by side, as a single block's last linear has it."""

    def both(x: Tensor, axis: int) -> Tensor:
        attention, units = x.split([width, x.shape[axis] - width], axis)
        return torch.cat((first(attention, axis), second(units, axis)), axis)

    return both
