"""A random FLUX-shaped checkpoint, written by diffusers and transformers once for all tests.

diffusers takes seconds to import, so nothing here loads it before a test asks.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn

if TYPE_CHECKING:
    from diffusers import FluxPipeline

TEXT_TOKENS, CLIP_TOKENS = 12, 16
LATENT_CHANNELS, PATCH, SIDE = 4, 2, 16
T5_WIDTH, CLIP_WIDTH = 24, 20
CLIP_START, CLIP_END = "<|startoftext|>", "<|endoftext|>"
WORDS = ("a", "red", "blue", "circle", "square", "and", "of", "two", "left", "circles")


@dataclass(frozen=True)
class Flux:
    """A checkpoint folder and the pipeline that wrote it."""

    folder: Path
    pipeline: FluxPipeline


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Move every weight off its initial value, so that no zero bias or unit norm hides a fault."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=draw))
    return module.eval().requires_grad_(False)


def write_unigram(path: Path) -> None:
    """A T5-style tokenizer.json: words, letters and the three special tokens T5 begins with."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0)]
    pieces += [(f"▁{word}", -1.0) for word in WORDS] + [(letter, -5.0) for letter in letters]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    tokenizer.save(str(path))


def write_byte_pairs(folder: Path) -> int:
    """CLIP's vocab.json and merges.txt with a handful of merges; returns the vocabulary size."""
    folder.mkdir(parents=True)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("r", "e"), ("re", "d</w>"), ("c", "i"), ("ci", "r"), ("a", "n"), ("an", "d</w>")]
    tokens = letters + [f"{letter}</w>" for letter in letters] + [a + b for a, b in merges]
    vocab = {token: i for i, token in enumerate([*tokens, CLIP_START, CLIP_END])}
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), "utf-8")
    lines = ["#version: 0.2", *(f"{a} {b}" for a, b in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), "utf-8")
    return len(vocab)


def _text_parts(root: Path) -> dict[str, object]:
    """Both text towers with their tokenizers, under the names FluxPipeline gives them."""
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPTokenizer,
        PreTrainedTokenizerFast,
        T5Config,
        T5EncoderModel,
    )

    words = write_byte_pairs(root / "clip")
    write_unigram(root / "tokenizer.json")
    clip = CLIPTextConfig(
        vocab_size=words,
        hidden_size=CLIP_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=CLIP_TOKENS,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
    )
    unigram = PreTrainedTokenizerFast(
        tokenizer_file=str(root / "tokenizer.json"),
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=TEXT_TOKENS,
    )
    t5 = T5Config(
        vocab_size=len(unigram),
        d_model=T5_WIDTH,
        d_kv=8,
        d_ff=32,
        num_layers=2,
        num_heads=3,
        feed_forward_proj="gated-gelu",
    )
    return {
        "text_encoder": randomize(CLIPTextModel(clip), 1),
        "tokenizer": CLIPTokenizer.from_pretrained(root / "clip", model_max_length=CLIP_TOKENS),
        "text_encoder_2": randomize(T5EncoderModel(t5), 2),
        "tokenizer_2": unigram,
    }


def _image_parts() -> dict[str, object]:
    from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        in_channels=LATENT_CHANNELS * PATCH**2,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=T5_WIDTH,
        pooled_projection_dim=CLIP_WIDTH,
        axes_dims_rope=(4, 6, 6),
    )
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=4,
        sample_size=SIDE,
        scaling_factor=0.3611,
        shift_factor=0.1159,
        use_quant_conv=False,
        use_post_quant_conv=False,
    )
    return {
        "transformer": randomize(transformer, 3),
        "vae": randomize(vae, 4),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
    }


@pytest.fixture(scope="session")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Flux:
    """The checkpoint; do not write into its folder. As in FLUX, CLIP's tokenizer is two tables."""
    from diffusers import FluxPipeline

    root = tmp_path_factory.mktemp("flux")
    torch.manual_seed(0)
    pipeline = FluxPipeline(**_text_parts(root), **_image_parts())
    pipeline.set_progress_bar_config(disable=True)
    folder = root / "checkpoint"
    pipeline.save_pretrained(folder)
    (folder / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(root / "clip" / name, folder / "tokenizer" / name)
    return Flux(folder, pipeline)


@pytest.fixture
def flux_copy(flux: Flux, tmp_path: Path) -> Path:
    """The checkpoint folder in a copy of its own, for a test to break."""
    return Path(shutil.copytree(flux.folder, tmp_path / "checkpoint"))


@pytest.fixture(scope="session")
def off_initial() -> Callable[[nn.Module, int], nn.Module]:
    """`randomize`, for tests that make their own modules."""
    return randomize
