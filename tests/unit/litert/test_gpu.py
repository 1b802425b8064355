"""The GPU check without a GPU: what it looks for, starts, and makes of what the delegate logs."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from nanoflux_export.console import gpu_remarks, gpu_table
from nanoflux_export.targets.litert import gpu, gpu_check
from nanoflux_export.targets.litert.gpu import Driver, GpuRefusal, GpuRun, driver, run_on_gpu
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.manifest import Chunk, ComponentEntry, Interface
from nanoflux_mobile.spec import Floors
from tests.unit.litert.conftest import DECODER, Saved

HALVES = """\
ERROR: Following operations are not supported by GPU delegate:
BROADCAST_TO: Operation is not supported.
DEQUANTIZE: 
10 operations will run on the GPU, and the remaining 6 operations will run on the CPU.
"""
ALL = """\
ERROR: Following operations are not supported by GPU delegate:
SLICE: Slicing is unsupported for input with rank > 4
No operations will run on the GPU, and all 5 operations will run on the CPU.
"""
BUG = """\
E0000 00:00:1795275609.855097   23197 delegate_webgpu.cc:478] Failed to create \
litert::ml_drift::DelegateKernelLiteRt: INVALID_ARGUMENT: Unable to parse bc coord for BATCH axis.
ERROR: Failed to initialize kernel.
ERROR: Restored original execution plan after delegate application failure.
"""

LATE = """\
RuntimeError: TensorBufferWrapper error: code=7, message=ERROR: [litert_tensor_buffer.h:699]
└ ERROR: [litert/runtime/tensor_buffer.cc:1133]
└ Failed to lock custom tensor buffer.
"""


@pytest.fixture(autouse=True)
def _no_driver_of_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in ("NANOFLUX_VULKAN_ICD", "VK_ICD_FILENAMES"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("NANOFLUX_TOOLCHAINS", str(tmp_path / "toolchains"))


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Puts a program in the place of the one that runs the delegate."""

    def put(text: str) -> None:
        program = tmp_path / "child.py"
        program.write_text(text, "utf-8")
        monkeypatch.setattr(gpu.gpu_child, "__file__", str(program))
        monkeypatch.setenv("NANOFLUX_VULKAN_ICD", "/somebody's/icd.json")

    return put


def test_a_driver_that_the_user_names_comes_before_the_unpacked_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert driver() is None
    place = tmp_path / "toolchains" / "vulkan"
    (place / "root" / "usr" / "lib" / "x86_64-linux-gnu").mkdir(parents=True)
    (place / "icd.json").write_text("{}", "utf-8")
    libraries = str(place / "root" / "usr" / "lib" / "x86_64-linux-gnu")
    assert driver() == Driver(str(place / "icd.json"), (libraries,))
    monkeypatch.setenv("VK_ICD_FILENAMES", "/vendor.json")
    assert driver() == Driver("/vendor.json")
    monkeypatch.setenv("NANOFLUX_VULKAN_ICD", "/chosen.json")
    assert driver() == Driver("/chosen.json")


def test_only_the_child_sees_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LD_LIBRARY_PATH", "/mine")
    before = dict(os.environ)
    made = Driver("/a.json", ("/libraries",)).environment(tmp_path)
    assert dict(os.environ) == before
    assert made["VK_ICD_FILENAMES"] == "/a.json"
    assert made["LD_LIBRARY_PATH"] == "/libraries:/mine"
    assert made["XDG_RUNTIME_DIR"] == str(tmp_path)
    assert made["GALLIVM_PERF"] == "nopt"
    monkeypatch.setenv("GALLIVM_PERF", "no_fp16")
    assert Driver("/a.json").environment(tmp_path)["GALLIVM_PERF"] == "no_fp16"


def test_without_a_driver_one_sentence_says_how_to_get_one(block: Saved) -> None:
    with pytest.raises(InputError, match=r"tests/toolchains/vulkan\.sh") as told:
        run_on_gpu(block.files["fp16"], block.inputs)
    assert "\n" not in str(told.value)


def test_what_a_file_lacks_is_told_before_anything_starts(
    block: Saved, child: Callable[[str], None]
) -> None:
    child("raise SystemExit('was started')")
    path = block.files["fp16"]
    with pytest.raises(InputError, match="no function step_low; it has main"):
        run_on_gpu(path, block.inputs, function="step_low")
    with pytest.raises(InputError, match="latents"):
        run_on_gpu(path, {name: value[..., :-1] for name, value in block.inputs.items()})


@pytest.mark.parametrize(
    ("log", "words", "partly"),
    [
        (HALVES, ("BROADCAST_TO: Operation is not supported.", "DEQUANTIZE", "10 op"), True),
        (ALL, ("SLICE: Slicing is unsupported for input with rank > 4", "No op"), False),
        (BUG, ("INVALID_ARGUMENT: Unable to parse bc coord for BATCH axis.",), False),
        (LATE, ("LiteRT gave up waiting for the GPU",), False),
        ("something else\nthe last line\n", ("the last line",), False),
    ],
)
def test_a_refusal_carries_the_words_of_the_delegate(
    block: Saved, child: Callable[[str], None], log: str, words: tuple[str, ...], partly: bool
) -> None:
    child(f"import sys; sys.stderr.write({log!r}); sys.exit(1)")
    with pytest.raises(GpuRefusal) as refused:
        run_on_gpu(block.files["fp16"], block.inputs)
    assert all(x.startswith(y) for x, y in zip(refused.value.words, words, strict=True))
    assert refused.value.partly is partly
    assert words[0] in str(refused.value)
    assert str(block.files["fp16"]) in str(refused.value)


@pytest.mark.parametrize(
    ("program", "word"),
    [
        ("import os; os.abort()", "SIGABRT"),
        ("import os; os.kill(os.getpid(), 11)", "SIGSEGV"),
        ("import time; time.sleep(60)", "within 1 s"),
    ],
)
def test_a_crash_or_a_hang_is_a_refusal(
    block: Saved, child: Callable[[str], None], program: str, word: str
) -> None:
    child(program)
    with pytest.raises(GpuRefusal, match=word):
        run_on_gpu(block.files["fp16"], block.inputs, timeout=1)


def test_a_driver_that_serves_nobody_is_no_fault_of_the_file(
    block: Saved, child: Callable[[str], None]
) -> None:
    child("import sys; sys.exit('ERROR: [a.cc:1] Failed: INTERNAL: No adapters found')")
    with pytest.raises(InputError, match=r"somebody's/icd\.json does not serve LiteRT"):
        run_on_gpu(block.files["fp16"], block.inputs)


@pytest.fixture
def entry(decoder: Saved) -> ComponentEntry:
    """The small decoder as a bundle lists it, with a floor of 60 dB."""
    face = Interface(DECODER.inputs, DECODER.outputs)
    chunk = Chunk(decoder.files["fp16"].name, 1, {"main": face})
    sides = DECODER.inputs, DECODER.outputs
    return ComponentEntry("decoder", "fp16", "gpu", *sides, Floors(60, 60), (chunk,))


def figures(decoder: Saved, entry: ComponentEntry) -> tuple[gpu_check.GpuFigure, ...]:
    folder, probes = decoder.files["fp16"].parent, [decoder.inputs]
    return tuple(gpu_check._figures(folder, entry, "main", probes, 5.0))


def test_ops_off_the_gpu_are_named_and_the_rest_is_still_measured(
    decoder: Saved, entry: ComponentEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    truth = decoder.runner("fp16")(decoder.inputs)["image"]

    def run(path: Path, inputs: object, *, half: bool, rest_on_cpu: bool = False, **_: object):
        if not rest_on_cpu:
            raise GpuRefusal(path, ("BROADCAST_TO: no", "1 of 2"), partly=True)
        noise = np.ptp(truth) * (1e-2 if half else 1e-4)  # 40 and 80 dB
        return GpuRun(
            {"image": truth + np.float32(noise)}, False, 1.0, "a GPU", ("BROADCAST_TO: no",)
        )

    monkeypatch.setattr(gpu_check, "run_on_gpu", run)
    (figure,) = figures(decoder, entry)
    assert not figure.fully_accelerated
    assert figure.on_cpu == ("BROADCAST_TO: no",)
    assert figure.fp32_db == pytest.approx(80, abs=0.5)  # float32 of a sum, and CPU threads
    assert figure.half_db == pytest.approx(40, abs=0.5)
    assert figure.holds
    assert not replace(figure, fp32_db=54.9).holds
    assert not replace(figure, half_db=34.9).holds


def test_a_file_that_the_delegate_crashes_over_has_no_figures(
    decoder: Saved, entry: ComponentEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(path: Path, *_: object, **__: object):
        raise GpuRefusal(path, ("its process was ended by SIGABRT",), partly=False)

    monkeypatch.setattr(gpu_check, "run_on_gpu", run)
    (figure,) = figures(decoder, entry)
    assert figure.on_cpu == ("its process was ended by SIGABRT",)
    assert (figure.fp32_db, figure.half_db, figure.holds) == (None, None, False)


def test_the_table_tells_how_far_each_function_runs_and_the_remarks_why() -> None:
    whole = gpu_check.GpuFigure(
        "denoiser", "step_full", "a", (), 44.0, 43.0, 33.0, 33.0, 1.0, "a GPU"
    )
    late = replace(whole, function="step_low", half_db=None, on_cpu=("gave up",))
    figures = [whole, late, replace(whole, on_cpu=("TILE: no", "1 of 2")),
               replace(late, fp32_db=None, device="")]  # fmt: skip
    screen = Console(record=True, width=100)
    screen.print(gpu_table(figures))
    rows = screen.export_text().splitlines()
    assert rows[0].strip() == "on the GPU: a GPU"
    told = [row for row in rows if row.startswith("│")]
    extents = ("all of it", "float32 only", "in part", "no")
    for row, extent in zip(told, extents, strict=True):
        assert row.split("│")[3].strip() == extent
    assert [row.split("│")[-2].strip() for row in told] == ["holds", "fails"] * 2
    assert gpu_remarks(figures) == [
        "denoiser step_low: gave up",
        "denoiser step_full: TILE: no; 1 of 2",
        "denoiser step_low: gave up",
    ]
