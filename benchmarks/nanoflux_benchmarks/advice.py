"""Changes that might make a bundle faster or smaller, each as what the graphs would then cost."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

from nanoflux_benchmarks.prediction import Plan
from nanoflux_mobile.cost import BlockCost, Cost
from nanoflux_mobile.device import Device

FEW_BITS = 4
WORTH = 0.01
"""The least share of an image's time, or of the peak, that a change must save to be told."""


@dataclass(frozen=True)
class Setting:
    """What is predicted: costs as the phone runs them, the plan, the device."""

    cost: Cost
    plan: Plan
    device: Device


Change = Callable[[Setting], Setting | None]
"""The setting after a change; None where there is nothing to change."""


def changed_blocks(cost: Cost, component: str | None = None, **shares: float) -> Cost:
    """The cost with some fields of its blocks scaled, of one component or of all."""

    def scaled(block: BlockCost) -> BlockCost:
        if component not in (None, block.component):
            return block
        values = {name: round(getattr(block, name) * share) for name, share in shares.items()}
        return dataclasses.replace(block, **values)

    return dataclasses.replace(cost, blocks=tuple(map(scaled, cost.blocks)))


def few_bits(here: Setting) -> Setting | None:
    """Every weight in 4 bits."""
    wide = {name: bits for name, bits in here.plan.weight_bits.items() if bits > FEW_BITS}
    if not wide:
        return None
    cost = here.cost
    for name, bits in wide.items():
        cost = changed_blocks(cost, name, weight_bytes=FEW_BITS / bits)
    resident = tuple(
        (name, round(held * FEW_BITS / wide[name]) if name in wide else held)
        for name, held in here.plan.resident
    )
    return Setting(cost, dataclasses.replace(here.plan, resident=resident), here.device)


def fewer_tokens(here: Setting) -> Setting:
    """Half the work of a step but for its weights; attention would save more."""
    halves = {"macs": 0.5, "activation_bytes": 0.5, "working_set_bytes": 0.5}
    return dataclasses.replace(here, cost=changed_blocks(here.cost, "denoiser", **halves))


def fewer_steps(here: Setting) -> Setting | None:
    """Half the steps, of which as large a share runs at low resolution."""
    steps, low = here.plan.steps, here.plan.low_steps
    if steps == 1:
        return None
    fewer = steps // 2
    plan = dataclasses.replace(here.plan, steps=fewer, low_steps=round(low * fewer / steps))
    return dataclasses.replace(here, plan=plan)


def no_crossings(here: Setting) -> Setting | None:
    """Everything on one processor."""
    if not here.cost.crossings:
        return None
    return dataclasses.replace(here, cost=dataclasses.replace(here.cost, crossings=0))


def integer_values(here: Setting) -> Setting | None:
    """Values of 8 bits, computed at the rate the NPU has for them."""
    npu = here.device.npu
    if "npu" not in here.plan.units.values() or npu is None or npu.int8_ops_per_s is None:
        return None
    device = dataclasses.replace(
        here.device, npu=dataclasses.replace(npu, fp16_ops_per_s=npu.int8_ops_per_s)
    )
    cost = changed_blocks(here.cost, activation_bytes=0.5, working_set_bytes=0.5)
    return Setting(cost, here.plan, device)


CHANGES: tuple[tuple[str, Change], ...] = (
    ("weights of 4 bits", few_bits),
    ("half as many tokens in the denoiser", fewer_tokens),
    ("half as many steps", fewer_steps),
    ("no crossing to another processor", no_crossings),
    ("values of 8 bits, computed as integers", integer_values),
)
"""What a user is told of, if predicting it shows that it helps."""
