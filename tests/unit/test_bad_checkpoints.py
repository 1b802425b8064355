"""Whatever is wrong with a checkpoint folder from outside is named in one sentence."""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from nanoflux_mobile.checkpoint import open_checkpoint, read_json, sizes
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.families import nanoflux as family
from nanoflux_mobile.models.nanoflux import NanoFlux
from nanoflux_mobile.models.nanoflux_config import FluxConfig

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
INDEX = f"{TRANSFORMER}.index.json"


# How to break the folder


def write(name: str, content: str | bytes) -> Callable[[Path], None]:
    data = content.encode() if isinstance(content, str) else content
    return lambda root: (root / name).write_bytes(data) and None


def remove(name: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return act


def configure(name: str, **changes: Any) -> Callable[[Path], None]:
    """Change fields of a JSON file; None takes a field away."""

    def act(root: Path) -> None:
        config = json.loads((root / name).read_text()) | changes
        kept = {key: value for key, value in config.items() if value is not None}
        (root / name).write_text(json.dumps(kept))

    return act


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    """Change the transformer's tensors."""

    def act(root: Path) -> None:
        state = load_file(root / TRANSFORMER)
        change(state)
        save_file(state, root / TRANSFORMER)

    return act


def replace_tensor(key: str, by: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return tensors(lambda state: state.update({key: by(state[key]).contiguous()}))


def truncate(name: str, keep: float) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        data = (root / name).read_bytes()
        (root / name).write_bytes(data[: int(len(data) * keep)])

    return act


def copied(*names: str, keep: bool) -> Callable[[Path], None]:
    """Put the transformer's weights under other names as well, or instead."""

    def act(root: Path) -> None:
        for name in names:
            shutil.copy(root / TRANSFORMER, root / "transformer" / name)
        if not keep:
            (root / TRANSFORMER).unlink()

    return act


def index(**weight_map: object) -> Callable[[Path], None]:
    """Put an index in place of the transformer's weights, which stay in a shard beside it."""

    def act(root: Path) -> None:
        os.rename(root / TRANSFORMER, root / "transformer" / "shard.safetensors")
        (root / INDEX).write_text(json.dumps({"weight_map": weight_map}))

    return act


def whole_index(content: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        (root / TRANSFORMER).unlink()
        (root / INDEX).write_text(content)

    return act


def resized(**changes: int) -> Callable[[Path], None]:
    """Change sizes of the transformer, and its weights with them."""

    def act(root: Path) -> None:
        configure("transformer/config.json", **changes)(root)
        config = read_json(root / "transformer" / "config.json")
        state = NanoFlux(sizes(FluxConfig, config, "config", {})).state_dict()
        save_file(state, root / TRANSFORMER)

    return act


BAD: dict[str, tuple[Callable[[Path], None], str]] = {  # the damage, and what must be said of it
    "no model_index.json": (remove("model_index.json"), r"not a checkpoint.*model_index\.json"),
    "model_index.json not JSON": (write("model_index.json", "{"), r"model_index\.json cannot"),
    "model_index.json a list": (write("model_index.json", "[1]"), r"holds a list"),
    "unknown pipeline": (
        configure("model_index.json", _class_name="KandinskyPipeline"),
        r"KandinskyPipeline.*known pipelines: FluxPipeline",
    ),
    "no pipeline class": (configure("model_index.json", _class_name=None), r"known pipelines"),
    "pipeline class a list": (
        configure("model_index.json", _class_name=["FluxPipeline"]),
        r"known pipelines",
    ),
    "no transformer": (remove("transformer"), r"/transformer is missing"),
    "no config": (
        remove("transformer/config.json"),
        r"transformer: config\.json is missing and the shapes do not tell axes_dims_rope",
    ),
    "no weights": (remove(TRANSFORMER), r"transformer holds no weights: expected diffusion"),
    "no text encoder": (remove("text_encoder_2"), r"text_encoder_2/config\.json is missing"),
    "no CLIP tower": (remove("text_encoder"), r"text_encoder/config\.json is missing"),
    "no vae": (remove("vae"), r"vae/config\.json is missing"),
    "no scheduler": (remove("scheduler"), r"scheduler_config\.json is missing"),
    "no tokenizer": (remove("tokenizer_2"), r"tokenizer_2 holds no tokenizer"),
    "no CLIP tokenizer": (remove("tokenizer"), r"tokenizer holds no tokenizer"),
    "no merges": (remove("tokenizer/merges.txt"), r"vocab\.json and merges\.txt"),
    "tokenizer not JSON": (
        write("tokenizer_2/tokenizer.json", "no"),
        r"tokenizer_2 cannot be read",
    ),
    "merges of three": (write("tokenizer/merges.txt", "a b c\n"), r"tokenizer cannot be read"),
    "config not JSON": (write("transformer/config.json", "{'a': 1}"), r"config\.json cannot be re"),
    "config not text": (write("transformer/config.json", b"\xff\xfe\x00"), r"config\.json cannot"),
    "config empty": (write("transformer/config.json", ""), r"transformer/config\.json cannot be"),
    "config too deep": (write("vae/config.json", "[" * 200_000), r"vae/config\.json cannot be"),
    "config a number": (write("vae/config.json", "3"), r"vae/config\.json holds a int"),
    "text for a number": (
        configure("transformer/config.json", num_layers="2"),
        r"transformer/config\.json\.num_layers must be int, not '2'",
    ),
    "fraction for a count": (
        configure("transformer/config.json", num_layers=2.5),
        r"num_layers must be int, not 2\.5",
    ),
    "number for a list": (
        configure("transformer/config.json", axes_dims_rope=16),
        r"axes_dims_rope must be a list, not 16",
    ),
    "missing size": (configure("text_encoder_2/config.json", d_model=None), r"lacks d_model"),
    "axes": (configure("transformer/config.json", axes_dims_rope=[4, 4, 4]), r"sums to 12, but"),
    "patch size": (configure("transformer/config.json", patch_size=2), r"patch_size is 2; only 1"),
    "activation of the VAE": (configure("vae/config.json", act_fn="relu"), r"act_fn is 'relu'; on"),
    "activation of T5": (
        configure("text_encoder_2/config.json", feed_forward_proj="gated-silu"),
        r"'gated-silu' is not one of relu, gated-gelu",
    ),
    "activation of CLIP": (
        configure("text_encoder/config.json", hidden_act="relu"),
        r"'relu' is not one of quick_gelu, gelu",
    ),
    "no layers": (
        configure("text_encoder_2/config.json", num_layers=0),
        r"text_encoder_2 do not fit its config\.json; \d+ unused",
    ),
    "negative width": (
        configure("text_encoder_2/config.json", d_ff=-1),
        r"text_encoder_2/config\.json describes no network",
    ),
    "no heads": (
        configure("transformer/config.json", num_attention_heads=0),
        r"transformer do not fit its config\.json; \d+ mis-shaped",
    ),
    "no heads in CLIP": (
        configure("text_encoder/config.json", num_attention_heads=0),
        r"text_encoder/config\.json: hidden_size 20 does not split into 0 heads",
    ),
    "heads that do not divide": (
        configure("text_encoder/config.json", num_attention_heads=3),
        r"hidden_size 20 does not split into 3 heads",
    ),
    "width beyond memory": (
        configure("text_encoder_2/config.json", d_ff=2**62),
        r"text_encoder_2/config\.json: d_ff is 4611686018427387904; accepted: up to 16777216$",
    ),
    "layers beyond patience": (
        configure("transformer/config.json", num_layers=2**40),
        r"transformer/config\.json: num_layers is 1099511627776; accepted: up to 128$",
    ),
    "layers of the VAE beyond patience": (
        configure("vae/config.json", layers_per_block=10**9),
        r"vae/config\.json: layers_per_block is 10{9}; accepted: up to 128$",
    ),
    "stages beyond patience": (
        configure("vae/config.json", block_out_channels=[8] * 10_000),
        r"the length of block_out_channels is 10000; accepted: up to 16$",
    ),
    "sizes whose product is beyond everything": (
        configure("transformer/config.json", num_attention_heads=2**24, attention_head_dim=2**24),
        r"axes_dims_rope",
    ),
    "groups that do not divide": (
        configure("vae/config.json", norm_num_groups=3),
        r"vae/config\.json describes no network.*num_groups \(3\)",
    ),
    "no stages": (
        configure("vae/config.json", block_out_channels=[]),
        r"vae/config\.json describes no network",
    ),
    "widths of text states that differ": (
        configure("transformer/config.json", joint_attention_dim=48),
        r"text states of width 48, text_encoder_2 gives 24",
    ),
    "widths of pooled text that differ": (
        resized(pooled_projection_dim=24),
        r"pooled text of width 24, text_encoder gives 20",
    ),
    "channels that differ": (
        resized(in_channels=20),
        r"tokens of width 20, the vae in square patches gives 16",
    ),
    "length of the tokenizer": (
        configure("tokenizer_2/tokenizer_config.json", model_max_length=int(1e30)),
        r"tokenizer_2/tokenizer_config\.json: model_max_length is 10{15}\d+; expected a whole",
    ),
    "no picture size": (configure("vae/config.json", sample_size=None), r"sample_size is None"),
    "picture size a pair": (configure("vae/config.json", sample_size=[8, 8]), r"sample_size is \["),
    "missing key": (
        tensors(lambda state: state.pop("x_embedder.bias")),
        r"transformer do not fit its config\.json; 1 missing: x_embedder\.bias$",
    ),
    "unused key": (
        tensors(lambda state: state.update({"lora.up": torch.zeros(1)})),
        r"1 unused: lora\.up$",
    ),
    "many missing keys": (
        configure("transformer/config.json", num_single_layers=3),
        r"single_transformer_blocks\.2\.[\w.]+, \.\.\.$",
    ),
    "mis-shaped key": (
        replace_tensor("x_embedder.weight", lambda t: t.T),
        r"1 mis-shaped: x_embedder\.weight \(16, 32\) instead of \(32, 16\)$",
    ),
    "scalar for a vector": (
        replace_tensor("x_embedder.bias", lambda t: t[0]),
        r"x_embedder\.bias \(\) instead of \(32,\)$",
    ),
    "two faults": (
        tensors(lambda state: state.update({"strange": state.pop("x_embedder.bias")})),
        r"1 missing: x_embedder\.bias; 1 unused: strange$",
    ),
    "integers": (
        replace_tensor("x_embedder.weight", lambda t: t.to(torch.int8)),
        r"1 not floating point: x_embedder\.weight \(int8\)$",
    ),
    "doubles": (
        replace_tensor("x_embedder.weight", torch.Tensor.double),
        r"x_embedder\.weight \(float64\)$",
    ),
    "truncated data": (truncate(TRANSFORMER, 0.9), r"diffusion_\w+\.safetensors is damaged"),
    "truncated header": (truncate(TRANSFORMER, 0.01), r"diffusion_\w+\.safetensors is damaged"),
    "empty weights": (write(TRANSFORMER, b""), r"diffusion_\w+\.safetensors is damaged"),
    "a pickle": (write(TRANSFORMER, b"\x80\x04N."), r"diffusion_\w+\.safetensors is damaged"),
    "header larger than the file": (
        write(TRANSFORMER, struct.pack("<Q", 2**60) + b"{}"),
        r"diffusion_\w+\.safetensors is damaged",
    ),
    "index to a parent": (index(a="../vae/diffusion.safetensors"), r"outside its folder"),
    "index to the parent itself": (index(a=".."), r"index\.json|transformer"),
    "index to the folder itself": (index(a=""), r"index\.json|transformer"),
    "index to an absolute path": (index(a="/etc/hostname"), r"outside its folder"),
    "index to a sub-folder": (index(a="deep/shard.safetensors"), r"outside its folder"),
    "index to a missing shard": (
        index(a="shard.safetensors", b="shard-2.safetensors"),
        r"transformer lacks 1 of 2 shards: shard-2\.safetensors; download",
    ),
    "no shard at all": (
        index(**{f"w{i}": f"shard-{i}.safetensors" for i in range(5)}),
        r"lacks 5 of 5 shards: shard-0\.safetensors, .*shard-2\.safetensors; download",
    ),
    "index to a pickle": (index(a="pytorch_model.bin"), r"of no known format$"),
    "two sets of weights": (
        copied("tuned.safetensors", keep=True),
        r"holds diffusion_pytorch_model\.safetensors and tuned\.safetensors; keep",
    ),
    "two files of any name": (
        copied("a.safetensors", "b.safetensors", keep=False),
        r"holds a\.safetensors and b\.safetensors; keep",
    ),
    "a name that cannot be printed": (
        tensors(lambda state: state.update({"a\nb" * 100: torch.zeros(1)})),
        r"1 unused: 'a\\nba",
    ),
    "index to a number": (index(a=3), r"index\.json"),
    "index with a list": (whole_index('{"weight_map": ["a"]}'), r"index\.json"),
    "index without a map": (whole_index("{}"), r"index\.json has no weight_map"),
    "index not JSON": (whole_index("{"), r"index\.json cannot be read as JSON"),
}


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")  # by torch, for no heads
@pytest.mark.parametrize(("damage", "words"), BAD.values(), ids=BAD)
def test_a_bad_checkpoint_is_one_input_error_that_names_the_thing(flux_copy, damage, words):
    damage(flux_copy)
    with pytest.raises(InputError, match=words) as caught:
        family.load(open_checkpoint(flux_copy))
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 400, "one sentence, not a dump"
    assert caught.value.exit_code == 3


def test_the_table_breaks_a_folder_that_is_good(flux_copy):
    assert family.load(open_checkpoint(flux_copy)).canvas.tokens == 16


@pytest.mark.parametrize("name", ["missing", "file", "empty"])
def test_what_is_no_checkpoint_folder_is_named(tmp_path, name):
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=rf"{name} (does not exist|is not a checkpoint)"):
        open_checkpoint(tmp_path / name)


def test_a_link_is_not_followed_out_of_the_folder(flux_copy, tmp_path):
    """A link in an unpacked folder is as good as a name in an index."""
    os.rename(flux_copy / TRANSFORMER, tmp_path / "outside.safetensors")
    (flux_copy / "transformer" / "shard.safetensors").symlink_to(tmp_path / "outside.safetensors")
    (flux_copy / INDEX).write_text('{"weight_map": {"a": "shard.safetensors"}}')
    # Hugging Face's cache is made of links, so a link alone must go on working.
    assert family.load(open_checkpoint(flux_copy)).canvas.tokens == 16
