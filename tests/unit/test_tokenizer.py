"""Token ids against transformers (CLIP) and sentencepiece (T5), and which prompts are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from nanoflux_mobile.distill.tiny_tokenizers import (
    captions,
    train_clip,
    train_unigram,
    write_tokenizers,
)
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.tokenizer import (
    CLIP_END,
    CLIP_START,
    clip_tokenizer,
    encode,
    encode_prompt,
    load_tokenizer,
    save_clip,
)

REAL_CLIP = Path(__file__).parents[3] / "shared" / "data" / "clip"
"""CLIP's released vocabulary beside the checkout; it is not part of the repository."""

WORDS = [
    "a red circle",
    "Two RED circles, and a blue square!",
    "don't you've we'll it's I'm they're he'd",
    "  spaces \t and\nlines   everywhere  ",
    "3 apples 42 pears 1999",
    "naïve café déjà-vu",
    "e\u0301 composed or not é",
    "日本語のテキスト",
    "emoji 🎨🖌️ and flags 🇩🇪",
    "ﬁne ligatures ﬂow, ½ and ①",
    "snake_case and kebab-case and a/b",
    "...!!!???",
    "''quoted'' \"twice\"",
    "ΑΒΓ straße İstanbul",
    "zero\u200bwidth and\u00a0hard\u3000wide spaces",
    "</w> is part of no word",
    "a" * 300,
    "",
    " ",
]


# CLIP


def save_tables(folder: Path, texts: list[str], size: int) -> Path:
    vocab, merges = train_clip(texts, size)
    save_clip(clip_tokenizer(vocab, merges), folder, 77)
    return folder


@dataclass(frozen=True)
class Clip:
    """Our tokenizer and transformers', of one folder."""

    folder: Path
    ours: Tokenizer
    theirs: Callable[..., dict[str, list[int]]]


@pytest.fixture(scope="module", params=["trained", "released"])
def clip(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Clip:
    from transformers import CLIPTokenizer

    if request.param == "trained":
        folder = save_tables(tmp_path_factory.mktemp("clip"), [*captions(0, 300), *WORDS], 700)
    elif REAL_CLIP.is_dir():
        folder = REAL_CLIP
    else:
        pytest.skip("CLIP's released vocabulary is not beside the checkout")
    return Clip(folder, load_tokenizer(folder), CLIPTokenizer.from_pretrained(folder))


@pytest.mark.parametrize("text", WORDS)
def test_clip_ids_are_those_of_transformers(clip, text):
    assert clip.ours.encode(text).ids == clip.theirs(text)["input_ids"]


# A prompt that spells out a special token is the one place where we differ on purpose: to us it is
# text like any other.
free_text = st.text(max_size=40).filter(lambda text: "<|" not in text)


@given(text=free_text | st.lists(st.sampled_from(WORDS), max_size=4).map("".join))
def test_clip_ids_of_any_text_are_those_of_transformers(clip, text):
    assert clip.ours.encode(text).ids == clip.theirs(text)["input_ids"]


@pytest.mark.parametrize("length", [4, 12, 77])
def test_clip_ids_are_filled_or_cut_as_flux_pipeline_does(clip, length):
    for text in WORDS:
        expected = clip.theirs(text, padding="max_length", max_length=length, truncation=True)
        ids = encode(clip.ours, text, length, CLIP_END)
        assert (ids.dtype, ids.shape) == (np.int32, (1, length))
        assert ids[0].tolist() == expected["input_ids"]


def test_a_prompt_cannot_spell_a_special_token(clip):
    ends = [clip.ours.token_to_id(token) for token in (CLIP_START, CLIP_END)]
    ids = clip.ours.encode(f"a {CLIP_END} b {CLIP_START}").ids
    assert [i for i in ids if i in ends] == ends


def test_saved_tables_give_the_same_ids_here_and_in_transformers(clip, tmp_path):
    from transformers import CLIPTokenizer

    save_clip(clip.ours, tmp_path / "out", 33)
    again, theirs = (
        load_tokenizer(tmp_path / "out"),
        CLIPTokenizer.from_pretrained(tmp_path / "out"),
    )
    assert theirs.model_max_length == 33
    for text in WORDS:
        assert again.encode(text).ids == clip.ours.encode(text).ids == theirs(text)["input_ids"]


def test_trained_tables_have_the_order_of_clip():
    vocab, merges = train_clip(captions(0, 200), 600)
    tokens = sorted(vocab, key=vocab.__getitem__)
    assert [vocab[token] for token in tokens] == list(range(len(vocab)))
    assert [token + "</w>" for token in tokens[:256]] == tokens[256:512]
    assert tokens[-2:] == [CLIP_START, CLIP_END]
    assert merges
    assert all(a + b in vocab for a, b in merges)


# T5


@dataclass(frozen=True)
class Unigram:
    """Our tokenizer and the sentencepiece model it was made from."""

    ours: Tokenizer
    theirs: Callable[[str], list[int]]


@pytest.fixture(scope="module")
def unigram() -> Unigram:
    import sentencepiece

    trained = []
    original = sentencepiece.SentencePieceTrainer.train

    def train(**options: object) -> None:
        original(**options)
        trained.append(options["model_writer"].getvalue())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentencepiece.SentencePieceTrainer, "train", train)
        ours = train_unigram(captions(0, 600), 200)
    oracle = sentencepiece.SentencePieceProcessor(model_proto=trained[0])
    return Unigram(ours, lambda text: [*oracle.encode(text), oracle.eos_id()])


NORMAL = [
    *captions(7, 20),
    "a red  circle",
    " a red circle",
    "a red circle   ",
    "\ta red\ncircle\u00a0",
    "ﬁve ﬂat circles",
    "\uff52\uff45\uff44 \uff43\uff49\uff52\uff43\uff4c\uff45\uff53",
    "a\u3000red\u2003circle",
    "a\u200bred\ufeff circle",
    "ﬀ ﬃ ﬄ ĳ ǆ ℡ ™ ½ ① ² ㎏ …",
    "x\x07y",
    'The Red, "big" circle (two?) don\'t!',
    "e\u0301 é Å Å",
    "",
    "   ",
]


@pytest.mark.parametrize("text", NORMAL)
def test_unigram_ids_are_those_of_sentencepiece(unigram, text):
    assert unigram.ours.encode(text).ids == unigram.theirs(text)


ALPHABET = "abcdefghijklmnopqrstuvwxyzABC0123456789.,;:!?'\"()- \t\n\u00a0\u3000ﬁﬂﬀ½①\uff41\uff11…"


@given(text=st.text(st.sampled_from(ALPHABET), max_size=40))
def test_unigram_ids_of_any_known_text_are_those_of_sentencepiece(unigram, text):
    assert unigram.ours.encode(text).ids == unigram.theirs(text)


def test_unigram_ids_begin_as_those_of_t5(unigram):
    names = ["<pad>", "</s>", "<unk>"]
    assert [unigram.ours.token_to_id(name) for name in names] == [0, 1, 2]
    ids = encode(unigram.ours, "a red circle", 16, "<pad>")[0].tolist()
    assert ids[: ids.index(1) + 1] == unigram.theirs("a red circle")
    assert set(ids[ids.index(1) + 1 :]) == {0}


def test_a_saved_unigram_is_the_same_and_transformers_reads_it(unigram, tmp_path):
    from transformers import PreTrainedTokenizerFast

    unigram.ours.save(str(tmp_path / "tokenizer.json"))
    again = load_tokenizer(tmp_path)
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "tokenizer.json"))
    for text in NORMAL:
        ids = unigram.ours.encode(text).ids
        assert again.encode(text).ids == ids == theirs(text)["input_ids"]


def test_the_file_has_the_form_phones_read(unigram, tmp_path):
    unigram.ours.save(str(tmp_path / "tokenizer.json"))
    data = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    assert data["model"]["type"] == "Unigram"
    assert data["model"]["unk_id"] == 2
    assert data["normalizer"]["normalizers"][0]["type"] == "Precompiled"
    assert data["pre_tokenizer"]["type"] == "Metaspace"


def test_both_tokenizers_of_a_family_are_written_and_load(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "nanoflux_mobile.distill.tiny_tokenizers.captions", lambda seed, count: captions(seed, 300)
    )
    write_tokenizers(tmp_path, seed=3)
    for name, end in (("tokenizer", CLIP_END), ("tokenizer_2", "</s>")):
        tokenizer = load_tokenizer(tmp_path / name)
        ids = tokenizer.encode("a red circle").ids
        assert ids[-1] == tokenizer.token_to_id(end)


# Prompts


def test_a_prompt_that_fits_is_encoded_whole(unigram):
    prompt = "two red circles on a blue background"
    ids = encode_prompt(unigram.ours, prompt, 24, "<pad>")
    assert (ids.dtype, ids.shape) == (np.int32, (1, 24))
    expected = unigram.theirs(prompt)
    assert ids[0].tolist() == expected + [0] * (24 - len(expected))


def test_the_longest_prompt_that_fits_is_taken_and_one_more_word_is_not(unigram):
    count = len(unigram.theirs("a red circle"))
    ids = encode_prompt(unigram.ours, "a red circle", count, "<pad>")
    assert ids[0].tolist() == unigram.theirs("a red circle")
    with pytest.raises(InputError, match=rf"has {count} tokens and this model reads {count - 1}"):
        encode_prompt(unigram.ours, "a red circle", count - 1, "<pad>")


def test_a_long_prompt_is_quoted_short(unigram):
    with pytest.raises(InputError, match=r"shorten it$") as caught:
        encode_prompt(unigram.ours, "a red circle " * 500, 16, "<pad>")
    assert len(str(caught.value)) < 150


@pytest.mark.parametrize("prompt", ["", " ", "\n\t", "\u3000"])
def test_an_empty_prompt_is_refused(unigram, prompt):
    with pytest.raises(InputError, match="the prompt is empty"):
        encode_prompt(unigram.ours, prompt, 16, "<pad>")


@pytest.mark.parametrize(
    ("prompt", "strange"),
    [("a 日本 circle", "日本"), ("🎨", "🎨"), ("red ж and ж circle", "ж"), ("a §ж circle", "§ж")],
)
def test_characters_outside_the_vocabulary_are_refused_by_name(unigram, prompt, strange):
    with pytest.raises(InputError, match=rf"holds '{strange}', which"):
        encode_prompt(unigram.ours, prompt, 16, "<pad>")


def test_bytes_that_are_no_text_are_refused(unigram):
    for prompt in ("a \udcff circle", "\ud800"):
        with pytest.raises(InputError, match="not text in UTF-8") as caught:
            encode_prompt(unigram.ours, prompt, 16, "<pad>")
        str(caught.value).encode()


@given(prompt=st.text(max_size=60))
def test_any_prompt_is_encoded_whole_or_refused(unigram, prompt):
    try:
        ids = encode_prompt(unigram.ours, prompt, 16, "<pad>")
    except InputError:
        return
    assert (
        ids[0].tolist()[: len(unigram.ours.encode(prompt).ids)] == unigram.ours.encode(prompt).ids
    )
    assert 2 not in ids


def test_a_padding_token_nobody_knows_is_named(unigram):
    with pytest.raises(InputError, match=r"no padding token '<nothing>'"):
        encode(unigram.ours, "a red circle", 8, "<nothing>")
