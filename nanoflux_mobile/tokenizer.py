"""Tokenizers read from the files a checkpoint ships: T5's unigram, CLIP's byte pairs.

Both run on the `tokenizers` library; nothing here knows a vocabulary.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.storage import write_file

CLIP_WORDS = (
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d"
    r"|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
)
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"


def clip_tokenizer(vocab: dict[str, int], merges: list[tuple[str, str]]) -> Tokenizer:
    """CLIP's tokenizer from its two tables."""
    tokenizer = Tokenizer(models.BPE(vocab, merges, end_of_word_suffix="</w>", unk_token=CLIP_END))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_WORDS), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{CLIP_START} $A {CLIP_END}",
        special_tokens=[(CLIP_START, vocab[CLIP_START]), (CLIP_END, vocab[CLIP_END])],
    )
    return tokenizer


def load_tokenizer(folder: Path) -> Tokenizer:
    """The tokenizer of a folder: tokenizer.json, or CLIP's vocab.json with merges.txt."""
    try:
        if (folder / "tokenizer.json").is_file():
            tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
            # One saved after use keeps the length of its last call, and would cut prompts unseen.
            tokenizer.no_truncation()
            tokenizer.no_padding()
            return tokenizer
        vocab = json.loads((folder / "vocab.json").read_text("utf-8"))
        lines = (folder / "merges.txt").read_text("utf-8").splitlines()
        pairs = [line.split() for line in lines if line and not line.startswith("#version")]
        return clip_tokenizer(vocab, [(a, b) for a, b in pairs])
    except FileNotFoundError as missing:
        raise InputError(
            f"{folder} holds no tokenizer: expected tokenizer.json, or vocab.json and merges.txt"
        ) from missing
    except Exception as broken:  # the tokenizers library raises bare Exception on a bad file
        raise InputError(f"the tokenizer in {folder} cannot be read: {broken}") from broken


def encode(tokenizer: Tokenizer, text: str, length: int, pad: str) -> np.ndarray:
    """Ids of `text`, int32 (1, length), filled up with the token `pad` or cut before its end."""
    pad_id = tokenizer.token_to_id(pad)
    if pad_id is None:
        raise InputError(f"the tokenizer has no padding token {pad!r}")
    ids = tokenizer.encode(text).ids
    kept = ids if len(ids) <= length else [*ids[: length - 1], ids[-1]]
    return np.array([kept + [pad_id] * (length - len(kept))], np.int32)


def encode_prompt(tokenizer: Tokenizer, prompt: str, length: int, pad: str) -> np.ndarray:
    """Ids of a prompt that the text encoder can read whole, int32 (1, length).

    InputError for one that is empty, no text, longer than `length` tokens, or holds characters the
    vocabulary does not have: a picture of something else would be the wrong answer.
    """
    if not prompt.strip():
        raise InputError("the prompt is empty; say what to draw, such as 'a red circle'")
    if re.search("[\ud800-\udfff]", prompt):  # how Python passes on bytes that are no text
        raise InputError("the prompt is not text in UTF-8; type it again")
    found = tokenizer.encode(prompt)
    if len(found.ids) > length:
        shown = prompt if len(prompt) <= 40 else prompt[:37] + "..."
        raise InputError(
            f"the prompt {shown!r} has {len(found.ids)} tokens and this model reads {length}; "
            "shorten it"
        )
    unknown = tokenizer.token_to_id("<unk>")
    spans = [span for id_, span in zip(found.ids, found.offsets, strict=True) if id_ == unknown]
    if unknown is not None and spans:
        strange = "".join(dict.fromkeys(prompt[a:b].strip() for a, b in spans))
        raise InputError(f"the prompt holds {strange!r}, which this model's vocabulary lacks")
    return encode(tokenizer, prompt, length, pad)


def save_clip(tokenizer: Tokenizer, folder: Path, length: int) -> None:
    """Write a CLIP tokenizer as its two tables, the form FLUX checkpoints ship."""
    model = json.loads(tokenizer.to_str())["model"]
    lines = [f"{a} {b}" for a, b in model["merges"]]
    write_file(folder / "vocab.json", json.dumps(model["vocab"], ensure_ascii=False))
    write_file(folder / "merges.txt", "\n".join(["#version: 0.2", *lines, ""]))
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length}
    write_file(folder / "tokenizer_config.json", json.dumps(config))
