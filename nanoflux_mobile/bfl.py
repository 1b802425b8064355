"""The tensor names of Black Forest Labs' own FLUX files, translated to ours and back.

One table serves both directions. Where they fuse projections that we keep apart, ours are the rows
of theirs; reading ours is a view, reading theirs stacks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.weights import Stored, Weights, rows, stacked


@dataclass(frozen=True)
class Rule:
    """One tensor of theirs and what holds it here; `{}` is the number of a block.

    Their rows are cut in proportion to `shares`, one cut for each of `ours`. A single name for two
    cuts means that it holds them the other way round.
    """

    theirs: str
    ours: tuple[str, ...]
    shares: tuple[int, ...] = (1,)


def _linear(theirs: str, *ours: str, shares: tuple[int, ...] = ()) -> tuple[Rule, Rule]:
    cuts = shares or (1,) * len(ours)
    weight, bias = (
        Rule(f"{theirs}.{kind}", tuple(f"{name}.{kind}" for name in ours), cuts)
        for kind in ("weight", "bias")
    )
    return weight, bias


def _embedder(theirs: str, ours: str) -> tuple[Rule, ...]:
    ours = f"time_text_embed.{ours}"
    return (
        *_linear(f"{theirs}.in_layer", f"{ours}.linear_1"),
        *_linear(f"{theirs}.out_layer", f"{ours}.linear_2"),
    )


_DOUBLE, _SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}"


def _stream(
    theirs: str, qkv: Sequence[str], norms: Sequence[str], rest: Sequence[str]
) -> list[Rule]:
    """The image or the text half of a double block."""
    block = f"double_blocks.{{}}.{theirs}"
    attention, (modulation, out, mlp) = f"{_DOUBLE}.attn", rest
    scales = zip(("query", "key"), norms, strict=True)
    return [
        *_linear(f"{block}_mod.lin", f"{_DOUBLE}.{modulation}.linear"),
        *_linear(f"{block}_attn.qkv", *(f"{attention}.{name}" for name in qkv)),
        *_linear(f"{block}_attn.proj", f"{attention}.{out}"),
        *_linear(f"{block}_mlp.0", f"{_DOUBLE}.{mlp}.net.0.proj"),
        *_linear(f"{block}_mlp.2", f"{_DOUBLE}.{mlp}.net.2"),
        *(
            Rule(f"{block}_attn.norm.{kind}_norm.scale", (f"{attention}.{norm}.weight",))
            for kind, norm in scales
        ),
    ]


TABLE: tuple[Rule, ...] = (
    *_linear("img_in", "x_embedder"),
    *_linear("txt_in", "context_embedder"),
    *_embedder("time_in", "timestep_embedder"),
    *_embedder("vector_in", "text_embedder"),
    *_embedder("guidance_in", "guidance_embedder"),
    *_stream(
        "img",
        ("to_q", "to_k", "to_v"),
        ("norm_q", "norm_k"),
        ("norm1", "to_out.0", "ff"),
    ),
    *_stream(
        "txt",
        ("add_q_proj", "add_k_proj", "add_v_proj"),
        ("norm_added_q", "norm_added_k"),
        ("norm1_context", "to_add_out", "ff_context"),
    ),
    *_linear("single_blocks.{}.modulation.lin", f"{_SINGLE}.norm.linear"),
    *_linear(
        "single_blocks.{}.linear1",
        *(f"{_SINGLE}.attn.{name}" for name in ("to_q", "to_k", "to_v")),
        f"{_SINGLE}.proj_mlp",
        shares=(1, 1, 1, 4),
    ),
    *_linear("single_blocks.{}.linear2", f"{_SINGLE}.proj_out"),
    Rule("single_blocks.{}.norm.query_norm.scale", (f"{_SINGLE}.attn.norm_q.weight",)),
    Rule("single_blocks.{}.norm.key_norm.scale", (f"{_SINGLE}.attn.norm_k.weight",)),
    *_linear("final_layer.linear", "proj_out"),
    # Theirs is shift above scale, diffusers' and so ours scale above shift.
    *_linear("final_layer.adaLN_modulation.1", "norm_out.linear", shares=(1, 1)),
)
BY_THEIRS = {rule.theirs: rule for rule in TABLE}
BY_OURS = {name: rule for rule in TABLE for name in rule.ours}
_NUMBERED = re.compile(
    r"((?:double|single|transformer|single_transformer)_blocks)\.(0|[1-9]\d{0,4})\.(.+)", re.ASCII
)


def _pattern(key: str) -> tuple[str, str]:
    """A key with `{}` for the number of its block, and that number."""
    if match := _NUMBERED.fullmatch(key):
        return f"{match[1]}.{{}}.{match[3]}", match[2]
    return ("" if "{" in key else key), ""


def is_bfl(stored: Weights) -> bool:
    """Whether there is a tensor whose name only BFL's layout has."""
    return any(_pattern(name)[0] in BY_THEIRS for name in stored)


def from_bfl(stored: Weights) -> Weights:
    """Their tensors under our names; names the table does not have stay as they are.

    InputError for a fused tensor whose rows do not divide, and for two tensors of one name.
    """
    found: dict[str, Stored] = {}
    for key, tensor in stored.items():
        pattern, number = _pattern(key)
        rule = BY_THEIRS.get(pattern)
        names = _names(rule.ours, number) if rule else [key]
        pieces = _cuts(key, tensor, rule) if rule else [tensor]
        for name, piece in zip(names, pieces, strict=True):
            if name in found:
                raise InputError(f"{key} is a second {name}; keep one of them")
            found[name] = piece
    return found


def to_bfl(weights: Weights) -> Weights:
    """Our tensors under their names, the inverse of `from_bfl`.

    InputError if a part of a fused tensor is missing, or for rows that do not divide.
    """
    found: dict[str, Stored] = {}
    for name, tensor in weights.items():
        pattern, number = _pattern(name)
        if (rule := BY_OURS.get(pattern)) is None:
            found[name] = tensor
            continue
        parts = _names(rule.ours, number)
        if missing := [part for part in parts if part not in weights]:
            raise InputError(f"{missing[0]} is missing beside {name}; BFL's layout fuses them")
        pieces = [piece for part in parts for piece in _halves(part, weights[part], rule)]
        found[rule.theirs.format(number)] = pieces[0] if len(pieces) == 1 else stacked(pieces)
    return found


def _names(patterns: Sequence[str], number: str) -> list[str]:
    return [pattern.format(number) for pattern in patterns]


def _cuts(key: str, tensor: Stored, rule: Rule) -> list[Stored]:
    """What each of the rule's `ours` holds of their tensor."""
    if len(rule.ours) == 1:
        pieces = _halves(key, tensor, rule)
        return [pieces[0] if len(pieces) == 1 else stacked(pieces)]
    return _split(key, tensor, rule.shares)


def _halves(key: str, tensor: Stored, rule: Rule) -> list[Stored]:
    """A tensor itself, or its two halves the other way round if the rule says so."""
    turned = len(rule.ours) < len(rule.shares)
    return _split(key, tensor, rule.shares)[::-1] if turned else [tensor]


def _split(key: str, tensor: Stored, shares: tuple[int, ...]) -> list[Stored]:
    height = tensor.shape[0] if tensor.shape else 0
    unit, rest = divmod(height, sum(shares))
    if rest or not tensor.shape:
        told = " + ".join(map(str, shares))
        raise InputError(f"{key} has {height} rows, which do not divide as {told}")
    bounds = accumulate(shares, lambda end, share: end + unit * share, initial=0)
    return [rows(tensor, start, stop) for start, stop in pairwise(bounds)]
