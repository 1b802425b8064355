"""The words of a judgement: what was checked, against what, and what came out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["pass", "fail", "no_evidence"]
Stage = Literal["image", "text_encoder", "step", "decoder", "load_first", "load_relaunch", "memory"]
Unit = Literal["ms", "bytes", "ratio"]
EXIT_CODES: dict[Outcome, int] = {"pass": 0, "fail": 1, "no_evidence": 2}


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % bounds."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Check:
    """One figure against one limit; `unit` is ms, bytes or ratio (candidate over baseline)."""

    name: str
    stage: Stage
    unit: Unit
    found: Interval | None
    limit: float
    outcome: Outcome
    why: str


@dataclass(frozen=True)
class Power:
    """What a comparison could have seen: ratios, 1.0 being no difference.

    `noise_floor` is the ratio that 95 % of comparisons of equal runs like these stay within (A/A);
    `smallest_caught` the least slowdown that would have failed in four runs of five.
    """

    stage: Stage
    noise_floor: float
    smallest_caught: float


@dataclass(frozen=True)
class Verdict:
    """The judgement of a report: any reason against the evidence outweighs every figure."""

    outcome: Outcome
    reasons: tuple[str, ...]
    checks: tuple[Check, ...]
    power: tuple[Power, ...]
