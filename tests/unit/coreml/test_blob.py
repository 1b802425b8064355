"""The weight file we write, byte for byte the one that coremltools writes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoflux_export.targets.coreml import blob
from nanoflux_export.targets.coreml.blob import BlobWriter, pack
from nanoflux_export.targets.coreml.quiet import quiet
from nanoflux_export.targets.coreml.weights import (
    BITS,
    NUMPY_TYPES,
    find_entry,
    map_weights,
    packed_bytes,
    unpack,
)

DTYPES = (
    *("uint1", "uint2", "uint3", "uint4", "uint6", "uint8", "int4", "int8"),
    *("int16", "uint16", "int32", "uint32", "fp16", "fp32"),
)
SIZES = (1, 63, 64, 65, 1000)


def _values(dtype: str, size: int, seed: int = 0) -> np.ndarray:
    generator = np.random.default_rng([seed, size])
    kind = NUMPY_TYPES[dtype]
    if kind.kind == "f":
        return generator.normal(size=size).astype(kind)
    bits = BITS.get(dtype, 8 * kind.itemsize)
    least = -(1 << bits - 1) if kind.kind == "i" else 0
    return generator.integers(least, least + (1 << bits), size).astype(kind)


def _write(path: Path, tensors: list[tuple[str, np.ndarray]]) -> list[int]:
    with BlobWriter(path) as writer:
        return [writer.add(values, dtype) for dtype, values in tensors]


def _write_theirs(path: Path, tensors: list[tuple[str, np.ndarray]]) -> list[int]:
    with quiet():
        from coremltools.libmilstoragepython import _BlobStorageWriter
    writer = _BlobStorageWriter(str(path))
    names = {"fp32": "float"}
    return [
        getattr(writer, f"write_{names.get(dtype, dtype)}_data")(
            values.view(np.uint16) if dtype == "fp16" else values
        )
        for dtype, values in tensors
    ]


def test_the_file_is_the_one_that_coremltools_writes(tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    tensors = [(dtype, _values(dtype, size)) for size in SIZES for dtype in DTYPES]
    ours, theirs = tmp_path / "ours.bin", tmp_path / "theirs.bin"
    assert _write(ours, tensors) == _write_theirs(theirs, tensors)
    assert ours.read_bytes() == theirs.read_bytes()


@pytest.mark.parametrize("dtype", ["uint1", "uint2", "uint3", "uint4", "uint6", "int4", "fp16"])
def test_coremltools_reads_what_is_written(tmp_path: Path, dtype: str) -> None:
    pytest.importorskip("coremltools")
    with quiet():
        from coremltools.libmilstoragepython import _BlobStorageReader
    values = _values(dtype, 1001)
    offsets = _write(tmp_path / "weights.bin", [("fp32", _values("fp32", 7)), (dtype, values)])
    reader = _BlobStorageReader(str(tmp_path / "weights.bin"))
    read = np.array(getattr(reader, f"read_{dtype}_data")(offsets[1]))
    np.testing.assert_array_equal(read, values.view(np.uint16) if dtype == "fp16" else values)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(st.sampled_from(DTYPES), st.integers(1, 70))
def test_unpacking_undoes_packing(dtype: str, size: int) -> None:
    values = _values(dtype, size)
    packed = pack(values, dtype)
    assert packed.nbytes == packed_bytes(dtype, (size,))
    np.testing.assert_array_equal(unpack(packed, dtype, (size,)), values)


def test_our_reader_finds_a_shaped_tensor_in_any_memory_order(tmp_path: Path) -> None:
    values = _values("uint4", 35).reshape(5, 7).T
    (offset,) = _write(tmp_path / "weights.bin", [("uint4", values)])
    stored = find_entry(map_weights(tmp_path / "weights.bin"), offset, "uint4", (7, 5))
    np.testing.assert_array_equal(unpack(stored, "uint4", (7, 5)), values)


def test_what_was_written_before_is_not_written_again(tmp_path: Path) -> None:
    zeros = np.zeros(64, np.uint8)
    path = tmp_path / "weights.bin"
    first, again, typed, longer = _write(
        path, [("uint4", zeros), ("uint4", zeros), ("uint8", zeros[:32]), ("uint4", zeros[:63])]
    )
    assert first == again == 64
    assert len({first, typed, longer}) == 3  # the same bytes, but another type or count
    assert int(np.fromfile(path, "<u4", 1)[0]) == 3


def test_large_tensors_are_not_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blob, "_COMPARED_BYTES", 63)
    short, long = np.zeros(63, np.uint8), np.zeros(64, np.uint8)
    tensors = [("uint8", short), ("uint8", short), ("uint8", long), ("uint8", long)]
    assert _write(tmp_path / "weights.bin", tensors) == [64, 64, 192, 320]


def test_packed_bytes_are_written_as_they_are(tmp_path: Path) -> None:
    values = _values("uint6", 101)
    with BlobWriter(tmp_path / "weights.bin") as writer:
        offset = writer.add(values, "uint6")
        assert writer.add_packed(pack(values, "uint6"), "uint6", 101) == offset


def _begin_and_stop(path: Path) -> None:
    with BlobWriter(path) as writer:
        writer.add(np.zeros(4, np.float16), "fp16")
        assert path.read_bytes() == b"older"
        raise RuntimeError("stop")


def test_a_block_that_raises_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "weights.bin"
    path.write_bytes(b"older")
    with pytest.raises(RuntimeError, match="stop"):
        _begin_and_stop(path)
    assert [file.name for file in tmp_path.iterdir()] == ["weights.bin"]
    assert path.read_bytes() == b"older"


@pytest.mark.parametrize(
    ("values", "dtype", "reason"),
    [
        (np.array([16], np.uint8), "uint4", "do not fit"),
        (np.array([8], np.int8), "int4", "do not fit"),
        (np.array([-9], np.int8), "int4", "do not fit"),
        (np.zeros(2, np.float32), "fp16", "not written as"),
        (np.zeros(2, np.uint8), "uint5", "not written as"),
        (np.zeros(2, np.int64), "int64", "has no"),
        (np.zeros(2, np.bool_), "bool", "has no"),
    ],
)
def test_refuses_what_does_not_fit(
    tmp_path: Path, values: np.ndarray, dtype: str, reason: str
) -> None:
    with BlobWriter(tmp_path / "weights.bin") as writer, pytest.raises(ValueError, match=reason):
        writer.add(values, dtype)


def test_refuses_bytes_of_another_count(tmp_path: Path) -> None:
    with BlobWriter(tmp_path / "weights.bin") as writer, pytest.raises(ValueError, match="in 3 b"):
        writer.add_packed(np.zeros(3, np.uint8), "uint4", 4)
