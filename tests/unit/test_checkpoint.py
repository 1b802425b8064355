"""Checkpoint folders from outside: whatever is wrong with one is named in one sentence."""

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
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from nanoflux_mobile.checkpoint import (
    KeyMap,
    load_weights,
    open_checkpoint,
    read_json,
    read_tensors,
    save_part,
    sizes,
)
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.families import nanoflux as family
from nanoflux_mobile.models.nanoflux import FluxConfig, NanoFlux

TRANSFORMER = "transformer/diffusion_pytorch_model.safetensors"
INDEX = f"{TRANSFORMER}.index.json"


# Bad checkpoints: how to break the folder, and what the sentence must say


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


BAD: dict[str, tuple[Callable[[Path], None], str]] = {
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
    "no transformer": (remove("transformer"), r"transformer/config\.json is missing"),
    "no config": (remove("transformer/config.json"), r"transformer/config\.json is missing"),
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
        r"text_encoder_2/config\.json describes no network",
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
    "8-bit floats": (
        replace_tensor("x_embedder.weight", lambda t: t.to(torch.float8_e4m3fn)),
        r"x_embedder\.weight \(float8_e4m3fn\)$",
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
        r"shard-2\.safetensors",
    ),
    "index to a number": (index(a=3), r"index\.json"),
    "index with a list": (whole_index('{"weight_map": ["a"]}'), r"index\.json"),
    "index without a map": (whole_index("{}"), r"index\.json has no weight_map"),
    "index not JSON": (whole_index("{"), r"index\.json cannot be read as JSON"),
}


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


# Weights


class Pair(nn.Module):
    """A module of two small tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)


def pair_file(folder: Path, **changes: torch.Tensor) -> Path:
    folder.mkdir(exist_ok=True)
    state = {"linear.weight": torch.arange(6.0).reshape(2, 3), "linear.bias": torch.ones(2)}
    save_file({**state, **changes}, folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pair_file(tmp_path_factory.mktemp("pair"))


def test_either_name_of_a_weight_file_is_found(pair, tmp_path):
    shutil.copy(pair / "model.safetensors", tmp_path / "diffusion_pytorch_model.safetensors")
    assert torch.equal(load_weights(Pair, pair).linear.weight, torch.arange(6.0).reshape(2, 3))
    assert torch.equal(load_weights(Pair, tmp_path).linear.bias, torch.ones(2))


def test_more_than_the_module_needs_is_an_error_unless_asked_for(tmp_path):
    folder = pair_file(tmp_path, extra=torch.zeros(3))
    with pytest.raises(InputError, match="1 unused: extra"):
        load_weights(Pair, folder)
    assert load_weights(Pair, folder, complete=False).state_dict().keys() == {
        "linear.weight",
        "linear.bias",
    }


def test_shards_that_repeat_a_key_are_refused(tmp_path):
    save_file({"linear.weight": torch.zeros(2, 3)}, tmp_path / "a.safetensors")
    both = {"linear.weight": torch.ones(2, 3), "linear.bias": torch.ones(2)}
    save_file(both, tmp_path / "b.safetensors")
    names = {"linear.weight": "a.safetensors", "linear.bias": "b.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    with pytest.raises(InputError, match=r"linear\.weight"):
        load_weights(Pair, tmp_path)


DTYPES = ["BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64", "F64", "C64"]
DTYPES += ["F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"]
DTYPES += ["F4", "F6_E2M3", "F6_E3M2", "NONSENSE"]
BITS = {"BOOL": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "NONSENSE": 32}


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_other_dtype_of_the_format_is_refused(tmp_path, dtype):
    bits = BITS.get(dtype) or int("".join(filter(str.isdigit, dtype.split("_")[0])))
    end = 8 * bits // 8
    header = {"linear.weight": {"dtype": dtype, "shape": [2, 4], "data_offsets": [0, end]}}
    text = json.dumps(header).encode()
    data = struct.pack("<Q", len(text)) + text + bytes(end)
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises(InputError, match=r"linear\.weight \(\w+\)|damaged"):
        load_weights(lambda: nn.ModuleDict({"linear": nn.Linear(4, 2, bias=False)}), tmp_path)


def flip(data: bytes, places: list[tuple[float, int]]) -> bytes:
    changed = bytearray(data)
    for place, value in places:
        changed[int(place * len(changed))] ^= value
    return bytes(changed)


place = st.floats(0, 1, exclude_max=True)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    flips=st.lists(st.tuples(place, st.integers(1, 255)), max_size=4),
    header_only=st.booleans(),
    keep=st.one_of(st.just(1.0), place),
)
def test_a_damaged_file_is_an_input_error_or_has_the_right_shapes(
    pair, tmp_path, flips, header_only, keep
):
    whole = (pair / "model.safetensors").read_bytes()
    assume(flips or keep < 1)
    share = (len(whole) - 32) / len(whole) if header_only else 1.0
    data = flip(whole, [(where * share, value) for where, value in flips])
    (tmp_path / "model.safetensors").write_bytes(data[: max(1, int(len(data) * keep))])
    try:
        module = load_weights(Pair, tmp_path)
    except InputError:
        return
    shapes = {key: (t.shape, t.dtype) for key, t in module.state_dict().items()}
    assert shapes == {
        "linear.weight": ((2, 3), torch.float32),
        "linear.bias": ((2,), torch.float32),
    }


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.dictionaries(st.sampled_from(["weight_map", "metadata"]), json_values))
def test_any_index_is_an_input_error_or_read(tmp_path, content):
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(content))
    with pytest.raises(InputError):
        load_weights(Pair, tmp_path)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=64) | json_values.map(lambda value: json.dumps(value).encode()))
def test_any_bytes_for_json_are_an_object_or_an_input_error(tmp_path, data):
    (tmp_path / "config.json").write_bytes(data)
    try:
        found = read_json(tmp_path / "config.json")
    except InputError:
        return
    assert isinstance(found, dict)


# Key maps


KEYS = KeyMap(prefixes=(("old.", "new."), ("", "model.")), ignored=("old.skipped", "position_ids"))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("old.weight", "new.weight"),
        ("weight", "model.weight"),
        ("very.old.weight", "model.very.old.weight"),
        ("old.old.weight", "new.old.weight"),
        ("old.skipped", None),
        ("position_ids", None),
        ("old.skipped.weight", "new.skipped.weight"),
        ("older", "model.older"),
    ],
)
def test_the_first_prefix_that_fits_is_replaced_once(theirs, ours):
    assert KEYS.ours(theirs) == ours


@given(st.text())
def test_an_empty_map_changes_no_name(key):
    assert KeyMap().ours(key) == key


def test_ignored_tensors_are_left_out_and_others_renamed(pair):
    keys = KeyMap(prefixes=(("linear.", ""),), ignored=("linear.bias",))
    assert read_tensors(pair, keys).keys() == {"weight"}


def test_two_keys_that_land_in_one_place_are_refused(tmp_path):
    folder = pair_file(tmp_path, **{"text.linear.weight": torch.zeros(2, 3)})
    with pytest.raises(InputError, match=r"linear\.weight"):
        load_weights(Pair, folder, KeyMap(prefixes=(("text.", ""),)))


# Saving and digests


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("config", [{"a": 1}, {"model_type": "t5"}], ids=["diffusers", "t5"])
def test_a_saved_part_loads_again(tmp_path, dtype, config):
    torch.manual_seed(0)
    module = Pair()
    save_part(module, tmp_path, config, dtype)
    assert read_json(tmp_path / "config.json") == config
    again = load_weights(Pair, tmp_path)
    for key, tensor in module.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor.to(dtype).float())


def test_a_saved_part_owns_what_a_view_shares(tmp_path):
    module = Pair()
    module.linear.weight = nn.Parameter(torch.arange(6.0).reshape(3, 2).T)
    save_part(module, tmp_path, {}, torch.float32)
    assert torch.equal(load_weights(Pair, tmp_path).linear.weight, module.linear.weight)


def test_the_digest_changes_when_any_byte_of_any_file_does(flux_copy):
    checkpoint = open_checkpoint(flux_copy)
    before = checkpoint.digest()
    assert before == open_checkpoint(flux_copy).digest()
    assert len(before) == 64
    files = sorted(path for path in flux_copy.rglob("*") if path.is_file())
    assert len(files) >= 13
    for path in files:
        whole = path.read_bytes()
        for where in (0, len(whole) // 2, len(whole) - 1):
            path.write_bytes(flip(whole, [(where / len(whole), 1)]))
            assert checkpoint.digest() != before, f"{path.name} at {where}"
        path.write_bytes(whole)
    assert checkpoint.digest() == before


def test_the_digest_sees_names_and_new_files_and_not_the_place(flux_copy, tmp_path):
    before = open_checkpoint(flux_copy).digest()
    moved = Path(shutil.move(flux_copy, tmp_path / "moved"))
    assert open_checkpoint(moved).digest() == before
    (moved / "vae" / "added.json").write_text("{}")
    added = open_checkpoint(moved).digest()
    os.rename(moved / "vae" / "added.json", moved / "vae" / "renamed.json")
    assert len({before, added, open_checkpoint(moved).digest()}) == 3
