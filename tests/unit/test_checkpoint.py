"""Weight files, key maps and digests: strict, exact, and never a traceback on damaged bytes."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from nanoflux_mobile.checkpoint import load_weights, open_checkpoint, save_part
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.weight_files import KeyMap, read_json, read_weights

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
DTYPES += ["F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"]
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
    assert read_weights(pair, keys).keys() == {"weight"}


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
