"""What a bundle has to say about itself, in sentences: wishes not met, values near the limit."""

from __future__ import annotations

from collections.abc import Iterator

from nanoflux_export.fitting.fit import Fit
from nanoflux_export.rewrites.scale_folding import LIMIT
from nanoflux_mobile.manifest import Hazard, Manifest, Unmet


def remarks(manifest: Manifest) -> Iterator[str]:
    """Sentences for people, the most important first; none where all is as it was asked for."""
    for hazard in (one for one in manifest.hazards if not one.folded):
        yield _danger(hazard)
    for unmet in manifest.unmet:
        yield _wish(unmet)
    folded = [hazard for hazard in manifest.hazards if hazard.folded]
    if folded:
        yield _folded(folded)


def _danger(hazard: Hazard) -> str:
    verb = "passes" if hazard.most > LIMIT else "comes near"
    return (
        f"{hazard.component}: {hazard.op} {verb} the end of half precision with {hazard.most:.0f} "
        "of 65504, and no power of two can be moved there; keep the component in float32, or "
        "clamp the value"
    )


def _wish(unmet: Unmet) -> str:
    layers = "1 layer" if unmet.layers == 1 else f"{unmet.layers} layers"
    change = f"asked as {unmet.asked}, stored as {unmet.stored}"
    return f"{unmet.component}: {layers} {change}: {unmet.why}"


def _folded(hazards: list[Hazard]) -> str:
    most = max(hazards, key=lambda hazard: hazard.most)
    names = ", ".join(dict.fromkeys(hazard.component for hazard in hazards))
    return (
        f"{names}: {len(hazards)} operations near the end of half precision were scaled by powers "
        f"of two; the greatest was {most.op} with {most.most:.0f} of 65504"
    )


def fit_sentence(fit: Fit) -> str:
    """How a budget was kept."""
    rows, gap = fit.sensitivity, fit.solution.gap
    return (
        f"{fit.component}: {fit.bits:.2f} bits a weight, {fit.solution.bytes / 1e6:.2f} MB; "
        f"{rows.db(fit.real):.1f} dB on the calibration prompts where {rows.db(fit.predicted):.1f} "
        f"dB were predicted; at most {gap:.2%} from the best choice there is"
    )
