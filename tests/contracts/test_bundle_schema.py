"""The JSON Schema of bundle/1 and the dataclasses that read it say the same."""

from __future__ import annotations

import copy
import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from nanoflux_mobile.errors import InputError
from nanoflux_mobile.manifest import Manifest, read_manifest
from nanoflux_mobile.strict_json import from_plain

FILE = resources.files("nanoflux_mobile") / "schemas" / "bundle-1.schema.json"
SCHEMA = json.loads(FILE.read_text("utf-8"))
FIXTURE = Path(__file__).parents[1] / "fixtures" / "contract"
TYPES = {str: "string", int: "integer", float: "number"}


def validator() -> Draft202012Validator:
    return Draft202012Validator(SCHEMA)


def classes(cls: Any) -> list[Any]:
    """A dataclass and every dataclass below it, each once."""
    found = {cls.__name__: cls}
    waiting: list[Any] = [cls]
    while waiting:
        for hint in typing.get_type_hints(waiting.pop()).values():
            for inner in (hint, *typing.get_args(hint)):
                if dataclasses.is_dataclass(inner) and inner.__name__ not in found:
                    found[inner.__name__] = inner
                    waiting.append(inner)
    return list(found.values())


def follow(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """A node with its reference resolved."""
    if (reference := node.get("$ref")) is None:
        return node
    found: Mapping[str, Any] = SCHEMA["$defs"][reference.removeprefix("#/$defs/")]
    return found


def agrees(hint: Any, node: Mapping[str, Any]) -> bool:
    """Whether a schema node takes what an annotation takes."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint):
        return node == {"$ref": f"#/$defs/{hint.__name__}"}
    if origin is typing.Literal:
        return tuple(node.get("enum", [node.get("const")])) == args
    if origin is tuple and args[1:] == (Ellipsis,):
        return node["type"] == "array" and agrees(args[0], node["items"])
    if origin in (dict, Mapping) or origin is types.MappingProxyType:
        return node["type"] == "object" and agrees(args[1], node["additionalProperties"])
    return bool(follow(node)["type"] == TYPES[hint])


def test_the_schema_is_one() -> None:
    Draft202012Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("cls", classes(Manifest), ids=lambda cls: cls.__name__)
def test_schema_and_dataclass_name_the_same_fields_of_the_same_types(cls: Any) -> None:
    node = SCHEMA if cls is Manifest else SCHEMA["$defs"][cls.__name__]
    fields = [field.name for field in dataclasses.fields(cls)]
    assert list(node["properties"]) == fields
    assert node["required"] == fields
    assert node["additionalProperties"] is False
    for name, hint in typing.get_type_hints(cls).items():
        assert agrees(hint, node["properties"][name]), f"{cls.__name__}.{name}"


def test_the_schema_defines_nothing_else() -> None:
    named = {cls.__name__ for cls in classes(Manifest)} - {"Manifest"}
    assert set(SCHEMA["$defs"]) == named | {"sha256", "path"}


def test_the_fixture_fits() -> None:
    data = json.loads((FIXTURE / "manifest.json").read_text("utf-8"))
    validator().validate(data)
    manifest = read_manifest(FIXTURE)
    assert {entry.name for entry in manifest.components} == {"text_encoder", "denoiser", "decoder"}
    assert all(figure.holds for figure in manifest.parity)
    listed = {file.path for file in manifest.files}
    assert manifest.tokenizer.path in listed
    for entry in manifest.components:
        assert any(path.startswith(entry.path) for path in listed)


@pytest.mark.parametrize("target", ["coreml", "litert"])
def test_the_manifest_of_a_fresh_bundle_fits(micro, target: str) -> None:
    validator().validate(json.loads((micro.bundles[target] / "manifest.json").read_text("utf-8")))


WRONG: dict[str, tuple[tuple[Any, ...], Any]] = {
    "schema": (("schema",), "bundle/2"),
    "family": (("family",), 7),
    "unknown": (("colour",), "red"),
    "component": (("components", 0, "name"), "unet"),
    "dtype": (("components", 0, "inputs", 0, "dtype"), "float64"),
    "shape": (("components", 0, "inputs", 0, "shape", 0), 1.5),
    "floor": (("image_floors", "graph"), "60"),
    "action": (("memory_plan", 0, "action"), "drop"),
    "escape": (("files", 0, "path"), "../x"),
    "escape within": (("files", 0, "path"), "a/../../x"),
    "absolute": (("files", 0, "path"), "/x"),
    "backslash": (("files", 0, "path"), "a\\b"),
    "empty path": (("files", 0, "path"), ""),
    "graph outside": (("components", 0, "path"), "../x"),
    "tokenizer outside": (("tokenizer", "path"), "/x"),
    "override": (("recipe", "overrides"), {"steps": 4}),
    "reference": (("parity", 0, "reference"), "int8"),
    "tools": (("tools",), ["torch"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_the_dataclasses_refuse_the_schema_refuses(case: str) -> None:
    place, value = WRONG[case]
    data = copy.deepcopy(json.loads((FIXTURE / "manifest.json").read_text("utf-8")))
    holder = data
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    assert not validator().is_valid(data)
    with pytest.raises(InputError):
        from_plain(Manifest, data, "manifest.json")
