"""SnapGen students: opening, running, saving.

A folder holds a UNet, one or both CLIP towers, which share a tokenizer, and a decoder. There is no
Gemma encoder here, the third of the paper: a caller who has its states can join them behind the
CLIP tokens with `models.snapgen_text.join_context` and give them to the UNet.
"""

from nanoflux_mobile.families.snapgen.folder import save, save_tokenizer, tokenizer_entry
from nanoflux_mobile.families.snapgen.opening import (
    CLIP_KEYS,
    TOWERS,
    Networks,
    SnapGenParts,
    load,
    with_denoiser,
)
from nanoflux_mobile.families.snapgen.running import (
    fixed_steps,
    graphs,
    make_student,
    noise_levels,
    step_tables,
    token_ids,
)

__all__ = [
    "CLIP_KEYS",
    "TOWERS",
    "Networks",
    "SnapGenParts",
    "fixed_steps",
    "graphs",
    "load",
    "make_student",
    "noise_levels",
    "save",
    "save_tokenizer",
    "step_tables",
    "token_ids",
    "tokenizer_entry",
    "with_denoiser",
]
