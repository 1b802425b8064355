"""farms/adb against Android's real adbd on loopback, with the faults that phones have."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from nanoflux_benchmarks.farms import Job, _app
from nanoflux_benchmarks.farms.adb import launching, link, run
from nanoflux_benchmarks.validity import expected, reasons
from nanoflux_mobile.errors import InputError, NanofluxError
from nanoflux_mobile.manifest import FILE, read_manifest
from tests.toolchains.played import SECONDS, STORAGE_BYTES, Played, until

FIXTURE = Path(__file__).parents[1] / "fixtures" / "contract" / "manifest.json"
IMAGES, WARMUP, SEED = 10, 2, 7
ODD = 'components/it\'s $HOME; `x` "y".tflite'
"""A name that every quoting mistake trips over."""


def silent(_: str) -> None:
    """Nobody listens."""


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "ATTACH_S", 1.0)
    monkeypatch.setattr(link, "PAUSE_S", 0.1)
    monkeypatch.setattr(launching, "POLL_S", 0.05)


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """A bundle of random files; its last but the manifest has `bulk` bytes."""

    def make(name: str = "my bundle", bulk: int = 1000) -> Path:
        folder, files = tmp_path / name, []
        for path, size in {"a.bin": 100_000, ODD: 200_000, "z.bin": bulk}.items():
            data = hashlib.shake_128(f"{name}/{path}".encode()).digest(size)
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)
            (folder / path).chmod(0o600)  # as some writers of models leave them
            digest = hashlib.sha256(data).hexdigest()
            files.append({"path": path, "sha256": digest, "bytes": size})
        manifest = json.loads(FIXTURE.read_text("utf-8")) | {"target": "litert", "files": files}
        (folder / "manifest.json").write_text(json.dumps(manifest), "utf-8")
        return folder

    return make


@pytest.fixture
def app(tmp_path: Path) -> Path:
    """What the played `pm` takes for an app."""
    (tmp_path / "the app.apk").write_bytes(b"an apk")
    return tmp_path / "the app.apk"


@pytest.fixture
def job(make_bundle: Callable[..., Path], app: Path) -> Job:
    """One launch, which is enough for most faults."""
    return Job(make_bundle(), app, 1, IMAGES, WARMUP, SEED, None)


def launched(phone: Played) -> list[str]:
    """The digest of the bundle of every launch there was, in order."""
    started = phone.path("/data/played/started")
    return (
        [line.split()[0] for line in started.read_text().splitlines()] if started.exists() else []
    )


def on_phone(phone: Played, bundle: Path) -> Path:
    return phone.path(f"{_app.ANDROID_BUNDLES}/{read_manifest(bundle).digest}")


def test_five_launches(phone: Played, make_bundle: Callable[..., Path], app: Path) -> None:
    bundle = make_bundle()
    said: list[str] = []
    job = Job(bundle, app, 5, IMAGES, WARMUP, SEED, None)
    (report,) = run(job, phone.serial, said.append)
    assert report.session is None
    assert report.workload.seed == SEED
    assert [len(launch.measured) for launch in report.launches] == [IMAGES] * 5
    assert [launch.load[0].state for launch in report.launches] == ["first"] + ["relaunch"] * 4
    manifest = read_manifest(bundle)
    assert reasons(report, expected(None, manifest)) == ()
    for path in ("manifest.json", *(file.path for file in manifest.files)):
        copy = on_phone(phone, bundle) / path
        assert copy.read_bytes() == (bundle / path).read_bytes()
        assert copy.stat().st_mode & 0o004, "apps may read it"
        assert copy.parent.stat().st_mode & 0o001, "apps may enter its folder"
    assert phone.path("/data/played/app.apk").read_bytes() == app.read_bytes()
    assert os.listdir(phone.path("/data/local/tmp")) == ["nanoflux"]
    assert "SM-S938B (SM8750), Android 16: battery 83 %, charging, thermal status 0" in said[0]
    assert said[-1] == f"launch 5 of 5, candidate: {IMAGES} images"


def test_baseline_and_candidate_take_turns(
    phone: Played, make_bundle: Callable[..., Path], app: Path
) -> None:
    new, old = make_bundle("new"), make_bundle("old")
    job = Job(new, app, 4, IMAGES, WARMUP, SEED, old)
    candidate, baseline = run(job, phone.serial, silent)
    names = {read_manifest(new).digest: "A", read_manifest(old).digest: "B"}
    assert "".join(names[digest] for digest in launched(phone)) == "ABBAABBA"
    assert (candidate.bundle.digest, baseline.bundle.digest) == tuple(names)
    assert candidate.session == baseline.session is not None
    assert candidate.run_id != baseline.run_id
    assert len(candidate.launches) == len(baseline.launches) == 4


def test_the_only_phone_needs_no_name_and_of_two_one_is_named(phone: Played, job: Job) -> None:
    assert len(run(job, "", silent)) == 1
    phone.run("connect", f"localhost:{phone.port}")
    with pytest.raises(InputError, match=rf"{phone.serial} \(device\), localhost:\d+ \(device\)"):
        run(job, "", silent)
    assert len(run(job, phone.serial, silent)) == 1


def test_what_is_there_and_right_is_not_copied_again(phone: Played, job: Job) -> None:
    run(job, phone.serial, silent)
    damaged = on_phone(phone, job.bundle) / ODD
    data = bytearray(damaged.read_bytes())
    data[77] ^= 1
    damaged.write_bytes(data)
    said: list[str] = []
    run(job, phone.serial, said.append)
    assert [line for line in said if line.startswith("copied")] == [f"copied {ODD} (0.2 MB)"]
    assert damaged.read_bytes() == (job.bundle / ODD).read_bytes()


@pytest.fixture
def large(make_bundle: Callable[..., Path], job: Job) -> Job:
    """Its z.bin has 2 MB."""
    return replace(job, bundle=make_bundle(bulk=2_000_000))


def cut_after_a_megabyte(phone: Played) -> None:
    """The kernel ends adbd when it writes further into a file than that."""
    resource.prlimit(phone.adbd(), resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))


def test_a_copy_goes_on_where_a_lost_phone_stopped_it(phone: Played, large: Job) -> None:
    cut_after_a_megabyte(phone)
    with pytest.raises(NanofluxError, match=rf"^lost {phone.serial} while copying z\.bin: .*again"):
        run(large, phone.serial, silent)
    assert (on_phone(phone, large.bundle) / "z.bin").stat().st_size == 1_000_000
    phone.attach()
    said: list[str] = []
    run(large, phone.serial, said.append)
    assert [line.split()[1] for line in said if line.startswith("copied")] == ["z.bin", FILE]


def test_a_phone_that_comes_back_is_waited_for(
    phone: Played, large: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "ATTACH_S", SECONDS)
    cut_after_a_megabyte(phone)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, large, phone.serial, silent)
        phone.processes["adbd"].wait(SECONDS)
        phone.attach()
        (report,) = running.result()
    assert len(report.launches) == 1


def test_a_full_phone(phone: Played, large: Job) -> None:
    filler = phone.path("/data/filler")
    filler.write_bytes(b"x" * (STORAGE_BYTES - 1_000_000))
    with pytest.raises(InputError, match=r"takes no z\.bin \(2\.0 MB\): its storage is full"):
        run(large, phone.serial, silent)
    filler.unlink()
    assert len(run(large, phone.serial, silent)) == 1


def test_a_phone_lost_while_it_measures(phone: Played, job: Job) -> None:
    phone.play("vanish")
    with pytest.raises(NanofluxError, match=rf"lost {phone.serial} while launch .*-candidate-1: "):
        run(job, phone.serial, silent)
    phone.play("ok")
    phone.vanish()
    phone.attach()
    said: list[str] = []
    assert len(run(job, phone.serial, said.append)) == 1
    assert not any(line.startswith("copied") for line in said)


@pytest.mark.parametrize(
    ("mode", "kind", "words"),
    [
        ("crash", NanofluxError, r"ended without a report .*\n.*Process: io.nanoflux.mobile, PID"),
        ("hang", NanofluxError, r"did not end in 2 s .*\n.*ANR in io.nanoflux.mobile"),
        ("truncated", NanofluxError, "broken report: latency-report.json cannot be read as JSON"),
        ("wrong_run_id", NanofluxError, "the app wrote run_id 'yesterday', not '"),
        ("wrong_digest", NanofluxError, "the app wrote bundle.digest '0000"),
        ("wrong_seed", NanofluxError, "the app wrote workload.seed 1, not 7"),
        ("few", NanofluxError, r"the app wrote images by launch \[11\], not \[12\]"),
        ("worn", NanofluxError, "the app.apk arrives damaged on .*, 3 times"),
        ("refused", InputError, r"refuses the app\.apk: Failure \[INSTALL_FAILED_UPDATE_INCOM"),
    ],
)
def test_each_fault_has_its_sentence(
    phone: Played,
    job: Job,
    monkeypatch: pytest.MonkeyPatch,
    mode: str,
    kind: type[NanofluxError],
    words: str,
) -> None:
    monkeypatch.setattr(_app, "LAUNCH_TIMEOUT_S", 2)
    phone.play(mode)
    with pytest.raises(NanofluxError, match=words) as caught:
        run(job, phone.serial, silent)
    assert type(caught.value) is kind


def test_an_app_that_is_not_there(phone: Played, job: Job) -> None:
    with pytest.raises(InputError, match=r"mobile is not on .*; name its \.apk"):
        run(replace(job, app=None), phone.serial, silent)
    run(job, phone.serial, silent)
    assert len(run(replace(job, app=None), phone.serial, silent)) == 1


def test_a_warm_phone_cools_first(phone: Played, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    thermal = phone.path("/data/played/thermal")
    thermal.write_text("2")
    said: list[str] = []

    def tell(line: str) -> None:
        said.append(line)
        if "waiting for it to cool" in line:
            assert launched(phone) == []
            thermal.write_text("0")

    run(job, phone.serial, tell)
    assert "thermal status 2: waiting for it to cool" in said
    thermal.write_text("3")
    monkeypatch.setattr(launching, "COOL_S", 0.2)
    run(job, phone.serial, said.append)
    assert "still thermal status 3 after 0 s: going on" in said


def test_a_phone_that_hangs(phone: Played, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link, "ANSWER_S", 1.0)
    os.kill(phone.adbd(), signal.SIGSTOP)
    with pytest.raises(NanofluxError, match="while reading its facts: adb gave no answer in 1 s"):
        run(job, phone.serial, silent)
    os.kill(phone.adbd(), signal.SIGCONT)
    assert len(run(job, phone.serial, silent)) == 1


def test_a_phone_that_is_offline(phone: Played, job: Job) -> None:
    phone.vanish()
    until(lambda: f"{phone.serial}\toffline" in phone.run("devices"), "adb has seen it")
    with pytest.raises(InputError, match=rf"^{phone.serial} is offline; plug it in again"):
        run(job, phone.serial, silent)


def test_no_phone(adb: str, job: Job) -> None:
    with pytest.raises(InputError, match=r"^no device is attached; plug one in"):
        run(job, "", silent)
    with pytest.raises(InputError, match=r"^R5CX is not attached; no device is attached"):
        run(job, "R5CX", silent)


@pytest.fixture
def stranger() -> Iterator[int]:
    """The port of a device that trusts no key: it answers every message with another challenge."""

    def serve(listener: socket.socket) -> None:
        peer, _ = listener.accept()
        with peer, suppress(OSError):
            while header := peer.recv(24, socket.MSG_WAITALL):
                command, kind, _, size, _, _ = struct.unpack("<4s5I", header)
                peer.recv(size, socket.MSG_WAITALL)
                if (command, kind) != (b"AUTH", 3):  # 3: here is my public key
                    auth, token = b"AUTH", b"t" * 20
                    magic = struct.unpack("<I", auth)[0] ^ 0xFFFFFFFF
                    peer.sendall(struct.pack("<4s5I", auth, 1, 0, 20, sum(token), magic) + token)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=serve, args=(listener,), daemon=True).start()
        yield listener.getsockname()[1]


def test_a_phone_that_does_not_trust_this_computer(
    adb: str, stranger: int, job: Job, tmp_path: Path
) -> None:
    played = Played(adb, tmp_path, tmp_path, stranger)
    played.run("connect", played.serial)
    try:
        with pytest.raises(InputError, match=rf"^{played.serial} does not trust this computer;"):
            run(job, played.serial, silent)
    finally:
        played.power_off()


def test_a_computer_without_adb(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NANOFLUX_ADB", "/no/adb")
    with pytest.raises(
        InputError, match=r"NANOFLUX_ADB is '/no/adb', which is no program; install"
    ):
        run(job, "", silent)
    monkeypatch.delenv("NANOFLUX_ADB")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(InputError, match=r"^there is no adb; install"):
        run(job, "", silent)


def test_a_bundle_that_cannot_be_measured(make_bundle: Callable[..., Path], job: Job) -> None:
    other = make_bundle("other")
    manifest = json.loads((other / FILE).read_text("utf-8"))
    (other / FILE).write_text(json.dumps(manifest | {"target": "coreml"}), "utf-8")
    with pytest.raises(InputError, match="other is for coreml; Android runs litert"):
        run(replace(job, bundle=other), "", silent)
    (job.bundle / "z.bin").write_bytes(b"short")
    with pytest.raises(InputError, match=r"z\.bin is not as manifest\.json lists it; run: nanofl"):
        run(job, "", silent)


def test_a_bundle_that_is_damaged(phone: Played, job: Job) -> None:
    (job.bundle / "a.bin").write_bytes(b"x" * 100_000)
    with pytest.raises(InputError, match=r"a\.bin is damaged; run: nanoflux verify"):
        run(job, phone.serial, silent)
