"""What a bundle says of itself, read strictly: whole, or one sentence that says what is wrong."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.manifest import Artifact, Manifest, manifest_json, read_manifest
from nanoflux_mobile.strict_json import from_plain, to_plain

FIXTURE = Path(__file__).parents[1] / "fixtures" / "contract"


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return read_manifest(FIXTURE)


def write(folder: Path, data: object) -> Path:
    (folder / "manifest.json").write_text(json.dumps(data), encoding="utf-8")
    return folder


def test_a_manifest_survives_the_way_through_its_file(manifest: Manifest, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(manifest_json(manifest), encoding="utf-8")
    again = read_manifest(tmp_path)
    assert again == manifest
    assert again.digest == manifest.digest


def test_the_digest_names_everything_in_it(manifest: Manifest) -> None:
    file = replace(manifest.files[0], sha256="0" * 64)
    others = [
        replace(manifest, family="other"),
        replace(manifest, files=(file, *manifest.files[1:])),
        replace(manifest, sigmas=(1.0, 0.25, 0.0)),
        replace(manifest, low_steps=1),
        replace(manifest, parity=()),
        replace(manifest, lint=()),
        replace(manifest, unmet=()),
        replace(manifest, suppress=()),
    ]
    assert len({one.digest for one in (manifest, *others)}) == 1 + len(others)


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/x", "..", "", "a\\b", "C:\\x", "a/.."])
def test_a_path_stays_inside_the_bundle(path: str) -> None:
    with pytest.raises(ValueError, match="leaves the bundle"):
        Artifact(path, "0" * 64, 1)


@pytest.mark.parametrize("path", ["x", "a/b.c", "..x", "a/..b", ".hidden"])
def test_a_path_may_be_any_name(path: str) -> None:
    assert Artifact(path, "0" * 64, 1).path == path


@pytest.mark.parametrize("where", ["components", "tokenizer"])
def test_paths_of_graphs_and_tokenizer_stay_inside_too(
    manifest: Manifest, tmp_path: Path, where: str
) -> None:
    data = to_plain(manifest)
    chunks = data["components"][0]["chunks"]
    entry = chunks[0] if where == "components" else data["tokenizer"]
    entry["path"] = "../elsewhere/tokenizer.json"
    with pytest.raises(InputError, match=rf"{where}.*'\.\./elsewhere"):
        read_manifest(write(tmp_path, data))


def test_a_graph_in_chunks_has_their_bytes_and_functions(manifest: Manifest) -> None:
    entry = manifest.components[1]
    (whole,) = entry.chunks
    face = whole.functions["main"]
    first = replace(whole, weight_bytes=7, functions={"step_low": face})
    second = replace(whole, weight_bytes=5, functions={"step_full": face, "step_low": face})
    cut = replace(entry, chunks=(first, second))
    assert (entry.weight_bytes, entry.functions) == (whole.weight_bytes, ("main",))
    assert (cut.weight_bytes, cut.functions) == (12, ("step_low", "step_full"))
    assert cut.component == entry.component


def test_a_graph_without_a_file_is_refused(manifest: Manifest, tmp_path: Path) -> None:
    data = to_plain(manifest)
    data["components"][2]["chunks"] = []
    with pytest.raises(InputError, match=r"components\[2\].*decoder has no chunk"):
        read_manifest(write(tmp_path, data))


@pytest.mark.parametrize("schema", ["bundle/2", "bundle/1 ", "", None, 1])
def test_another_schema_is_refused(manifest: Manifest, tmp_path: Path, schema: object) -> None:
    data = {**to_plain(manifest), "schema": schema}
    with pytest.raises(InputError, match=r"manifest\.json\.schema is .*; known: bundle/1"):
        read_manifest(write(tmp_path, data))


LATER = {"hazards", "unmet", "suppress"}
"""Empty where a manifest does not say."""


@pytest.mark.parametrize("name", sorted(LATER))
def test_some_fields_may_be_left_out(manifest: Manifest, tmp_path: Path, name: str) -> None:
    data = to_plain(manifest)
    del data[name]
    assert read_manifest(write(tmp_path, data)) == replace(manifest, **{name: ()})


@pytest.mark.parametrize("name", [n for n in Manifest.__dataclass_fields__ if n not in LATER])
def test_every_other_field_is_needed(manifest: Manifest, tmp_path: Path, name: str) -> None:
    data = to_plain(manifest)
    del data[name]
    with pytest.raises(InputError, match=rf"manifest\.json lacks {name}$"):
        read_manifest(write(tmp_path, data))


def test_an_unknown_field_is_named_at_any_depth(manifest: Manifest, tmp_path: Path) -> None:
    data = to_plain(manifest)
    data["components"][1]["floors"]["speed"] = 1
    with pytest.raises(InputError, match=r"components\[1\]\.floors has no field 'speed'"):
        read_manifest(write(tmp_path, data))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "7", '"x"', "NaN"])
def test_a_file_that_holds_no_manifest(tmp_path: Path, text: str) -> None:
    (tmp_path / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_manifest(tmp_path)


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is not a bundle: it has no manifest\.json"):
        read_manifest(tmp_path)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(st.characters(exclude_categories=[]), max_size=8)
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value inside a JSON value."""
    items = data.items() if isinstance(data, dict) else enumerate(data)
    for key, item in items:
        yield (*path, key)
        if isinstance(item, dict | list):
            yield from places(item, (*path, key))


WHOLE = json.loads((FIXTURE / "manifest.json").read_text("utf-8"))
PLACES = list(places(WHOLE))


@given(st.sampled_from(PLACES), values, st.sampled_from(["set", "delete", "add"]))
def test_a_changed_manifest_is_read_or_refused(
    place: tuple[Any, ...], value: Any, how: str
) -> None:
    """Whatever one value becomes, reading ends with a Manifest that has a digest, or InputError."""
    data = copy.deepcopy(WHOLE)
    holder = data
    for key in place[:-1]:
        holder = holder[key]
    if how == "set":
        holder[place[-1]] = value
    elif how == "delete":
        del holder[place[-1]]
    elif isinstance(holder, list):
        holder.append(value)
    else:
        holder[str(value)] = value
    try:
        manifest = from_plain(Manifest, json.loads(json.dumps(data)), "manifest.json")
    except InputError as error:
        assert "manifest.json" in str(error)
        assert len(str(error)) < 500
    else:
        assert len(manifest.digest) == 64
