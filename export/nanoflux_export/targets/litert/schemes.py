"""What .tflite files can store weights as, and what comes nearest to anything else."""

from __future__ import annotations

from dataclasses import replace

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import ComponentName, Scheme

GPU, CPU = "gpu", "cpu"
"""Profiles: layers as 1x1 convolutions, or as FULLY_CONNECTED."""

BLOCKS = (32, 64, 128, 256)
"""Input channels that can share a scale."""

_STORED = {"fp16": "FLOAT16", "int8": "INT8", "int8-a8": "INT8", "int4": "INT4"}
_STORED |= {f"int4-b{block}": "INT4" for block in BLOCKS}


def check_scheme(scheme: Scheme) -> None:
    """Raise InputError unless LiteRT files can store weights, or what a rank leaves, so."""
    if str(replace(scheme, rank=0)) not in _STORED:
        known = ", ".join(_STORED)
        raise InputError(f"LiteRT files cannot store weights as {scheme}; accepted: {known}")


def stored_type(scheme: Scheme) -> str:
    """The type of a stored weight, as the schema calls it."""
    return _STORED[str(replace(scheme, rank=0))]


def choices(profile: str, component: ComponentName) -> tuple[str, ...]:
    """What a budget chooses from."""
    if component == "decoder":
        return ("fp16",)
    return ("int4", "int8", "fp16")


def nearest(scheme: Scheme, profile: str, component: ComponentName) -> tuple[Scheme, str]:
    """How a wish is stored, and, where that is something else, why; see `Target.nearest`."""
    found, why = _nearest(scheme, profile)
    if component == "decoder" and found.kind == "int" and found.activations != 8:
        return Scheme("fp16", 16), _NO_DYNAMIC_DECODER
    return found, why


def _nearest(scheme: Scheme, profile: str) -> tuple[Scheme, str]:
    if scheme.kind == "fp16":
        found = Scheme("fp16", 16, rank=scheme.rank)
        return found, _NO_MASKS if scheme.sparse else ""
    coarse = scheme.kind == "palette" or _blocked(scheme, profile)
    bits = 8 if scheme.bits > 4 or scheme.activations == 8 or coarse else 4
    block = 0 if bits == 8 or scheme.kind != "int" else _block(scheme.group)
    found = Scheme("int", bits, block, rank=scheme.rank, activations=scheme.activations)
    return found, "; ".join(_differences(scheme, found, profile))


_NO_MASKS = "LiteRT computes no sparse weights"
_NO_DYNAMIC_DECODER = (
    "a decoder whose large values are rounded as they pass is slower than in float: int8-a8 rounds "
    "them in calibrated ranges"
)


def _blocked(scheme: Scheme, profile: str) -> bool:
    """Whether it has scales by blocks where no blocks are possible: 4 bits would be coarser."""
    return scheme.kind == "int" and scheme.group > 0 and profile != CPU


def _block(wished: int) -> int:
    """The largest block that is no coarser, or the least."""
    fitting = [block for block in BLOCKS if block <= wished]
    return 0 if not wished else max(fitting, default=BLOCKS[0])


def _differences(scheme: Scheme, found: Scheme, profile: str) -> list[str]:
    words = [_NO_MASKS] if scheme.sparse else []
    if scheme.kind == "palette":
        return [*words, "LiteRT has no palettes, and coarser integers of 4 bits"]
    if scheme.kind == "bits":
        return [] if scheme.bits == found.bits else ["LiteRT has integers of 4 and 8 bits only"]
    if scheme.activations == 8 and scheme.bits < 8:
        return ["8-bit activations meet 8-bit weights only"]
    if scheme.group == found.group:
        return words
    if scheme.bits == 8:
        return ["8-bit integers have one scale per output channel"]
    if profile != CPU:
        return ["scales by blocks abort the GPU delegate"]
    return [f"blocks have {', '.join(map(str, BLOCKS))} input channels"]
