"""The T5 encoder and the CLIP text tower against transformers on the same saved weights.

Their mobile forms are compared with them here too.

Shapes: B batch, S tokens, D model width, P width given out, H heads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx

from nanoflux_export.mobile.clip_text import MobileClip, MobileClipStates
from nanoflux_export.mobile.text_encoder import (
    BiasedBlock,
    MobileEmbedding,
    MobileEnding,
    MobileTextEncoder,
)
from nanoflux_mobile.checkpoint import load_weights, read_json, sizes
from nanoflux_mobile.families.nanoflux import CLIP_KEYS, T5_KEYS
from nanoflux_mobile.models.clip import ClipConfig, ClipText
from nanoflux_mobile.models.t5 import T5Config, T5Encoder, position_bias, relative_buckets
from nanoflux_mobile.parity import psnr_db

FLOAT32 = 1e-5
"""Share of the largest value: a few layers of float32 sums in another order."""
SAME_DB = 100.0
"""A mobile form of the same float32 network: only the order of sums differs."""

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


def columns(x_BSD: Tensor) -> Tensor:
    """Rows of tokens in the layout of phones, (B, D, 1, S)."""
    return x_BSD.transpose(1, 2)[:, :, None]


def decibels(actual: Tensor, expected: Tensor) -> float:
    return psnr_db(actual.detach().numpy(), expected.detach().numpy())


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def traced(module: nn.Module, *inputs: Tensor) -> tuple[set[str], int]:
    """The operations a module runs, and the highest rank of any tensor in it."""
    nodes = make_fx(module)(*inputs).graph.nodes
    calls = [node for node in nodes if node.op == "call_function"]
    made = [node.meta["val"] for node in calls if isinstance(node.meta["val"], Tensor)]
    return {node.target.__name__.partition(".")[0] for node in calls}, max(v.ndim for v in made)


NOT_ON_PHONES = {
    "native_layer_norm",
    "_scaled_dot_product_flash_attention_for_cpu",
    "index",
    "eq",
    "argmax",
    "addmm",
    "masked_fill",
}


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


PROJECTED = T5Config(50, 24, 8, 40, 3, 4, 32, 128, 1e-6, "relu", projection_width=28)


def test_a_projection_follows_the_last_norm(off_initial, tmp_path):
    reference = t5_oracle(off_initial, feed_forward_proj="relu")
    model = off_initial(T5Encoder(PROJECTED), 3)
    model.load_state_dict(reference.state_dict(), strict=False)
    ids_BS, (fc1, fc2) = ids(2, 9, 50), model.projection.children()
    with torch.no_grad():
        x_BSD = reference(ids_BS).last_hidden_state
        expected = F.linear(F.linear(x_BSD, fc1.weight, fc1.bias).relu(), fc2.weight, fc2.bias)
        states = model(ids_BS)
    assert states.shape == (2, 9, 28)
    assert PROJECTED.states_width == 28
    assert (states - expected).abs().max() > 1e-2, "GELU, not ReLU"
    gelu = nn.Sequential(fc1, nn.GELU("tanh"), fc2)
    with torch.no_grad():
        assert_close(states, gelu(x_BSD))


def test_without_a_projection_the_states_are_the_encoders():
    cfg = T5Config(50, 24, 8, 40, 1, 4, 32, 128, 1e-6, "relu")
    assert cfg.states_width == 24
    assert T5Encoder(cfg).projection is None
    with pytest.raises(ValueError, match="projection_width -1 is below 0"):
        T5Config(50, 24, 8, 40, 1, 4, 32, 128, 1e-6, "relu", -1)


LARGE = {"d_model": 1024, "d_kv": 64, "num_layers": 24, "num_heads": 16, "vocab_size": 32128}
XXL = {"d_model": 4096, "d_kv": 64, "num_layers": 24, "num_heads": 64, "vocab_size": 32128}
T5_COUNTS: dict[str, tuple[dict[str, Any], float]] = {
    "Large v1.0": ({**LARGE, "d_ff": 4096, "feed_forward_proj": "relu"}, 334.9),
    "Large v1.1": ({**LARGE, "d_ff": 2816, "feed_forward_proj": "gated-gelu"}, 341.2),
    "XXL v1.1": ({**XXL, "d_ff": 10240, "feed_forward_proj": "gated-gelu"}, 4762.3),
}
"""Sizes of published encoders, and their parameters in millions."""


@pytest.mark.parametrize(("settings", "millions"), T5_COUNTS.values(), ids=T5_COUNTS)
def test_real_t5s_have_the_tensors_of_transformers(settings, millions):
    from transformers import T5Config as TheirConfig
    from transformers import T5EncoderModel

    config = TheirConfig(**settings)
    with torch.device("meta"):
        theirs = T5EncoderModel(config)
        cfg = sizes(T5Config, {**config.to_dict(), **settings}, "config.json", {})
        ours = T5Encoder(cfg)
    tied = {"encoder.embed_tokens.weight"}
    expected = {name: shape for name, shape in shapes(theirs).items() if name not in tied}
    assert shapes(ours) == expected
    assert round(parameters(ours) / 1e6, 1) == millions


def test_the_students_text_encoder_is_t5_large_and_21_million_more():
    settings, _ = T5_COUNTS["Large v1.0"]
    cfg = T5Config(32128, 1024, 64, 4096, 24, 16, 32, 128, 1e-6, "relu", projection_width=4096)
    assert {key: getattr(cfg, key) for key in settings} == settings
    with torch.device("meta"):
        model = T5Encoder(cfg)
    assert parameters(model.projection) == 4096 * (1024 + 1) + 4096 * (4096 + 1) == 20_979_712
    assert parameters(model) == 334_939_648 + 20_979_712


T5_MOBILES = {
    "v1.0 projected": PROJECTED,
    "v1.1": T5Config(50, 24, 8, 40, 3, 4, 8, 20, 1e-6, "gated-gelu"),
}


@pytest.mark.parametrize("cfg", T5_MOBILES.values(), ids=T5_MOBILES)
def test_the_mobile_encoder_is_the_encoder(off_initial, cfg):
    model, ids_BS = off_initial(T5Encoder(cfg), 4), ids(1, 30, 50)
    states = MobileTextEncoder(model, 30)(ids_BS.int())
    assert states.shape == (1, cfg.states_width, 1, 30)
    assert decibels(states, columns(model(ids_BS))) >= SAME_DB


@pytest.mark.parametrize("cfg", T5_MOBILES.values(), ids=T5_MOBILES)
def test_pieces_in_a_row_are_the_mobile_encoder(off_initial, cfg):
    """What an exporter does that never holds more than one layer."""
    model, ids_BS = off_initial(T5Encoder(cfg), 4), ids(1, 30, 50).int()
    table = model.encoder.block[0].layer[0].SelfAttention.relative_attention_bias.weight
    bias = position_bias(cfg, table, 30)[None]
    blocks = [BiasedBlock(block, bias) for block in model.encoder.block]
    x = MobileEmbedding(model.shared)(ids_BS)
    for block in blocks:
        x = block(x)
    states = MobileEnding(model.encoder.final_layer_norm, model.projection)(x)
    assert torch.equal(states, MobileTextEncoder(model, 30)(ids_BS))
    assert len({tuple(shapes(block).items()) for block in blocks}) == 1, "one stamp for all"
    assert all(torch.equal(block.bias, bias) for block in blocks)


def test_mobile_pieces_of_t5_stay_within_what_phones_run(off_initial):
    model = off_initial(T5Encoder(PROJECTED), 4)
    ops, rank = traced(MobileTextEncoder(model, 30), ids(1, 30, 50).int())
    assert (rank, ops & NOT_ON_PHONES) == (4, set())


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


# CLIP with token states and a projection

PROJECTION = 28


def projected_oracle(filled: Filled, **settings: Any) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    options = {"eos_token_id": END, "bos_token_id": 58, "projection_dim": PROJECTION}
    config = CLIPTextConfig(**{**CLIP_SIZES, **options, **settings})
    torch.manual_seed(0)
    return filled(CLIPTextModelWithProjection(config), 2)


def projected(reference: nn.Module) -> ClipText:
    config = reference.config.to_dict()
    cfg = sizes(ClipConfig, {**config, "projection_width": PROJECTION}, "config.json", {})
    model = ClipText(cfg).eval().requires_grad_(False)
    model.load_state_dict(reference.state_dict())
    return model


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("pad", [END, 0])
def test_states_are_those_of_transformers_with_projection(off_initial, activation, layers, pad):
    reference = projected_oracle(off_initial, hidden_act=activation, num_hidden_layers=layers)
    model, ids_BS = projected(reference), sentences(pad)
    with torch.no_grad():
        expected = reference(ids_BS, output_hidden_states=True)
    states, pooled = model.states(ids_BS)
    assert pooled.shape == (2, PROJECTION) == (2, model.cfg.pooled_width)
    assert (expected.hidden_states[-2] - expected.hidden_states[-1]).abs().max() > 0.1
    assert_close(states, expected.hidden_states[-2])
    assert_close(pooled, expected.text_embeds)
    assert torch.equal(model(ids_BS), pooled)


def test_a_tower_without_projection_gives_token_states_too(off_initial, tmp_path):
    reference = clip_oracle(off_initial, eos_token_id=END, bos_token_id=58)
    reference.save_pretrained(tmp_path)
    model, ids_BS = load_clip(tmp_path), sentences(END)
    with torch.no_grad():
        expected = reference(ids_BS, output_hidden_states=True)
    states, pooled = model.states(ids_BS)
    assert_close(states, expected.hidden_states[-2])
    assert_close(pooled, expected.pooler_output)
    assert model.cfg.pooled_width == CLIP_SIZES["hidden_size"]


def test_a_projection_narrower_than_none_is_refused():
    with pytest.raises(ValueError, match="projection_width -1 is below 0"):
        ClipConfig(60, 24, 40, 3, 4, 20, 1e-5, "gelu", END, -1)


CLIP_L = ClipConfig(49408, 768, 3072, 12, 12, 77, 1e-5, "quick_gelu", 49407, 768)
CLIP_G = ClipConfig(49408, 1280, 5120, 32, 20, 77, 1e-5, "gelu", 49407, 1280)


@pytest.mark.parametrize(
    ("cfg", "millions"), [(CLIP_L, 123.65), (CLIP_G, 694.66)], ids=["CLIP-L", "CLIP-G"]
)
def test_real_towers_have_the_tensors_of_transformers(cfg, millions):
    from dataclasses import asdict

    from transformers import CLIPTextConfig, CLIPTextModelWithProjection

    fields = asdict(cfg)
    fields["projection_dim"] = fields.pop("projection_width")
    with torch.device("meta"):
        ours, theirs = ClipText(cfg), CLIPTextModelWithProjection(CLIPTextConfig(**fields))
    assert shapes(ours) == shapes(theirs)
    assert round(parameters(ours) / 1e6, 2) == millions


@pytest.mark.parametrize("activation", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("end", [2, END], ids=["legacy end", "modern end"])
@pytest.mark.parametrize("pad", [END, 0], ids=["padded with the end", "padded with zero"])
@pytest.mark.parametrize("length", [20, 17])
def test_the_mobile_tower_is_the_tower(off_initial, activation, end, pad, length):
    reference = projected_oracle(off_initial, hidden_act=activation, eos_token_id=end)
    model = projected(reference)
    states_form, mobile = MobileClipStates(model, length), MobileClip(model, length)
    for row in sentences(pad)[:, :length]:
        expected, pooled = model.states(row[None])
        assert decibels(states_form(row[None].int()), columns(expected)) >= SAME_DB
        both = mobile(row[None].int())
        assert decibels(both[0], columns(expected)) >= SAME_DB
        assert decibels(both[1], pooled[:, :, None, None]) >= SAME_DB


def test_the_mobile_tower_without_projection_pools_the_normed_state(off_initial, tmp_path):
    clip_oracle(off_initial, eos_token_id=END).save_pretrained(tmp_path)
    model, ids_BS = load_clip(tmp_path), sentences(0)[:1]
    pooled = MobileClip(model, 20)(ids_BS.int())[1]
    assert decibels(pooled, model(ids_BS)[:, :, None, None]) >= SAME_DB


def test_token_states_alone_carry_no_weight_of_the_last_layer(off_initial):
    model = projected(projected_oracle(off_initial))
    expected = model.states(sentences(0)[:1])[0]
    kept = MobileClipStates(model, 20)
    assert len(kept.blocks) == CLIP_SIZES["num_hidden_layers"] - 1
    for last in (model.text_model.encoder.layers[-1], model.text_model.final_layer_norm):
        for p in last.parameters():
            p.fill_(torch.nan)
    assert decibels(kept(sentences(0)[:1].int()), columns(expected)) >= SAME_DB


def test_the_mobile_tower_stays_within_what_phones_run(off_initial):
    mobile = MobileClip(projected(projected_oracle(off_initial)), 20)
    ops, rank = traced(mobile, sentences(0)[:1].int())
    assert (rank, ops & NOT_ON_PHONES) == (4, set())
    assert all(p.min() >= -1e4 for p in mobile.parameters()), "infinity does not survive fp16"
    reference, _ = traced(projected(projected_oracle(off_initial)), sentences(0)[:1])
    assert {"native_layer_norm", "argmax", "index", "eq"} & reference, "the check can fail"
