"""Cut C3 of NanoFLUX: runs of similar single blocks become one, their parameters averaged.

FLUX.1's student goes from 38 single blocks to 24. A block is similar to its neighbours where its
output still points the way its input did. The paper averages; deleting all but the first block of a
run is here to compare with.

Shapes: B batch, L tokens, D width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig
from nanoflux_mobile.weights import Network, Stored

Runs = tuple[tuple[int, int], ...]
"""Consecutive single blocks [start, stop) that become one, all blocks in order."""
SINGLES = "single_transformer_blocks"


@dataclass(frozen=True)
class Similarity:
    """Mean cosine of what enters and leaves each single block: of image and of text tokens."""

    image: tuple[float, ...]
    text: tuple[float, ...]


def measure(
    model: NanoFlux, velocities: Iterable[Callable[[], object]], text_tokens: int
) -> Similarity:
    """Similarity of input and output over some batches, each a call that runs `model`."""
    count = model.cfg.num_single_layers
    sums, runs = torch.zeros(2, count, dtype=torch.float64), 0

    def watcher(i: int) -> Callable[..., None]:
        def watch(_: object, inputs: tuple[Tensor, ...], out_BLD: Tensor) -> None:
            cosine_BL = F.cosine_similarity(inputs[0].float(), out_BLD.float(), dim=-1)
            sums[0, i] += cosine_BL[:, text_tokens:].mean().cpu()
            sums[1, i] += cosine_BL[:, :text_tokens].mean().cpu()

        return watch

    blocks = model.single_transformer_blocks
    handles = [block.register_forward_hook(watcher(i)) for i, block in enumerate(blocks)]
    try:
        with torch.no_grad():
            for run in velocities:
                run()
                runs += 1
    finally:
        for handle in handles:
            handle.remove()
    image, text = (sums / max(runs, 1)).tolist()
    return Similarity(tuple(image), tuple(text))


def similar_runs(similarity: Similarity, blocks: int) -> Runs:
    """The runs that leave `blocks` blocks: neighbours joined where both leave states most alike.

    Raises:
        InputError: more blocks than there are, or none.
    """
    least = [min(pair) for pair in zip(similarity.image, similarity.text, strict=True)]
    check_blocks(len(least), blocks)
    # Joining i and i + 1 makes one block do the work of two: it costs what both would change.
    seams = sorted(range(len(least) - 1), key=lambda i: -(least[i] + least[i + 1]))
    joined = set(seams[: len(least) - blocks])
    starts = [i for i in range(len(least)) if i == 0 or i - 1 not in joined]
    return tuple(zip(starts, [*starts[1:], len(least)], strict=True))


def check_blocks(present: int, blocks: int) -> None:
    """InputError unless `blocks` is a smaller number of single blocks."""
    if not 0 < blocks < present:
        raise InputError(
            f"single blocks are to become {blocks}, but the network has {present}; "
            f"give 1 to {present - 1}"
        )


def one_run(present: int, start: int, stop: int) -> Runs:
    """Blocks [start, stop) as one, all others as they are; the paper's choice is a single run."""
    if not 0 <= start < stop <= present:
        raise InputError(f"blocks {start} to {stop} are no run of the {present} single blocks")
    alone = [(i, i + 1) for i in range(present)]
    return (*alone[:start], (start, stop), *alone[stop:])


def merged(network: Network[NanoFlux], runs: Runs) -> Network[NanoFlux]:
    """The network with one block for each run, its parameters the mean of the run's."""
    return _with_runs(network, runs, _mean)


def deleted(network: Network[NanoFlux], runs: Runs) -> Network[NanoFlux]:
    """The network with the first block of each run; what averaging is compared with."""
    return _with_runs(network, runs, lambda parts: parts[0])


def _with_runs(
    network: Network[NanoFlux], runs: Runs, one_of: Callable[[Sequence[Stored]], Stored]
) -> Network[NanoFlux]:
    old = network.skeleton.cfg
    _check_runs(old, runs)
    cfg = dataclasses.replace(old, num_single_layers=len(runs))
    with torch.device("meta"):
        skeleton = NanoFlux(cfg).eval().requires_grad_(False)
    weights = {}
    for name in skeleton.state_dict():
        head, _, rest = name.partition(".")
        if head == SINGLES:
            number, _, tail = rest.partition(".")
            parts = [network.weights[f"{SINGLES}.{i}.{tail}"] for i in range(*runs[int(number)])]
            weights[name] = one_of(parts)
        else:
            weights[name] = network.weights[name]
    return Network(skeleton, weights)


def _check_runs(cfg: FluxConfig, runs: Runs) -> None:
    ends = [0, *(stop for _, stop in runs)]
    whole = [start for start, _ in runs] == ends[:-1] and ends[-1] == cfg.num_single_layers
    if not whole or any(start >= stop for start, stop in runs):
        raise InputError(f"the runs {runs} do not cover {cfg.num_single_layers} single blocks once")
    if cfg.static_steps or cfg.downsamples:
        raise InputError("blocks are merged before Static-LN and token downsampling, not after")


def _mean(parts: Sequence[Stored]) -> Stored:
    first = parts[0]
    if len(parts) == 1:
        return first

    def read() -> Tensor:
        total = parts[0].read().float().clone()
        for part in parts[1:]:
            total += part.read().float()
        return total / len(parts)

    return Stored(first.shape, "float32", 4 * torch.Size(first.shape).numel(), read)
