"""Which ways of storing weights a package can hold, and what stands in for the others."""

from __future__ import annotations

from dataclasses import replace

from nanoflux_export.compression.selection import PALETTE_BITS
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.spec import Scheme, parse_scheme

_BEST = {1: "palette1-g16", 2: "palette2-g16", 3: "palette3-g16", 4: "palette4-g16"}
_BEST |= {5: "palette6-g16", 6: "palette6-g16", 7: "palette8", 8: "palette8"}
"""What a wish for so many bits becomes."""

CHOICES = (
    *(f"palette{bits}-g16-weighted" for bits in (1, 2, 3, 4, 6)),
    *(f"palette{bits}-weighted" for bits in (2, 3, 4, 6)),
    *("palette8", "int8", "fp16"),
)
"""What a budget chooses from; benchmarks/compression_study compares them with more."""

_INTEGER_BITS = (4, 8)


def nearest(scheme: Scheme) -> tuple[Scheme, str]:
    """How a wish is stored, and why otherwise; see `Target.nearest`."""
    if scheme.kind == "bits":
        return parse_scheme(_BEST[scheme.bits]), ""
    reasons = []
    known = {"palette": PALETTE_BITS, "int": _INTEGER_BITS}.get(scheme.kind, (scheme.bits,))
    if scheme.bits not in known:
        bits = next((more for more in known if more > scheme.bits), known[-1])
        words = ", ".join(map(str, known))
        what = "palette indices" if scheme.kind == "palette" else "integers"
        reasons.append(f"Core ML has {what} of {words} bits")
        scheme = replace(scheme, bits=bits)
    if scheme.group % scheme.vector:
        reasons.append(f"vectors of {scheme.vector} do not fill groups of {scheme.group} channels")
        scheme = replace(scheme, vector=1)
    return scheme, "; ".join(reasons)


def check_storable(scheme: Scheme) -> None:
    """Raise InputError for a scheme that packages do not hold as it is."""
    best, reason = nearest(scheme)
    if best != scheme:
        why = f", as {reason}" if reason else ""
        raise InputError(f"{scheme} is not stored in Core ML packages{why}; use {best}")
