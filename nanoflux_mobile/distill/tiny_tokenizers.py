"""Train the tiny family's two tokenizers on captions, in the file forms real checkpoints use."""

from __future__ import annotations

import io
import itertools
import json
import string
from pathlib import Path

import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from tokenizers.trainers import BpeTrainer

from nanoflux_mobile.data.captions import training_examples
from nanoflux_mobile.tokenizer import CLIP_END, CLIP_START, clip_tokenizer


def captions(seed: int, count: int) -> list[str]:
    """The first `count` captions of a seed."""
    return [text for text, _, _ in itertools.islice(training_examples(seed), count)]


def train_unigram(texts: list[str], size: int) -> Tokenizer:
    """A T5-style unigram tokenizer: nmt_nfkc normaliser, Metaspace, `</s>` at the end."""
    # A piece is only a candidate if two different words hold it, hence each word with an ending.
    endings = [word + end for word in sorted({w for t in texts for w in t.split()}) for end in "sn"]
    extra = endings + list(string.ascii_letters + string.digits + ".,;:!?'\"()-")
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts + extra),
        model_writer=model,
        model_type="unigram",
        vocab_size=size,
        normalization_rule_name="nmt_nfkc",
        hard_vocab_limit=False,
        character_coverage=1.0,
        pad_id=0,
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        pad_piece="<pad>",
    )
    proto = sentencepiece_model_pb2.ModelProto.FromString(model.getvalue())
    pieces = [(piece.piece, piece.score) for piece in proto.pieces]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Precompiled(proto.normalizer_spec.precompiled_charsmap),
            normalizers.Strip(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.add_special_tokens(["<pad>", "</s>", "<unk>"])
    return tokenizer


def train_clip(texts: list[str], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP-style byte-pair tables: a byte alphabet twice, merges, the two special tokens last."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {c: i for i, c in enumerate(alphabet + [c + "</w>" for c in alphabet])}
    shape = clip_tokenizer({**vocab, CLIP_START: 512, CLIP_END: 513}, [])
    trainer = BpeTrainer(
        vocab_size=size, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    shape.train_from_iterator(texts, trainer)
    merges = [(a, b) for a, b in json.loads(shape.to_str())["model"]["merges"]]
    for a, b in merges:
        vocab.setdefault(a + b, len(vocab))
    return {**vocab, CLIP_START: len(vocab), CLIP_END: len(vocab) + 1}, merges


def write_tokenizers(root: Path, seed: int = 0) -> None:
    """Write `tokenizer/` (CLIP tables) and `tokenizer_2/` (unigram) under a checkpoint folder."""
    texts = captions(seed, 20_000)
    (root / "tokenizer_2").mkdir(parents=True, exist_ok=True)
    train_unigram(texts, 200).save(str(root / "tokenizer_2" / "tokenizer.json"))
    vocab, merges = train_clip(texts, 640)
    (root / "tokenizer").mkdir(parents=True, exist_ok=True)
    (root / "tokenizer" / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False))
    lines = "\n".join(f"{a} {b}" for a, b in merges)
    (root / "tokenizer" / "merges.txt").write_text(f"#version: 0.2\n{lines}\n")
