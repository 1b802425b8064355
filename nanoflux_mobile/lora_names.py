"""How LoRA files name the linears of a FLUX transformer: tables, and one lookup over them.

Trainers differ in a prefix, in dots or underscores, in diffusers' names or Black Forest Labs' own
(which fuse several of diffusers' linears into one), and in what they call the two matrices. Written
with underscores all of them meet, so names are looked up in that form, called flat.
"""

from __future__ import annotations

import re

from nanoflux_mobile.bfl import TABLE

PREFIXES = (
    "base_model.model.",
    "model.diffusion_model.",
    "diffusion_model.",
    "transformer.",
    "lora_transformer_",
    "lora_unet_",
)
"""What stands before the transformer's own names; one may follow another."""

TEXT_PREFIXES = ("text_encoder", "lora_te", "conditioner.", "cond_stage_model.")

ROLES = {
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora_A.default.weight": "down",
    ".lora_B.default.weight": "up",
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    ".down.weight": "down",
    ".up.weight": "up",
    ".alpha": "alpha",
}
"""What each ending says a tensor is; the first that fits counts."""

OTHER_METHODS = {
    "dora_scale": "a DoRA",
    "magnitude": "a DoRA",
    "hada_": "a LoHa",
    "lokr_": "a LoKr",
    "lora_mid": "a LoCon with a Tucker core",
    "oft_": "an OFT",
    ".bias": "a LoRA with biases",
    ".diff": "a set of whole-weight differences",
}
"""Methods that are no plain product of two matrices, by a part of the names they leave."""


def flat(name: str) -> str:
    """A module's name in the form in which all trainers' names meet."""
    return name.replace(".", "_")


def _linear(tensor: str) -> str:
    return flat(tensor.removesuffix(".weight"))


BFL = {
    _linear(rule.theirs): tuple(map(_linear, rule.ours))
    for rule in TABLE
    if rule.theirs.endswith(".weight")
}
"""Our linears that one of theirs holds, flat, in the order of its rows; {} is a block's number."""

XLABS = {
    "double_blocks_{}_processor_qkv_lora1": BFL["double_blocks_{}_img_attn_qkv"],
    "double_blocks_{}_processor_qkv_lora2": BFL["double_blocks_{}_txt_attn_qkv"],
    "double_blocks_{}_processor_proj_lora1": BFL["double_blocks_{}_img_attn_proj"],
    "double_blocks_{}_processor_proj_lora2": BFL["double_blocks_{}_txt_attn_proj"],
    "single_blocks_{}_processor_qkv_lora": BFL["single_blocks_{}_linear1"][:3],
    "single_blocks_{}_processor_proj_lora": BFL["single_blocks_{}_linear2"],
}
"""The same for XLabs, whose matrices hang on an attention processor."""

THEIRS = BFL | XLABS

SHIFT_FIRST = frozenset({"final_layer_adaLN_modulation_1"})
"""Theirs whose rows are shift above scale, where ours are scale above shift."""

_NUMBER = re.compile(r"(?<=_blocks_)[0-9]+")
_MODULATION = re.compile(r"(?:_norm|_norm1|_norm1_context|^norm_out)_linear$|^time_text_embed_")


def is_text(key: str) -> bool:
    """Whether a tensor belongs to a text encoder."""
    return key.startswith(TEXT_PREFIXES)


def split(key: str) -> tuple[str, str] | None:
    """A tensor's module, as the file names it, and its role; None if it is no part of a LoRA."""
    for ending, role in ROLES.items():
        if key.endswith(ending):
            return key.removesuffix(ending), role
    return None


def other_method(key: str) -> str | None:
    """What a file is that holds a tensor of this name, where that is known and not a LoRA."""
    return next((what for part, what in OTHER_METHODS.items() if part in key), None)


def linears(module: str) -> tuple[str, ...]:
    """Our linears (flat) whose rows, one below the other, a LoRA's module changes."""
    name = _own_name(module)
    number = _NUMBER.search(name)
    ours = THEIRS.get(_NUMBER.sub("{}", name, count=1), (name,))
    return tuple(linear.replace("{}", number[0] if number else "") for linear in ours)


def shift_first(module: str) -> bool:
    """Whether the two halves of a module's rows stand in the other order than ours."""
    return _own_name(module) in SHIFT_FIRST


def is_modulation(linear: str) -> bool:
    """Whether a linear (flat) is one that Static-LN replaces by its table."""
    return _MODULATION.search(linear) is not None


def _own_name(module: str) -> str:
    while prefix := next((p for p in PREFIXES if module.startswith(p)), ""):
        module = module.removeprefix(prefix)
    return flat(module)
