"""Layers as a low-rank product in half precision beside what it leaves, as in SVDQuant.

The product carries the few directions in which a weight is large; the rest is smaller and more
even, and loses less to few bits (arXiv 2411.05007). Before the rest is rounded to them,
rest(x) + up(down(x)) is the layer.

Which product is best depends on what rounding loses, and that on the product: as in LoftQ (arXiv
2310.08659) the two are found in turns. With palettes of 2 bits, 53 layers of the tiny student lose
47 % of what they lose without a product at rank 16, and 65 % without the turns. What it costs is
R (D + C) values of 16 bits: a third of a bit per weight at rank 16 where a layer is 1536 x 1536,
but 2.3 bits in that student, whose layers lose 9 % with 2 bits more instead.

Shapes: D outputs, C inputs, R rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from nanoflux_export.compression.plan import Plan
from nanoflux_export.compression.rounding import half, rounded
from nanoflux_export.graph import MobileGraph, Segment
from nanoflux_export.layers import Layer, compressible, distinct
from nanoflux_export.rewrites.replacing import with_parts
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Scheme

Plain = nn.Linear | nn.Conv2d

_HALF = Scheme("fp16", 16)
_SPARE, _POWERS = 8, 4  # of the search for directions; see Halko et al., arXiv 0909.4061
_TURNS = 3


class LowRankSum(nn.Module):
    """A layer as `rest`, which has its bias, and the product of `up` and `down`."""

    def __init__(self, rest: Plain, down: Plain, up: Plain) -> None:
        super().__init__()
        self.rest: Plain = rest
        self.down: Plain = down
        self.up: Plain = up

    def forward(self, x: Tensor) -> Tensor:
        """As the layer."""
        total: Tensor = self.rest(x) + self.up(self.down(x))
        return total


def split(
    module: nn.Module,
    schemes: Mapping[str, Scheme],
    importance: Mapping[str, NDArray[np.float64]] | None = None,
) -> nn.Module:
    """A copy of a module with the layers at these paths as sums, all else shared.

    A layer's weight becomes those of `<path>.rest`, `<path>.down` and `<path>.up`, the last two of
    the scheme's rank and in half precision. They are chosen so that little is lost when the rest is
    stored as the scheme says otherwise. `importance`, (C,) by path, is the mean square of each
    input channel: then what counts is the loss in the layer's results, not that in its weight.

    Raises:
        InputError: a layer that is no nn.Linear or plain 1x1 nn.Conv2d, or a rank that its weight
            does not have.
    """
    weights = importance or {}
    parts = {
        path: _sum(path, module.get_submodule(path), scheme, weights.get(path))
        for path, scheme in schemes.items()
    }
    return with_parts(module, parts)


def with_low_rank(graph: MobileGraph, plan: Plan) -> tuple[MobileGraph, Plan]:
    """The graph with every layer as a sum whose scheme has a rank, and the plan for its parts.

    The rest is stored as the scheme says otherwise, with the layer's importance and range; the
    product in half precision. Both come back unchanged where no scheme has a rank.

    Raises:
        InputError: as `split`; a scheme with a rank is for layers that have one.
    """
    if not any(scheme.rank for scheme in (plan.default, *plan.layers.values())):
        return graph, plan
    found = {name: list(_checked(s, plan)) for name, s in distinct(graph).items() if s.parameters}

    def changed(segment: Segment) -> Segment:
        return _rewritten(segment, found.get(segment.weights, []), plan)

    functions = {
        name: replace(f, segments=tuple(map(changed, f.segments)))
        for name, f in graph.functions.items()
    }
    layers = [layer for several in found.values() for layer in several]
    return MobileGraph(graph.name, functions), _translated(plan, layers)


def product(
    weight_DC: Tensor, rank: int, importance_C: NDArray[np.float64] | None = None
) -> tuple[Tensor, Tensor]:
    """Half-precision values `up` (D, R) and `down` (R, C), in float32, whose product is nearest.

    Nearest to the weight as its inputs weigh it. The search starts from fixed directions, so equal
    weights have equal products.
    """
    exact_DC = weight_DC.double()
    scaled_DC = exact_DC
    if importance_C is not None:
        scaled_DC = exact_DC * torch.from_numpy(importance_C).sqrt()
    directions = min(rank + _SPARE, *weight_DC.shape)
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        found_DQ, _, _ = torch.svd_lowrank(scaled_DC, directions, niter=_POWERS)
    # The directions are orthogonal, so the best product with them is this one however inputs weigh.
    up_DR = found_DQ[:, :rank]
    return half("up", up_DR).float(), half("down", up_DR.T @ exact_DC).float()


def _checked(segment: Segment, plan: Plan) -> Iterator[Layer]:
    """The layers of a segment, those that are to be sums checked."""
    for layer, module in compressible(segment, segment.build()):
        if rank := plan.of(layer.name).rank:
            _plain(layer.name, module, rank)
        yield layer


def _plain(name: str, layer: nn.Module, rank: int) -> Plain:
    """The layer, if it is one matrix that has this rank."""
    if not isinstance(layer, nn.Linear) and not (isinstance(layer, nn.Conv2d) and _is_1x1(layer)):
        raise InputError(
            f"{name} belongs to a {type(layer).__name__} that is no plain matrix; svd schemes are "
            "for linear layers and 1x1 convolutions: give this layer one without svd"
        )
    rows, columns = layer.weight.shape[:2]
    if rank > min(rows, columns):
        raise InputError(
            f"{name} is {rows} x {columns} and cannot be split at rank {rank}; use at most "
            f"svd{min(rows, columns)}, or a scheme without svd"
        )
    return layer


def _is_1x1(layer: nn.Conv2d) -> bool:
    places = (layer.kernel_size, layer.stride) == ((1, 1), (1, 1))
    return places and layer.padding in ((0, 0), "valid") and layer.groups == 1


def _sum(
    path: str, module: nn.Module, scheme: Scheme, importance_C: NDArray[np.float64] | None
) -> LowRankSum:
    layer = _plain(path, module, scheme.rank)
    as_rest = replace(scheme, rank=0, activations=16)
    plan = Plan(as_rest, importance={} if importance_C is None else {"/weight": importance_C})
    made = _beside(torch.zeros(layer.weight.shape), layer, scheme.rank, importance_C)
    for _ in range(0 if scheme.kind == "fp16" else _TURNS):
        stored = rounded(made.rest, plan).get_parameter("weight")
        made = _beside(stored, layer, scheme.rank, importance_C)
    return made


def _beside(
    stored: Tensor, layer: Plain, rank: int, importance_C: NDArray[np.float64] | None
) -> LowRankSum:
    """The layer as a sum whose product is nearest to what stands beside `stored` in its weight."""
    weight_DC = layer.weight.detach().flatten(1).double()
    up_DR, down_RC = product(weight_DC - stored.flatten(1), rank, importance_C)
    rest_DC = weight_DC - up_DR.double() @ down_RC.double()
    rest = _like(layer, rest_DC.float(), layer.bias)
    return LowRankSum(rest, _like(layer, down_RC), _like(layer, up_DR))


def _like(layer: Plain, weight_DC: Tensor, bias: Tensor | None = None) -> Plain:
    """A layer of the same type with another matrix."""
    (outputs, inputs), kernel = weight_DC.shape, layer.weight.shape[2:]
    made: Plain
    with torch.device("meta"):
        if kernel:
            made = nn.Conv2d(inputs, outputs, 1, bias=bias is not None)
        else:
            made = nn.Linear(inputs, outputs, bias is not None)
    state = {"weight": weight_DC.reshape(outputs, inputs, *kernel)}
    made.load_state_dict(state | ({} if bias is None else {"bias": bias.detach()}), assign=True)
    return made.eval().requires_grad_(False)


def _rewritten(old: Segment, layers: Sequence[Layer], plan: Plan) -> Segment:
    """A segment whose layers with a rank are sums; itself where there are none.

    The kind counts the ranks of all its layers in order, once where they are equal.
    """
    schemes = [plan.of(layer.name) for layer in layers]
    ranks = [scheme.rank for scheme in schemes]
    if not any(ranks):
        return old
    pairs = [pair for pair in zip(layers, schemes, strict=True) if pair[1].rank]
    weights = {x.module: plan.importance[x.name] for x, _ in pairs if x.name in plan.importance}
    told = ranks[:1] if len(set(ranks)) == 1 else ranks
    return replace(
        old,
        kind=f"{old.kind}~svd{'.'.join(map(str, told))}",
        build=lambda: split(old.build(), {x.module: scheme for x, scheme in pairs}, weights),
        parameters=old.parameters + sum(s.rank * sum(x.shape[:2]) for x, s in pairs),
    )


def _translated(plan: Plan, layers: Sequence[Layer]) -> Plan:
    """The plan with a scheme for every part of a sum instead of one for its layer."""
    schemes = dict(plan.layers)
    rests = {}
    for layer in layers:
        if (scheme := plan.of(layer.name)).rank:
            stem = layer.name.removesuffix("weight")
            rests[layer.name] = f"{stem}rest.weight"
            schemes.pop(layer.name, None)
            schemes[rests[layer.name]] = replace(scheme, rank=0)
            schemes |= dict.fromkeys((f"{stem}down.weight", f"{stem}up.weight"), _HALF)
    return replace(
        plan,
        default=replace(plan.default, rank=0),
        layers=schemes,
        importance={rests.get(name, name): of for name, of in plan.importance.items()},
        ranges={rests.get(name, name): of for name, of in plan.ranges.items()},
    )
