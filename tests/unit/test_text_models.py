"""The T5 encoder and the CLIP text tower against transformers on the same saved weights.

Shapes: B batch, S tokens, D model width, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanoflux_mobile.checkpoint import load_weights, read_json, sizes
from nanoflux_mobile.families.nanoflux import CLIP_KEYS, T5_KEYS
from nanoflux_mobile.models.clip import ClipConfig, ClipText
from nanoflux_mobile.models.t5 import T5Config, T5Encoder, relative_buckets

FLOAT32 = 1e-5
"""Share of the largest value: a few layers of float32 sums in another order."""

T5_SIZES = {
    "vocab_size": 50,
    "d_model": 24,
    "d_kv": 8,
    "d_ff": 40,
    "num_layers": 3,
    "num_heads": 4,
}
T5S: dict[str, dict[str, Any]] = {
    "v1.0": {"feed_forward_proj": "relu"},
    "v1.1": {"feed_forward_proj": "gated-gelu"},
    "few buckets": {
        "feed_forward_proj": "gated-gelu",
        "relative_attention_num_buckets": 12,
        "relative_attention_max_distance": 40,
    },
    "other epsilon": {"feed_forward_proj": "relu", "layer_norm_epsilon": 1e-3},
}
END = 59
CLIP_SIZES = {
    "vocab_size": 60,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 20,
}

Filled = Callable[[nn.Module, int], nn.Module]


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= FLOAT32 * theirs.abs().max()


def ids(batch: int, length: int, vocabulary: int) -> Tensor:
    draw = torch.Generator().manual_seed(length)
    return torch.randint(0, vocabulary, (batch, length), generator=draw)


def t5_oracle(filled: Filled, **settings: Any) -> nn.Module:
    from transformers import T5Config as TheirConfig
    from transformers import T5EncoderModel

    torch.manual_seed(0)
    return filled(T5EncoderModel(TheirConfig(**T5_SIZES, **settings)), 1)


def load_t5(folder: Path) -> T5Encoder:
    cfg = sizes(T5Config, read_json(folder / "config.json"), "config.json", {})
    return load_weights(lambda: T5Encoder(cfg), folder, T5_KEYS)


@pytest.mark.parametrize("settings", T5S.values(), ids=T5S)
@pytest.mark.parametrize("length", [1, 16, 300])
def test_t5_states_are_those_of_transformers(off_initial, tmp_path, settings, length):
    reference = t5_oracle(off_initial, **settings)
    reference.save_pretrained(tmp_path)
    ids_BS = ids(2, length, T5_SIZES["vocab_size"])
    with torch.no_grad():
        expected = reference(ids_BS).last_hidden_state
    assert_close(load_t5(tmp_path)(ids_BS), expected)


def test_t5_attends_to_padding_as_flux_does(off_initial, tmp_path):
    reference = t5_oracle(off_initial, **T5S["v1.1"])
    reference.save_pretrained(tmp_path)
    model, ids_BS = load_t5(tmp_path), ids(1, 8, 50)
    padded = torch.cat((ids_BS, torch.zeros(1, 4, dtype=torch.long)), 1)
    assert (model(padded)[:, :8] - model(ids_BS)).abs().max() > 1e-2
    with torch.no_grad():
        assert_close(model(padded), reference(padded).last_hidden_state)


def test_t5_weights_with_the_tied_embedding_twice_load(off_initial, tmp_path):
    """Older files hold `encoder.embed_tokens.weight` beside `shared.weight`, which it equals."""
    from safetensors.torch import load_file, save_file

    reference = t5_oracle(off_initial, **T5S["v1.1"])
    reference.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    tied = {**state, "encoder.embed_tokens.weight": state["shared.weight"].clone()}
    save_file(tied, tmp_path / "model.safetensors")
    assert torch.equal(load_t5(tmp_path).shared.weight, state["shared.weight"])


@pytest.mark.parametrize("buckets", [8, 32, 64])
@pytest.mark.parametrize("distance", [20, 128, 500])
def test_relative_buckets_are_those_of_transformers(buckets, distance):
    from transformers.models.t5.modeling_t5 import T5Attention

    length = 700
    places = torch.arange(length)
    expected = T5Attention._relative_position_bucket(
        places[None, :] - places[:, None],
        bidirectional=True,
        num_buckets=buckets,
        max_distance=distance,
    )
    assert torch.equal(relative_buckets(length, buckets, distance), expected)


def test_the_position_bias_is_one_table_for_every_layer(off_initial, tmp_path):
    reference = t5_oracle(off_initial, **T5S["v1.1"])
    reference.save_pretrained(tmp_path)
    model = load_t5(tmp_path)
    with torch.no_grad():
        expected = reference.encoder.block[0].layer[0].SelfAttention.compute_bias(40, 40)[0]
    assert model.position_bias(40).shape == (T5_SIZES["num_heads"], 40, 40)
    assert torch.equal(model.position_bias(40), expected)


# CLIP


def clip_oracle(filled: Filled, **settings: Any) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    return filled(CLIPTextModel(CLIPTextConfig(**CLIP_SIZES, **settings)), 2)


def load_clip(folder: Path) -> ClipText:
    cfg = sizes(ClipConfig, read_json(folder / "config.json"), "config.json", {})
    return load_weights(lambda: ClipText(cfg), folder, CLIP_KEYS)


def sentences(pad: int) -> Tensor:
    """Two sentences of other lengths, each with its end token and padding after it."""
    rows = [[58, 7, 31, END], [58, *range(3, 17), END]]
    return torch.tensor([row + [pad] * (20 - len(row)) for row in rows])


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("end", [2, END], ids=["legacy end", "modern end"])
@pytest.mark.parametrize("pad", [END, 0], ids=["padded with the end", "padded with zero"])
def test_pooled_states_are_those_of_transformers(off_initial, tmp_path, activation, end, pad):
    reference = clip_oracle(off_initial, hidden_act=activation, eos_token_id=end, bos_token_id=58)
    reference.save_pretrained(tmp_path)
    ids_BS = sentences(pad)
    with torch.no_grad():
        expected = reference(ids_BS).pooler_output
    assert (expected[0] - expected[1]).abs().max() > 0.1
    assert_close(load_clip(tmp_path)(ids_BS), expected)


def test_the_end_need_not_be_the_highest_id(off_initial, tmp_path):
    """Vocabularies that grew after training have higher ids than the end token."""
    reference = clip_oracle(off_initial, eos_token_id=30, bos_token_id=58)
    reference.save_pretrained(tmp_path)
    ids_BS = torch.tensor([[58, 57, 4, 30, 0, 0], [58, 3, 30, 57, 30, 59]])
    with torch.no_grad():
        expected = reference(ids_BS).pooler_output
    assert_close(load_clip(tmp_path)(ids_BS), expected)


def test_the_activations_differ(off_initial, tmp_path):
    """Otherwise the test above could not tell one from the other."""
    outputs = []
    for activation in ("quick_gelu", "gelu"):
        folder = tmp_path / activation
        clip_oracle(off_initial, hidden_act=activation, eos_token_id=END).save_pretrained(folder)
        outputs.append(load_clip(folder)(sentences(END)))
    assert (outputs[0] - outputs[1]).abs().max() > 1e-3


@pytest.mark.parametrize("length", [3, 20])
def test_shorter_sentences_need_no_padding(off_initial, tmp_path, length):
    reference = clip_oracle(off_initial, eos_token_id=END, bos_token_id=58)
    reference.save_pretrained(tmp_path)
    ids_BS = ids(2, length, END)
    ids_BS[:, -1] = END
    with torch.no_grad():
        assert_close(load_clip(tmp_path)(ids_BS), reference(ids_BS).pooler_output)


def test_words_after_the_end_are_not_seen(off_initial, tmp_path):
    clip_oracle(off_initial, eos_token_id=END).save_pretrained(tmp_path)
    model = load_clip(tmp_path)
    assert torch.equal(model(sentences(END))[0], model(sentences(0))[0])


def test_both_spellings_of_the_keys_load(off_initial, tmp_path):
    """transformers 4 wrote every key below `text_model.`, with the position ids; 5 does neither."""
    from safetensors.torch import load_file, save_file

    clip_oracle(off_initial, eos_token_id=END).save_pretrained(tmp_path)
    expected = load_clip(tmp_path).state_dict()
    bare = {
        key.removeprefix("text_model."): tensor
        for key, tensor in load_file(tmp_path / "model.safetensors").items()
    }
    long = {f"text_model.{key}": tensor for key, tensor in bare.items()}
    long["text_model.embeddings.position_ids"] = torch.arange(20)[None]
    for state in (bare, long):
        save_file(state, tmp_path / "model.safetensors")
        found = load_clip(tmp_path).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
