"""Parameters and multiply-accumulates of a network, block by block, with nothing allocated.

The network and its inputs live on the meta device: shapes without numbers. torch's own counter
sees the operations, so what is counted is what runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

Runs = Mapping[str, Callable[[], object]]
"""The ways through a network by name, each a call with inputs on the meta device."""

SCHEDULE = ("step_table",)
"""Parameters that belong to a schedule of steps; the sizes of a network leave them out."""
REST = "rest"
"""The block that stands for all a network holds or computes outside its blocks."""


@dataclass(frozen=True)
class BlockSize:
    """One block: its parameters, and the multiply-accumulates of each run by the run's name."""

    name: str
    parameters: int
    macs: Mapping[str, int]


@dataclass(frozen=True)
class Sizes:
    """A network, its totals and its blocks; `fp16_bytes` is what its weights take at 16 bits."""

    parameters: int
    fp16_bytes: int
    macs: Mapping[str, int]
    blocks: tuple[BlockSize, ...]


@dataclass(frozen=True)
class Fold:
    """Consecutive blocks of one list and one size, as one line."""

    name: str
    count: int
    block: BlockSize


def blocks_of(module: nn.Module, path: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The parts one speaks of: entries of the outermost lists, and children without lists."""
    for name, child in module.named_children():
        where = f"{path}.{name}" if path else name
        if isinstance(child, nn.ModuleList):
            yield from ((f"{where}.{i}", block) for i, block in enumerate(child))
        elif any(isinstance(part, nn.ModuleList) for part in child.modules()):
            yield from blocks_of(child, where)
        else:
            yield where, child


def measure(module: nn.Module, runs: Runs) -> Sizes:
    """The sizes of a network on the meta device.

    A multiply-accumulate is half of what torch counts as floating-point operations: convolutions,
    matrix products and attention. Nothing else counts.
    """
    held = {name: _count(block.parameters()) for name, block in blocks_of(module)}
    total = _count(p for name, p in module.named_parameters() if name not in SCHEDULE)
    held[REST] = total - sum(held.values())
    macs = {name: _macs(module, run) for name, run in runs.items()}
    blocks = [
        BlockSize(name, parameters, {run: counts[name] for run, counts in macs.items()})
        for name, parameters in held.items()
    ]
    kept = tuple(b for b in blocks if b.name != REST or b.parameters or any(b.macs.values()))
    sums = {run: sum(counts.values()) for run, counts in macs.items()}
    return Sizes(total, 2 * total, sums, kept)


def folded(blocks: tuple[BlockSize, ...]) -> tuple[Fold, ...]:
    """The blocks with equal neighbours of one list put together, such as `blocks.1..23`."""
    folds = []
    for _, group in groupby(blocks, _likeness):
        first, *others = group
        end = f"..{others[-1].name.rpartition('.')[2]}" if others else ""
        folds.append(Fold(first.name + end, 1 + len(others), first))
    return tuple(folds)


def _likeness(block: BlockSize) -> object:
    stem, _, index = block.name.rpartition(".")
    return stem if index.isdigit() else block.name, block.parameters, dict(block.macs)


def _count(parameters: Any) -> int:
    return sum(p.numel() for p in parameters)


def _macs(module: nn.Module, run: Callable[[], object]) -> Counter[str]:
    """What one run computes, by the name of its block."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter, ExitStack() as watched:
        tally = _Tally(counter)
        for name, block in blocks_of(module):
            for part in block.modules():
                watched.enter_context(_watched(part, name, tally))
        run()
        tally.macs[REST] += counter.get_total_flops() // 2 - tally.seen_macs
    return tally.macs


@dataclass
class _Tally:
    """What was counted so far, and the calls met so far.

    On the meta device equal parts with inputs of equal shapes give outputs of equal shapes and
    compute as much, so each kind of call runs once: 57 blocks are counted in the time of three.
    """

    counter: FlopCounterMode
    macs: Counter[str] = field(default_factory=Counter)
    met: dict[object, tuple[Any, int]] = field(default_factory=dict)
    seen_macs: int = 0
    inside: bool = False

    def first_call(self, call: Callable[[], Any]) -> tuple[Any, int]:
        """What the call returns, and its multiply-accumulates."""
        before, self.inside = self.counter.get_total_flops(), True
        try:
            result = call()
        finally:
            self.inside = False
        macs = (self.counter.get_total_flops() - before) // 2
        self.seen_macs += macs
        return result, macs


@contextmanager
def _watched(part: nn.Module, block: str, tally: _Tally) -> Iterator[None]:
    """While open, calls of `part` from outside its block are counted for the block."""
    forward, kind = part.forward, None

    def counted(*args: Any, **kwargs: Any) -> Any:
        nonlocal kind
        if tally.inside:
            return forward(*args, **kwargs)
        kind = kind or (repr(part), tuple(p.shape for p in part.parameters()))
        key = (kind, _shapes((args, kwargs)))
        if key not in tally.met:
            tally.met[key] = tally.first_call(lambda: forward(*args, **kwargs))
        result, macs = tally.met[key]
        tally.macs[block] += macs
        return result

    part.forward = counted
    try:
        yield
    finally:
        del part.forward


def _shapes(value: Any) -> object:
    """Arguments with shapes in place of tensors, to tell kinds of calls apart."""
    if isinstance(value, Tensor):
        return tuple(value.shape)
    if isinstance(value, Mapping):
        return tuple((name, _shapes(item)) for name, item in value.items())
    return tuple(map(_shapes, value)) if isinstance(value, tuple | list) else value
