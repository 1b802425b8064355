"""The JSON Schemas of our contracts and the dataclasses that read them say the same."""

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
from nanoflux_mobile.report import LatencyReport, numbered, read_report
from nanoflux_mobile.strict_json import from_plain, to_plain

SCHEMAS = resources.files("nanoflux_mobile") / "schemas"
FIXTURE = Path(__file__).parents[1] / "fixtures" / "contract"
TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}


@dataclasses.dataclass(frozen=True)
class Contract:
    """A written file: its class, its schema, its example, and what the schema names beside."""

    cls: Any
    schema: str
    example: str
    more: frozenset[str] = frozenset()


CONTRACTS = {
    "bundle": Contract(Manifest, "bundle-1", "manifest.json", more=frozenset({"sha256", "path"})),
    "report": Contract(LatencyReport, "latency-report-1", "latency-report.json"),
}


def schema_of(contract: Contract) -> dict[str, Any]:
    """The schema as JSON."""
    return json.loads((SCHEMAS / f"{contract.schema}.schema.json").read_text("utf-8"))


def example(contract: Contract) -> Any:
    """The example as JSON."""
    return json.loads((FIXTURE / contract.example).read_text("utf-8"))


def validator(contract: Contract) -> Draft202012Validator:
    return Draft202012Validator(schema_of(contract))


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


def agrees(hint: Any, node: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    """Whether a schema node takes what an annotation takes."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return agrees(args[0], without_null(node), schema)
    if dataclasses.is_dataclass(hint):
        return node.get("$ref") == f"#/$defs/{hint.__name__}"
    if origin is typing.Literal:
        return tuple(node.get("enum", [node.get("const")])) == args
    if origin is tuple and args[1:] == (Ellipsis,):
        return node["type"] == "array" and agrees(args[0], node["items"], schema)
    if origin in (dict, Mapping) or origin is types.MappingProxyType:
        return node["type"] == "object" and agrees(args[1], node["additionalProperties"], schema)
    if reference := node.get("$ref"):
        node = schema["$defs"][reference.removeprefix("#/$defs/")]
    return bool(node["type"] == TYPES[hint])


def without_null(node: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a node takes beside null; an assertion says that it takes null."""
    if one := node.get("oneOf"):
        assert one[1] == {"type": "null"}
        return one[0]
    if words := node.get("enum"):
        assert words[-1] is None
        return {"enum": words[:-1]}
    assert node["type"][1:] == ["null"]
    return {"type": node["type"][0]}


def needed(field: dataclasses.Field[Any]) -> bool:
    """Whether a field has no default."""
    return {field.default, field.default_factory} == {dataclasses.MISSING}


PAIRS = [
    pytest.param(contract, cls, id=f"{name}-{cls.__name__}")
    for name, contract in CONTRACTS.items()
    for cls in classes(contract.cls)
]
every = pytest.mark.parametrize("contract", CONTRACTS.values(), ids=CONTRACTS)


@every
def test_the_schema_is_one(contract: Contract) -> None:
    Draft202012Validator.check_schema(schema_of(contract))


@pytest.mark.parametrize(("contract", "cls"), PAIRS)
def test_schema_and_dataclass_name_the_same_fields_of_the_same_types(
    contract: Contract, cls: Any
) -> None:
    schema = schema_of(contract)
    node = schema if cls is contract.cls else schema["$defs"][cls.__name__]
    fields = [field.name for field in dataclasses.fields(cls)]
    assert list(node["properties"]) == fields
    assert node["required"] == [f.name for f in dataclasses.fields(cls) if needed(f)]
    assert node["additionalProperties"] is False
    for name, hint in typing.get_type_hints(cls).items():
        assert agrees(hint, node["properties"][name], schema), f"{cls.__name__}.{name}"


@every
def test_the_schema_defines_nothing_else(contract: Contract) -> None:
    named = {cls.__name__ for cls in classes(contract.cls)} - {contract.cls.__name__}
    assert set(schema_of(contract)["$defs"]) == named | contract.more


@every
def test_the_example_fits_and_is_written_as_it_was_read(contract: Contract) -> None:
    data = example(contract)
    validator(contract).validate(data)
    assert to_plain(from_plain(contract.cls, data, contract.example)) == data


def test_the_example_bundle_is_whole() -> None:
    manifest = read_manifest(FIXTURE)
    assert {entry.name for entry in manifest.components} == {"text_encoder", "denoiser", "decoder"}
    assert all(figure.holds for figure in manifest.parity)
    listed = {file.path for file in manifest.files}
    assert manifest.tokenizer.path in listed
    for entry in manifest.components:
        for chunk in entry.chunks:
            assert any(path.startswith(f"{chunk.path}/") for path in listed)


@pytest.mark.parametrize("target", ["coreml", "litert"])
def test_the_manifest_of_a_fresh_bundle_fits(micro, target: str) -> None:
    text = (micro.bundles[target] / "manifest.json").read_text("utf-8")
    validator(CONTRACTS["bundle"]).validate(json.loads(text))


def test_the_example_report_measured_the_example_bundle() -> None:
    manifest, report = read_manifest(FIXTURE), read_report(FIXTURE / "latency-report.json")
    assert report.bundle.digest == manifest.digest
    assert report.workload.steps == len(manifest.sigmas) - 1
    assert {len(image.step_ms) for _, image in numbered(report.launches)} == {report.workload.steps}


WRONG: dict[str, dict[str, tuple[tuple[Any, ...], Any]]] = {
    "bundle": {
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
        "no chunk": (("components", 0, "chunks"), []),
        "graph outside": (("components", 0, "chunks", 0, "path"), "../x"),
        "weight": (("components", 0, "chunks", 0, "weight_bytes"), 1.5),
        "functions": (("components", 0, "chunks", 0, "functions"), ["main"]),
        "interface": (("components", 0, "chunks", 0, "functions", "main", "inputs"), None),
        "low steps": (("low_steps",), None),
        "tokenizer outside": (("tokenizer", "path"), "/x"),
        "override": (("recipe", "overrides"), {"steps": 4}),
        "reference": (("parity", 0, "reference"), "int8"),
        "tools": (("tools",), ["torch"]),
        "severity": (("lint", 0, "severity"), "fatal"),
        "ops": (("lint", 0, "ops"), "conv"),
        "suppressed": (("lint", 0, "suppressed"), None),
        "layers": (("components", 1, "layers"), ["fp16"]),
        "unmet": (("unmet", 0, "layers"), "7"),
        "hazard": (("hazards", 0, "most"), "inf"),
        "no reason": (("suppress", 0, "reason"), " "),
    },
    "report": {
        "schema": (("schema",), "latency-report/2"),
        "unknown": (("colour",), "red"),
        "unfinished": (("complete",), False),
        "run_id": (("run_id",), "../x"),
        "session": (("session",), "a b"),
        "platform": (("device", "platform"), "windows"),
        "simulator": (("device", "simulator"), "no"),
        "build": (("app", "build"), "profile"),
        "steps": (("workload", "steps"), 0),
        "side": (("workload", "image_side"), 1 << 20),
        "start": (("launches", 0, "started_at"), "12:00"),
        "thermal": (("launches", 0, "conditions", "thermal_before"), 0),
        "battery": (("launches", 0, "conditions", "battery_level"), 87),
        "load state": (("launches", 0, "load", 0, "state"), "cold"),
        "load time": (("launches", 0, "load", 0, "ms"), -1),
        "no load time": (("launches", 0, "load", 0, "ms"), None),
        "image time": (("launches", 0, "images", 0, "total_ms"), -0.5),
        "text for a time": (("launches", 0, "images", 0, "total_ms"), "12 ms"),
        "step time": (("launches", 0, "images", 0, "step_ms", 1), 1e10),
        "step list": (("launches", 0, "images", 0, "step_ms"), 21.0),
        "memory": (("launches", 0, "memory", "peak_bytes"), 0),
        "share": (("placement", 0, "gpu"), 1.5),
        "component": (("placement", 0, "component"), "unet"),
        "non-finite": (("numerics", "non_finite"), -1),
        "decibel": (("numerics", "golden_psnr_db"), 1e6),
        "errors": (("errors",), "none"),
    },
}


CASES = [(name, case) for name, cases in WRONG.items() for case in cases]


@pytest.mark.parametrize(("name", "case"), CASES)
def test_what_the_dataclasses_refuse_the_schema_refuses(name: str, case: str) -> None:
    place, value = WRONG[name][case]
    contract = CONTRACTS[name]
    data = copy.deepcopy(example(contract))
    holder = data
    for key in place[:-1]:
        holder = holder[key]
    holder[place[-1]] = value
    assert not validator(contract).is_valid(data)
    with pytest.raises(InputError):
        from_plain(contract.cls, data, contract.example)
