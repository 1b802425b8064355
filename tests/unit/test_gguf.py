"""GGUF files written by ggml-org's own package, and broken ones written by hand."""

from __future__ import annotations

import struct
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Type
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.gguf import read_gguf, read_metadata
from nanoflux_mobile.gguf_blocks import CHUNK, LAYOUTS

TYPES = {layout.dtype: Type(kind) for kind, layout in LAYOUTS.items()}
ROWS, COLUMNS = 3, 512
IN_TORCH = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def stored_bytes(kind: Type, rows: int = ROWS, columns: int = COLUMNS) -> np.ndarray:
    """Rows of a type as its file holds them; every value finite, every bit of a block in use."""
    draw = np.random.default_rng(int(kind))
    try:
        return gguf.quantize(draw.normal(size=(rows, columns)).astype(np.float32), kind)
    except NotImplementedError:  # the package reads the K types and leaves writing them to C
        block = LAYOUTS[kind].block
        blocks = draw.integers(0, 256, (rows, columns // 256 * block.itemsize), dtype=np.uint8)
        records = blocks.view(block)
        for field in {"scale", "least"} & set(block.names or ()):
            records[field] = draw.normal(size=records.shape)
        return blocks


def write(path: Path, tensors: dict[str, tuple[np.ndarray, Type]]) -> Path:
    writer = gguf.GGUFWriter(path, "flux")
    writer.add_uint32("general.file_type", 14)
    writer.add_float32("a.half", 0.5)
    writer.add_bool("a.truth", True)
    writer.add_array("an.array", [1, 2, 3])
    writer.add_array("more.words", ["two", "words"])
    for name, (data, kind) in tensors.items():
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def every_type(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "every.gguf"
    return write(path, {name: (stored_bytes(kind), kind) for name, kind in TYPES.items()})


@pytest.mark.parametrize("name", TYPES)
def test_every_type_reads_as_the_numbers_that_its_blocks_stand_for(
    every_type: Path, name: str
) -> None:
    stored = read_gguf(every_type)[name]
    raw = stored_bytes(TYPES[name])
    wanted = torch.from_numpy(np.array(gguf.dequantize(raw, TYPES[name])))
    assert stored.read().dtype == IN_TORCH.get(name, torch.float32)
    # Exact: products of a half and two small whole numbers fit float32, one sum is rounded once.
    assert torch.equal(stored.read().float(), wanted)
    assert stored.read().float().std() > 0.1
    assert (stored.shape, stored.dtype, stored.nbytes) == ((ROWS, COLUMNS), name, raw.nbytes)


def test_axes_come_in_the_order_of_torch(tmp_path: Path) -> None:
    numbers = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    weights = read_gguf(write(tmp_path / "m.gguf", {"a.b": (numbers, Type.F32)}))
    assert torch.equal(weights["a.b"].read(), torch.from_numpy(numbers))


def test_metadata_says_the_architecture_and_leaves_arrays_out(every_type: Path) -> None:
    assert read_metadata(every_type) == {
        "general.architecture": "flux",
        "general.file_type": 14,
        "a.half": 0.5,
        "a.truth": True,
    }


def test_tensors_are_decoded_when_asked_for_and_a_part_at_a_time(tmp_path: Path) -> None:
    blocks = 64 * CHUNK + 5  # 64 full parts and a rest
    data = stored_bytes(Type.Q8_0, 1, 32 * 64).repeat(CHUNK + 1, 0).reshape(-1, 34)[:blocks]
    path = write(tmp_path / "m.gguf", {"w": (data, Type.Q8_0)})
    tracemalloc.start()
    stored = read_gguf(path)["w"]
    opened = tracemalloc.get_traced_memory()[1]
    found = stored.read()
    decoded = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert opened < 2**18  # the header and this package's objects
    assert decoded < 16 * CHUNK * 32 * 4  # a few float32 copies of one part; the result has 64
    last = torch.from_numpy(np.array(gguf.dequantize(data[-7:], Type.Q8_0)))
    assert torch.equal(found[-7:], last)


# Broken files


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def tensor(name: str | bytes, dims: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    axes = struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return text(name) + axes + struct.pack("<IQ", kind, offset)


def a_file(
    keys: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    counts: tuple[int, int] | None = None,
    version: int = 3,
    data: int = 4096,
) -> bytes:
    told = counts or (len(tensors), len(keys))
    header = b"GGUF" + struct.pack("<IQQ", version, *told) + b"".join(keys + tensors)
    return header + bytes(-len(header) % 32) + bytes(data)


HUGE = 2**62
BROKEN = {
    "empty": (b"", "cannot be read"),
    "four letters": (b"GGUF", "header ends"),
    "another format": (b"PK\x03\x04" + bytes(100), "does not begin with GGUF"),
    "the first version": (a_file(version=1), "version 1"),
    "big-endian": (a_file(version=3 << 24), "little-endian"),
    "more tensors than possible": (a_file(counts=(HUGE, 0)), "tensors, more than"),
    "more keys than possible": (a_file(counts=(0, HUGE)), "keys, more than"),
    "more tensors than listed": (a_file(counts=(60000, 0)), "damaged"),
    "a text longer than the file": (
        a_file((struct.pack("<Q", HUGE),), counts=(0, 1)),
        "header ends",
    ),
    "an array longer than the file": (
        a_file((key("a", 9, struct.pack("<IQ", 10, HUGE)),)),
        "header ends",
    ),
    "texts more than the file": (
        a_file((key("a", 9, struct.pack("<IQ", 8, HUGE)),)),
        "header ends",
    ),
    "an array of arrays": (a_file((key("a", 9, struct.pack("<IQ", 9, 1)),)), "unknown type 9"),
    "an unknown value": (a_file((key("a", 77, b""),)), "unknown type 77"),
    "no UTF-8": (a_file((text(b"\xff") + struct.pack("<IB", 0, 1),)), "no text"),
    "a key twice": (a_file((key("a", 0, b"1"), key("a", 0, b"1"))), "name comes twice"),
    "alignment by three": (a_file((key("general.alignment", 4, b"\x03\0\0\0"),)), "alignment is 3"),
    "alignment by zero": (a_file((key("general.alignment", 4, bytes(4)),)), "alignment is 0"),
    "alignment by words": (a_file((key("general.alignment", 8, text("32")),)), "alignment is '32'"),
    "a tensor twice": (a_file(tensors=(tensor("a", (4,)), tensor("a", (4,)))), "name comes twice"),
    "a tensor past the end": (a_file(tensors=(tensor("a", (1025,)),)), "'a' lies at bytes 0 to"),
    "an offset past the end": (a_file(tensors=(tensor("a", (1,), 0, HUGE),)), "'a' lies at"),
    "an offset out of step": (a_file(tensors=(tensor("a", (1,), 0, 4),)), "'a' lies at"),
    "a huge shape": (a_file(tensors=(tensor("a", (HUGE, HUGE, HUGE)),)), "'a' lies at"),
    "an empty axis": (a_file(tensors=(tensor("a", (0, HUGE)),)), "'a' of float32 has shape"),
    "half a block": (a_file(tensors=(tensor("a", (128, 2), 12),)), "'a' of q4_k has shape"),
    "half a block without axes": (a_file(tensors=(tensor("a", (), 8),)), "'a' of q8_0 has shape"),
    "too many axes": (a_file(tensors=(tensor("a", (1,) * 5),)), "5 axes"),
    "axes without end": (
        a_file(tensors=(text("a") + struct.pack("<I", 2**32 - 1),)),
        "4294967295 axes",
    ),
    "no name": (a_file(tensors=(tensor("", (1,)),)), "0 letters"),
    "an unreadable type": (a_file(tensors=(tensor("a", (256,), 10),)), "ggml type 10; readable"),
    "an unknown type": (a_file(tensors=(tensor("a", (256,), 9999),)), "ggml type 9999"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_what_is_broken_is_named_in_one_sentence(tmp_path: Path, case: str) -> None:
    content, message = BROKEN[case]
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    tracemalloc.start()
    with pytest.raises(InputError, match=message) as raised:
        read_gguf(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert peak < 2**20


@pytest.mark.parametrize("name", ["missing.gguf", "."])
def test_what_is_no_file_is_said(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="cannot be read as GGUF"):
        read_gguf(tmp_path / name)


def test_files_of_the_second_version_are_read(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(a_file(tensors=(tensor("a", (2, 3)),), version=2))
    assert read_gguf(path)["a"].read().shape == (3, 2)


def cut(data: bytes, at: int, _: int) -> bytes:
    return data[: at % len(data)]


def flip(data: bytes, at: int, mask: int) -> bytes:
    place = at % len(data)
    return data[:place] + bytes([data[place] ^ mask]) + data[place + 1 :]


def flip_early(data: bytes, at: int, mask: int) -> bytes:
    return flip(data, at % 600, mask)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    damage=st.lists(
        st.tuples(
            st.sampled_from([cut, flip, flip_early]), st.integers(0, 2**16), st.integers(1, 255)
        ),
        min_size=1,
        max_size=3,
    )
)
def test_any_damage_is_an_input_error_or_still_a_file(
    every_type: Path,
    tmp_path: Path,
    damage: list[tuple[Callable[[bytes, int, int], bytes], int, int]],
) -> None:
    data = every_type.read_bytes()
    for act, at, mask in damage:
        data = act(data, at, mask) or b"G"
    path = tmp_path / "m.gguf"
    path.write_bytes(data)
    try:
        weights = read_gguf(path)
    except InputError:
        return
    for stored in weights.values():
        found = stored.read()
        assert found.shape == stored.shape
        assert found.is_floating_point()
