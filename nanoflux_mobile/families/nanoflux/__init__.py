"""FLUX checkpoints and NanoFLUX students: opening, the Static-LN cut, running, saving.

A teacher folder is diffusers' FLUX layout. A student folder is the same with a step table in the
transformer and without the CLIP tower, which nothing reads any more.
"""

from nanoflux_mobile.families.nanoflux.folder import save, save_tokenizer, tokenizer_entry
from nanoflux_mobile.families.nanoflux.opening import (
    CLIP_KEYS,
    T5_KEYS,
    FluxParts,
    Networks,
    PooledText,
    load,
    open_denoiser,
    with_denoiser,
)
from nanoflux_mobile.families.nanoflux.running import (
    fixed_steps,
    graphs,
    joint_rope,
    low_rope,
    make_student,
    noise_levels,
    pooled_text,
    step_tables,
    token_ids,
)

__all__ = [
    "CLIP_KEYS",
    "T5_KEYS",
    "FluxParts",
    "Networks",
    "PooledText",
    "fixed_steps",
    "graphs",
    "joint_rope",
    "load",
    "low_rope",
    "make_student",
    "noise_levels",
    "open_denoiser",
    "pooled_text",
    "save",
    "save_tokenizer",
    "step_tables",
    "token_ids",
    "tokenizer_entry",
    "with_denoiser",
]
