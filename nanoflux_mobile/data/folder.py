"""Pictures with captions on disk: loose files in a folder, and webdataset shards.

A picture's captions lie beside it under the same stem, in a .txt file with one caption a line. In
a shard (.tar) the stem ends at the first dot of a member's name, as webdataset has it. Members are
read by their place in the shard and nothing is ever unpacked: a name is no path here.
"""

from __future__ import annotations

import hashlib
import io
import random
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from nanoflux_mobile.errors import InputError

FORMATS = {".jpeg": "JPEG", ".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}
CAPTIONS, SHARD = ".txt", ".tar"
EXPECTED = "pictures (.jpg, .png, .webp), each with a .txt file of captions under the same stem"


@dataclass(frozen=True, slots=True)
class Piece:
    """The bytes of a file, or of the `member` of a shard."""

    path: Path
    start: int
    size: int
    member: str = ""

    @property
    def name(self) -> str:
        """What to call it in a message."""
        return f"{self.path}, member {self.member!r}" if self.member else str(self.path)

    def read(self) -> bytes:
        """All of them; InputError if the file was taken away or changed."""
        try:
            with self.path.open("rb") as file:
                file.seek(self.start)
                data = file.read(self.size)
        except OSError as error:
            raise InputError(f"cannot read {self.name}: {error.strerror}") from error
        if len(data) < self.size:
            raise InputError(f"{self.name} was cut short while in use; put it back")
        return data


@dataclass(frozen=True, slots=True)
class Pair:
    """A picture and its captions; `key` is the place inside the folder."""

    key: str
    picture: Piece
    captions: Piece


def open_folder(path: Path) -> tuple[Pair, ...]:
    """Every picture of a folder, its subfolders and the shards in them, or of one shard, by key.

    Hidden files are passed over, and so is every other kind of file.

    Raises:
        InputError: nothing is there, a picture without captions, or a shard that is damaged.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; name a folder of {EXPECTED}")
    root = path if path.is_dir() else path.parent
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    found: list[Pair] = []
    loose: dict[str, Piece] = {}
    for file in files:
        key = file.relative_to(root).as_posix()
        if any(part.startswith(".") for part in key.split("/")) or not file.is_file():
            continue
        if file.suffix.lower() == SHARD:
            found += _pairs(dict(_members(file)), key + "/", first_dot=True)
        elif file.suffix.lower() in (*FORMATS, CAPTIONS):
            loose[key] = Piece(file, 0, file.stat().st_size)
    found += _pairs(loose, "", first_dot=False)
    if not found:
        raise InputError(f"{path} holds no pictures; it needs {EXPECTED}, or .tar shards of them")
    return tuple(sorted(found, key=lambda pair: pair.key))


def _members(shard: Path) -> Iterator[tuple[str, Piece]]:
    try:
        with tarfile.open(shard, "r:") as file:
            for member in file:
                file.members = []  # type: ignore[attr-defined]  # it would keep millions of them
                if member.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                    yield member.name, Piece(shard, member.offset_data, member.size, member.name)
    except (tarfile.TarError, OSError, ValueError) as broken:
        raise InputError(f"{shard} is no whole .tar file ({broken}); write it again") from broken


def _pairs(files: Mapping[str, Piece], before: str, first_dot: bool) -> Iterator[Pair]:
    parts = {name: _split(name, first_dot) for name in files}
    texts = {stem: files[name] for name, (stem, kind) in parts.items() if kind == CAPTIONS}
    for name, (stem, kind) in parts.items():
        if kind not in FORMATS:
            continue
        picture, captions = files[name], texts.get(stem)
        if captions is None or not captions.size:
            raise InputError(
                f"{picture.name} has no captions; put them beside it as "
                f"{_last(stem) + CAPTIONS!r}, one a line"
            )
        yield Pair(before + name, picture, captions)


def _split(name: str, first_dot: bool) -> tuple[str, str]:
    """A name's stem, with its folders, and its ending."""
    last = _last(name)
    at = last.find(".") if first_dot else last.rfind(".")
    end = last[at:] if at >= 0 else ""
    return name[: len(name) - len(end)], end.lower()


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def digest_of(pairs: tuple[Pair, ...]) -> str:
    """16 hex digits over the names and sizes of everything, wherever the folder lies."""
    told = hashlib.sha256()
    for pair in pairs:
        told.update(f"{pair.key!r} {pair.picture.size} {pair.captions.size}\n".encode())
    return told.hexdigest()[:16]


def picture(pair: Pair, side: int) -> np.ndarray:
    """The picture as uint8 (3, side, side) RGB: upright, on white, resized, its centre cut out.

    Smaller ones are enlarged. Colour profiles are not looked at: pixels count as sRGB.

    Raises:
        InputError: it is no whole picture in the format its name says, or has 16 bits a channel.
    """
    ending = _split(pair.key, first_dot=False)[1]
    try:
        image = Image.open(io.BytesIO(pair.picture.read()), formats=[FORMATS[ending]])
        upright = ImageOps.exif_transpose(image)
        if upright.mode[0] in "IF":
            raise InputError(f"{pair.picture.name} has 16-bit pixels; save it with 8 bits")
        if upright.has_transparency_data:
            upright = upright.convert("RGBA")
            upright = Image.alpha_composite(Image.new("RGBA", upright.size, "white"), upright)
        small = ImageOps.fit(upright.convert("RGB"), (side, side), Image.Resampling.LANCZOS)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as broken:
        raise InputError(
            f"{pair.picture.name} is no picture that can be read ({broken}); put a whole one there"
        ) from broken
    return np.array(small).transpose(2, 0, 1)


def captions(pair: Pair) -> list[str]:
    """The captions of a picture, at least one; InputError for none, or what is no UTF-8."""
    try:
        text = pair.captions.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{pair.captions.name} is not text in UTF-8; save it as such") from error
    lines = [line.strip() for line in text.splitlines()]
    if not any(lines):
        raise InputError(f"{pair.captions.name} holds no caption; write one a line")
    return [line for line in lines if line]


@lru_cache(maxsize=4)
def _pass(seed: int, number: int, count: int) -> np.ndarray:
    """The order of all pictures in one pass; Philox is the same in every version of numpy."""
    key = random.Random(f"pass {number} of {seed}").getrandbits(64)
    return np.random.Philox(key=key).random_raw(count).argsort(kind="stable")


def drawn(count: int, seed: int, step: int, batch: int) -> list[tuple[int, random.Random]]:
    """Which of `count` pictures a step shows, and a source of chance for each of its rows.

    Steps go through all pictures in passes, each in an order of its own and with every picture
    once; a batch may begin in one pass and end in the next.
    """
    places = range(step * batch, (step + 1) * batch)
    return [
        (int(_pass(seed, i // count, count)[i % count]), random.Random(f"row {i} of {seed}"))
        for i in places
    ]
