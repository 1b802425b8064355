"""One launch on this machine: what its report says, and what it refuses."""

from __future__ import annotations

import dataclasses
import json
import resource
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nanoflux_export.bundle import artifacts
from nanoflux_export.golden import Request
from nanoflux_mobile.drawing import Canvas, Graphs
from nanoflux_mobile.manifest import Manifest, manifest_json, read_manifest
from nanoflux_mobile.report import LatencyReport, Launch, read_report
from nanoflux_mobile.sampler import Schedule

torch = pytest.importorskip("torch")
host_app = pytest.importorskip("nanoflux_export.host_app")
host_machine = pytest.importorskip("nanoflux_export.host_machine")

STEPS, SEED, GRAPHS = 3, 7, ("text_encoder", "denoiser", "decoder")
MEGABYTE = 1 << 20


@pytest.fixture(autouse=True, scope="module")
def threads() -> Iterator[None]:
    """A launch sets torch's threads; whoever comes next finds them as they were."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def arguments(bundle: Path, out: Path, **changed: object) -> list[str]:
    options = {"images": 2, "warmup": 1, "seed": SEED, "run-id": "run-1", "out": out}
    options |= {name.replace("_", "-"): value for name, value in changed.items()}
    return [str(bundle), *(f"--{name}={value}" for name, value in options.items())]


@dataclass(frozen=True)
class Measured:
    """A launch of the micro bundle, and the seeds it drew from in their order."""

    report: LatencyReport
    manifest: Manifest
    seeds: tuple[int, ...]
    threads: int

    @property
    def launch(self) -> Launch:
        (launch,) = self.report.launches
        return launch


@pytest.fixture(scope="module")
def measured(micro, tmp_path_factory: pytest.TempPathFactory) -> Measured:
    out, seeds = tmp_path_factory.mktemp("launch") / "report.json", []

    def draw(graphs: Any, request: Any) -> Any:
        seeds.append(request.seed)
        return drawn(graphs, request)

    drawn = host_app.draw_request
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(host_app, "draw_request", draw)
        given = arguments(micro.bundles["litert"], out, session="night", threads=1)
        assert host_app.main(given) == 0
    manifest = read_manifest(micro.bundles["litert"])
    return Measured(read_report(out), manifest, tuple(seeds), torch.get_num_threads())


def test_the_report_is_about_this_bundle_here(measured: Measured) -> None:
    report = measured.report
    assert (report.run_id, report.session, report.complete) == ("run-1", "night", True)
    assert report.bundle.digest == measured.manifest.digest
    assert (report.bundle.recipe, report.bundle.target) == ("micro", "litert")
    assert (report.device.platform, report.device.simulator) == ("linux", False)
    assert report.device.model
    assert (report.runtime.name, report.runtime.compute_units) == ("litert", "cpu")
    assert report.runtime.threads == measured.threads == 1
    assert dataclasses.astuple(report.workload) == (32, STEPS, SEED)
    assert report.errors == ()


def test_warm_ups_come_first_and_every_image_has_all_its_parts(measured: Measured) -> None:
    images = measured.launch.images
    assert [image.warmup for image in images] == [True, False, False]
    for image in images:
        parts = image.text_encoder_ms, *image.step_ms, image.decoder_ms
        assert len(image.step_ms) == STEPS
        assert min(parts) > 0
        assert sum(parts) <= image.total_ms


def test_the_golden_run_has_its_own_seed(measured: Measured) -> None:
    assert measured.seeds == (0, SEED, SEED, SEED)


def test_images_begin_after_one_another_by_both_clocks(measured: Measured) -> None:
    for a, b in pairwise(measured.launch.images):
        assert b.uptime_ms >= a.uptime_ms + a.total_ms
        assert b.wall_ms > a.wall_ms
    age = datetime.now(UTC) - measured.launch.start
    assert age.total_seconds() * 1e3 > measured.launch.images[-1].uptime_ms


def test_every_graph_is_loaded_afresh_and_again(measured: Measured) -> None:
    found = [(load.component, load.state) for load in measured.launch.load]
    assert sorted(found) == sorted(
        (name, state) for name in GRAPHS for state in ("relaunch", "warm")
    )
    assert min(load.ms for load in measured.launch.load) > 0


def test_the_golden_run_holds_the_floor_of_the_bundle(measured: Measured) -> None:
    numerics = measured.report.numerics
    assert numerics.golden_psnr_db >= measured.manifest.image_floors.quality
    assert numerics.non_finite == 0


def test_the_peak_is_what_the_system_accounted_for(measured: Measured) -> None:
    memory = measured.launch.memory
    assert memory.method == "VmHWM"
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    # The kernel counts pages in batches for each thread, so the two may be some pages apart.
    assert 50 * MEGABYTE < memory.peak_bytes <= most + MEGABYTE


def test_everything_runs_on_the_cpu(measured: Measured) -> None:
    places = measured.report.placement
    assert {place.component for place in places} == set(GRAPHS)
    assert all((p.neural_engine, p.gpu, p.cpu) == (0, 0, 1) for p in places)
    assert all(p.total_ops > 0 and p.delegated_ops is None for p in places)


def test_a_wrong_picture_shows_in_the_numerics(
    micro, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    litert = host_app.target_named("litert")

    def load(path: Path, component: Any, **how: str) -> Any:
        run = litert.load(path, component, **how)
        wrong = np.float32(np.nan if component.name == "decoder" else 1)
        return lambda inputs: {name: wrong * value for name, value in run(inputs).items()}

    fake = SimpleNamespace(load=load, summarize=litert.summarize)
    monkeypatch.setattr(host_app, "target_named", lambda name: fake)
    given = arguments(micro.bundles["litert"], tmp_path / "r.json", images=1, warmup=0)
    with np.errstate(invalid="ignore"):
        assert host_app.main(given) == 0
    numerics = read_report(tmp_path / "r.json").numerics
    assert numerics.golden_psnr_db == host_app.LOWEST_DB
    assert numerics.non_finite == 3 * 32 * 32  # the whole picture, and nothing before it


def without_picture(bundle: Path) -> Path:
    """The bundle as one whose network is too slow to draw with: golden steps and no picture."""
    manifest = read_manifest(bundle)
    (bundle / "manifest.json").unlink()
    (bundle / "golden" / "image.png").unlink()
    tensors = load_file(bundle / "golden" / "tensors.safetensors")
    kept = {name: tensor for name, tensor in tensors.items() if not name.endswith(".image")}
    save_file(kept, bundle / "golden" / "tensors.safetensors")
    changed = dataclasses.replace(manifest, files=artifacts(bundle))
    (bundle / "manifest.json").write_text(manifest_json(changed), "utf-8")
    return bundle


def test_without_a_golden_picture_the_numerics_stay_open(micro, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(micro.bundles["litert"], tmp_path / "copy"))
    given = arguments(without_picture(copy), tmp_path / "r.json", images=1, warmup=0)
    assert host_app.main(given) == 0
    report = read_report(tmp_path / "r.json")
    assert report.numerics is None
    assert [len(image.step_ms) for image in report.launches[0].images] == [STEPS]


def test_steps_of_both_resolutions_are_timed() -> None:
    def answer(**outputs: np.ndarray) -> Any:
        return lambda inputs: outputs

    latents = np.zeros((1, 4, 1, 4), np.float32)
    low_runs: list[int] = []
    graphs = Graphs(
        answer(text_states=np.zeros((1, 2, 1, 2), np.float32)),
        answer(velocity=latents),
        answer(image=np.zeros((1, 3, 8, 8), np.float32)),
        lambda inputs: low_runs.append(1) or {"velocity": latents},
    )
    schedule, canvas = Schedule((1.0, 0.75, 0.25, 0.0), low_steps=2), Canvas(1, 4, 4, 2)
    tables = np.zeros((3, 1, 1, 1, 1), np.float32)
    request = Request(np.zeros((1, 2), np.int32), tables, schedule, canvas, 0)
    clocks = host_app.Clocks(time.perf_counter(), time.time())
    image = host_app._image(graphs, request, clocks, warmup=False)
    assert (len(image.step_ms), len(low_runs)) == (3, 2)
    assert min(image.step_ms) > 0


@pytest.fixture
def refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """Asserts that a launch ends with a code, one sentence that holds the words, and no report."""

    def check(code: int, bundle: Path, *words: str, **changed: object) -> None:
        out = tmp_path / "refused.json"
        capfd.readouterr()
        assert host_app.main(arguments(bundle, out, **changed)) == code
        line = capfd.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("error: ")
        assert all(word in line for word in words), line
        assert not out.exists()

    return check


def test_core_ml_bundles_are_refused_in_one_sentence(micro, refused) -> None:
    refused(3, micro.bundles["coreml"], "coreml bundle", "measure the litert bundle")


def test_what_is_no_bundle_is_refused(refused, tmp_path: Path) -> None:
    refused(3, tmp_path / "nowhere", "not a bundle")


def test_a_changed_file_is_refused(micro, refused, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(micro.bundles["litert"], tmp_path / "copy"))
    with (bundle / "components/denoiser.tflite").open("r+b") as file:
        file.write(b"\0\0\0\1")
    refused(1, bundle, "components/denoiser.tflite was changed")


def test_a_schedule_of_other_length_is_refused(micro, refused, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(micro.bundles["litert"], tmp_path / "copy"))
    data = json.loads((bundle / "manifest.json").read_text("utf-8"))
    data["sigmas"] = [1.0, 0.8, 0.6, 0.4, 0.0]
    (bundle / "manifest.json").write_text(json.dumps(data), "utf-8")
    refused(3, bundle, "holds 3 steps", "schedule has 4")


@pytest.mark.parametrize("name", GRAPHS)
def test_a_bundle_without_a_graph_is_refused(micro, refused, tmp_path: Path, name: str) -> None:
    bundle = Path(shutil.copytree(micro.bundles["litert"], tmp_path / "copy"))
    data = json.loads((bundle / "manifest.json").read_text("utf-8"))
    data["components"] = [entry for entry in data["components"] if entry["name"] != name]
    (bundle / "manifest.json").write_text(json.dumps(data), "utf-8")
    refused(3, bundle, f"lacks the graph {name}")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("images", 0),
        ("images", "1e3"),
        ("images", "²"),
        ("warmup", -1),
        ("seed", 2**64),
        ("threads", 0),
        ("threads", 1 << 20),
    ],
)
def test_numbers_out_of_range_are_refused(refused, tmp_path: Path, name: str, value: Any) -> None:
    refused(3, tmp_path, f"--{name}", str(value), "whole number", **{name: value})


def test_a_name_that_is_no_name_is_refused_before_measuring(micro, refused) -> None:
    refused(3, micro.bundles["litert"], "run_id", "../x", run_id="../x")


def test_an_unknown_option_is_refused(refused, tmp_path: Path) -> None:
    refused(3, tmp_path, "--hurry", hurry=1)


@pytest.fixture
def kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Lets the kernel say something else; None takes the file away."""

    def say(**files: str | None) -> None:
        for name, text in files.items():
            path = tmp_path / name
            if text is not None:
                path.write_text(text, "utf-8")
            monkeypatch.setattr(host_machine, name, path)

    return say


def test_the_machine_is_read_as_the_kernel_writes_it(kernel) -> None:
    kernel(
        CPUS="processor\t: 0\nmodel name\t: Fast: 9000\nprocessor\t: 1\nmodel name\t: Slow\n",
        MEMORY="MemFree:  1 kB\nMemTotal:       16384 kB\n",
        PROCESS="Name:\tpython\nTracerPid:\t0\nVmHWM:\t    2048 kB\n",
        PROFILE="balanced\n",
    )
    device, state, memory = (
        host_machine.device(),
        host_machine.conditions(),
        host_machine.peak_memory(),
    )
    assert (device.model, device.ram_bytes) == ("Fast: 9000", 16 * MEGABYTE)
    assert memory.peak_bytes == 2 * MEGABYTE
    assert (state.debugger, state.low_power) == (bool(sys.gettrace()), False)
    assert (state.thermal_before, state.battery_level, state.foreground) == (None, None, None)


def test_debuggers_and_low_power_are_seen(kernel) -> None:
    kernel(PROCESS="TracerPid:\t4711\n", PROFILE="low-power\n")
    state = host_machine.conditions()
    assert (state.debugger, state.low_power) == (True, True)


def test_a_system_without_these_files_leaves_them_open(kernel) -> None:
    kernel(CPUS=None, MEMORY=None, PROCESS=None, PROFILE=None)
    assert host_machine.device().model
    assert host_machine.device().ram_bytes is None
    assert host_machine.peak_memory() is None
    assert host_machine.conditions().low_power is None
