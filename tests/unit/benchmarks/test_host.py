"""This machine as a farm: launches are processes, and whatever they do ends in words."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from nanoflux_benchmarks.farms import Job, host
from nanoflux_mobile.errors import CheckFailed, InputError, NanofluxError
from nanoflux_mobile.manifest import read_manifest
from nanoflux_mobile.report import LatencyReport, report_json
from nanoflux_mobile.storage import write_file

ROOT = Path(__file__).parents[3]
MANIFEST = ROOT / "tests" / "fixtures" / "contract" / "manifest.json"

FAKE = '''
"""Stands in for the program of one launch: answers with a report that was written before."""
import json, os, signal, sys, time
from pathlib import Path

*words, mark, bundle = sys.argv[1:]
assert mark == "--"
given = dict(word.removeprefix("--").split("=", 1) for word in words)
here = Path(__file__).parent
number = len(list(here.glob("launched-*")))
asked = {**given, "bundle": bundle, "pid": os.getpid()}
if hasattr(os, "sched_getaffinity"):
    asked["cpus"] = sorted(os.sched_getaffinity(0))
(here / f"launched-{number}").write_text(json.dumps(asked))
report = json.loads((here / "template.json").read_text())
report |= {"run_id": given["run-id"], "session": given["session"]}
report["bundle"]["digest"] = (Path(bundle) / "digest").read_text()
report["workload"]["seed"] = int(given["seed"])
launch = report["launches"][0]
launch["started_at"] = f"2026-01-31T12:{number:02}:00Z"
image = launch["images"][-1]
count, warmup = int(given["images"]), int(given["warmup"])
launch["images"] = [{**image, "warmup": i < warmup} for i in range(count + warmup)]
text = json.dumps(report)
exec((here / "twist.py").read_text())
Path(given["out"]).write_text(text)
'''


def make_bundle(folder: Path, family: str = "nanoflux") -> Path:
    """As much of a bundle as the farm itself reads: its manifest, and the digest for the fake."""
    data = json.loads(MANIFEST.read_text("utf-8"))
    folder.mkdir()
    (folder / "manifest.json").write_text(json.dumps({**data, "family": family}), "utf-8")
    (folder / "digest").write_text(read_manifest(folder).digest)
    return folder


@dataclasses.dataclass
class Bench:
    """A farm whose launches are fake, a job for it, and what it told."""

    folder: Path
    job: Job
    said: list[str]

    def run(self, address: str = "", **changed: Any) -> tuple[LatencyReport, ...]:
        return host.run(dataclasses.replace(self.job, **changed), address, self.said.append)

    def twist(self, code: str, launch: int | None = None) -> None:
        """Runs code in every launch, or in one, before its report is written."""
        only = "" if launch is None else f"if number == {launch}:\n    "
        (self.folder / "twist.py").write_text(only + code, "utf-8")

    @property
    def launches(self) -> list[dict[str, Any]]:
        paths = sorted(self.folder.glob("launched-*"), key=lambda path: int(path.name[9:]))
        return [json.loads(path.read_text("utf-8")) for path in paths]

    @property
    def left(self) -> list[Path]:
        return list((self.folder / "tmp").glob("nanoflux-host-*"))


@pytest.fixture
def bench(make_report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    (tmp_path / "app.py").write_text(FAKE, "utf-8")
    write_file(tmp_path / "template.json", report_json(make_report(launches=1)))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(host.tempfile, "tempdir", str(tmp_path / "tmp"))
    monkeypatch.setattr(host, "APP", (sys.executable, "-I", "-S", str(tmp_path / "app.py")))
    bundle = make_bundle(tmp_path / "a bundle")
    found = Bench(tmp_path, Job(bundle, None, 2, 3, 1, 5, None), [])
    found.twist("pass")
    return found


def test_launches_become_one_report(bench: Bench) -> None:
    (report,) = bench.run()
    assert len(report.launches) == 2
    assert [len(launch.measured) for launch in report.launches] == [3, 3]
    assert [len(launch.images) for launch in report.launches] == [4, 4]
    assert report.bundle.digest == read_manifest(bench.job.bundle).digest
    assert report.run_id == f"{report.session}-candidate"
    assert bench.said == [f"launch {i} of 2: candidate a bundle" for i in (1, 2)]
    assert bench.left == []


def test_every_launch_is_a_process_of_its_own_told_the_same(bench: Bench) -> None:
    bench.run()
    launches = bench.launches
    assert len({one["pid"] for one in launches} | {os.getpid()}) == 3
    assert len({one["run-id"] for one in launches}) == 2
    for one in launches:
        asked = {name: one[name] for name in ("images", "warmup", "seed", "threads", "bundle")}
        wanted = {"images": "3", "warmup": "1", "seed": "5", "threads": "1"}
        assert asked == {**wanted, "bundle": str(bench.job.bundle)}


def test_a_baseline_takes_turns(bench: Bench, tmp_path: Path) -> None:
    baseline = make_bundle(tmp_path / "before", family="other")
    candidate, before = bench.run(launches=4, baseline=baseline)
    order = [Path(one["bundle"]).name for one in bench.launches]
    assert order == ["before", "a bundle", "a bundle", "before"] * 2
    assert candidate.session == before.session
    assert candidate.run_id != before.run_id
    assert candidate.bundle.digest == read_manifest(bench.job.bundle).digest
    assert before.bundle.digest == read_manifest(baseline).digest
    minutes = [[launch.start.minute for launch in one.launches] for one in (before, candidate)]
    assert minutes == [[0, 3, 4, 7], [1, 2, 5, 6]]


def test_the_gate_sees_the_turns(bench: Bench, tmp_path: Path) -> None:
    gate = pytest.importorskip("nanoflux_benchmarks.gate")
    both = bench.run(launches=2, baseline=make_bundle(tmp_path / "before", family="other"))
    assert gate.interleaved(*both)


@pytest.fixture
def eight_cpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of four cores that hold two CPUs each, next to one another."""
    for cpu in range(8):
        (tmp_path / f"siblings-{cpu}").write_text(f"{cpu // 2 * 2}-{cpu // 2 * 2 + 1}\n")
    monkeypatch.setattr(host, "SIBLINGS", str(tmp_path / "siblings-{}"))
    monkeypatch.setattr(host, "_PINS", True)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize(("address", "cpus"), [("", [7]), ("1", [7]), ("3", [3, 5, 7])])
def test_threads_get_a_core_each(bench: Bench, monkeypatch, address: str, cpus: list[int]) -> None:
    pinned: list[tuple[int, list[int]]] = []
    monkeypatch.setattr(
        os, "sched_setaffinity", lambda pid, to: pinned.append((pid, to)), raising=False
    )
    bench.run(address, launches=1)
    (launch,) = bench.launches
    assert pinned == [(launch["pid"], cpus)]
    assert launch["threads"] == str(len(cpus))


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the system pins no process")
def test_a_launch_is_held_to_its_core(bench: Bench) -> None:
    wait = """
import os, time
END = time.perf_counter() + 20
while len(os.sched_getaffinity(0)) > 1 and time.perf_counter() < END:
    time.sleep(0.01)
"""
    (bench.folder / "app.py").write_text(wait + FAKE, "utf-8")
    bench.run(launches=1)
    (launch,) = bench.launches
    assert launch["cpus"] == [max(os.sched_getaffinity(0))]


@pytest.mark.usefixtures("eight_cpus")
@pytest.mark.parametrize("address", ["0", "-1", "two", "1.5", "٣", "5", "100000", " "])
def test_an_address_that_is_no_number_of_cores_is_refused(bench: Bench, address: str) -> None:
    with pytest.raises(InputError, match=r"cores"):
        bench.run(address)
    assert bench.launches == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"app": Path("demo.apk")}, "demo.apk"),
        ({"launches": 0}, "launches is 0"),
        ({"bundle": Path("nowhere")}, "nowhere is not a bundle"),
        ({"baseline": Path("nowhere")}, "nowhere is not a bundle"),
    ],
)
def test_a_job_that_cannot_be_done_is_refused(bench: Bench, changed: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        bench.run(**changed)
    assert bench.launches == []


FAULTS = {
    "bad input": (
        "print('noise\\nerror: this bundle is odd', file=sys.stderr); sys.exit(3)",
        InputError,
        "^this bundle is odd$",
    ),
    "failed check": (
        "print('error: a file was changed', file=sys.stderr); sys.exit(1)",
        CheckFailed,
        "^a file was changed$",
    ),
    "a bug": ("raise ZeroDivisionError('by zero')", NanofluxError, "code 1: ZeroDivisionError"),
    "silence": ("os._exit(9)", NanofluxError, "code 9: it said nothing"),
    "killed": ("os.kill(os.getpid(), signal.SIGKILL)", NanofluxError, r"signal 9 \(Killed\)"),
    "no report": ("os._exit(0)", NanofluxError, "left no report: cannot read"),
    "garbage": ("text = 'not JSON'", NanofluxError, "left no report: .* JSON"),
    "half": ("text = text[: len(text) // 2]", NanofluxError, "left no report: .* JSON"),
    "another schema": (
        "text = text.replace('latency-report/1', 'latency-report/2')",
        NanofluxError,
        "left no report: .*latency-report/2",
    ),
    "another run": ("text = text.replace(given['run-id'], 'x')", NanofluxError, "run_id is x"),
    "another session": (
        "text = text.replace('\"session\": \"' + given['session'], '\"session\": \"x')",
        NanofluxError,
        "session is x",
    ),
    "another bundle": (
        "report['bundle']['digest'] = '0' * 64; text = json.dumps(report)",
        NanofluxError,
        "bundle.digest is 0000",
    ),
    "another seed": (
        "report['workload']['seed'] = 6; text = json.dumps(report)",
        NanofluxError,
        "workload.seed is 6, not 5",
    ),
    "too few images": (
        "launch['images'].pop(); text = json.dumps(report)",
        NanofluxError,
        "images is 2, not 3",
    ),
    "no warm-up": (
        "launch['images'][0]['warmup'] = False; text = json.dumps(report)",
        NanofluxError,
        "warm-ups is 0, not 1",
    ),
    "two launches": (
        "report['launches'] *= 2; text = json.dumps(report)",
        NanofluxError,
        "launches is 2, not 1",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_launch_that_goes_wrong_ends_the_run_in_one_sentence(bench: Bench, name: str) -> None:
    code, kind, words = FAULTS[name]
    bench.twist(code)
    with pytest.raises(NanofluxError, match=words) as caught:
        bench.run()
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value)
    assert len(bench.launches) == 1


def test_a_launch_without_end_is_ended(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "LAUNCH_S", 3.0)
    bench.twist("time.sleep(600)")
    with pytest.raises(NanofluxError, match=r"over 3 s; draw fewer images"):
        bench.run()
    for one in bench.launches:  # it may have been ended before it began to say anything
        with pytest.raises(ProcessLookupError):
            os.kill(one["pid"], 0)
    assert bench.left == []


def test_what_ended_well_is_kept_when_a_later_launch_fails(bench: Bench) -> None:
    bench.twist("os.kill(os.getpid(), signal.SIGKILL)", launch=1)
    with pytest.raises(NanofluxError, match="signal 9"):
        bench.run()
    (folder,) = bench.left
    assert bench.said[-1] == f"1 finished launches are kept in {folder}"
    (kept,) = folder.iterdir()
    assert json.loads(kept.read_text("utf-8"))["run_id"].endswith("-candidate.1")


def test_an_interrupt_ends_the_launch_and_passes(bench: Bench) -> None:
    def interrupt(line: str) -> None:
        bench.said.append(line)
        if line.startswith("launch 2"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        host.run(bench.job, "", interrupt)
    assert len(bench.launches) == 1
    assert len(bench.left) == 1


def test_an_interrupt_in_the_middle_of_a_launch_leaves_no_process(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    children: list[Any] = []

    class Interrupted(host.subprocess.Popen):
        def communicate(self, *args: Any, **kwargs: Any) -> Any:
            children.append(self)
            raise KeyboardInterrupt

    bench.twist("time.sleep(600)")
    monkeypatch.setattr(host.subprocess, "Popen", Interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.run()
    (child,) = children
    assert child.returncode == -signal.SIGKILL
    assert bench.left == []


@pytest.fixture
def sources_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets launches find the packages where the tests run from a checkout."""
    roots = (ROOT, ROOT / "export", ROOT / "benchmarks")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, roots)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.mark.usefixtures("sources_on_path")
@pytest.mark.skipif(not importlib.util.find_spec("ai_edge_litert"), reason="needs LiteRT")
def test_a_real_bundle_is_measured(micro: Any, tmp_path: Path) -> None:
    """The whole way once: a process, its report, the merge."""
    said: list[str] = []
    bundle = Path(shutil.copytree(micro.bundles["litert"], tmp_path / "with a space"))
    (report,) = host.run(Job(bundle, None, 1, 2, 1, 3, None), "", said.append)
    (launch,) = report.launches
    assert len(launch.measured) == 2
    assert all(len(image.step_ms) == 3 for image in launch.images)
    manifest = read_manifest(bundle)
    assert report.numerics.golden_psnr_db >= manifest.image_floors.quality
    assert report.runtime.threads == 1
    assert launch.conditions.debugger in (False, True)


@pytest.mark.usefixtures("sources_on_path")
def test_what_a_real_launch_refuses_is_said_here(micro: Any) -> None:
    job = Job(micro.bundles["coreml"], None, 1, 1, 0, 0, None)
    with pytest.raises(InputError, match=r"coreml bundle.*measure the litert bundle"):
        host.run(job, "", [].append)
