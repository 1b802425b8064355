"""Files and folders are whole or absent, also when the process is killed at any point."""

from __future__ import annotations

import errno
import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nanoflux_mobile import storage
from nanoflux_mobile.errors import InputError

OLD, NEW = {"a.txt": b"old", "deep/b.bin": b"old"}, {"a.txt": b"new", "deep/b.bin": b"new"}


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk proves nothing here; the children that get killed do wait."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def fill(folder: Path, content: dict[str, bytes]) -> None:
    for name, data in content.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)


def read(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def stage(final: Path, content: dict[str, bytes]) -> None:
    with storage.staged_folder(final) as folder:
        fill(folder, content)


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_sha256_agrees_with_hashlib_around_the_chunk_size(tmp_path: Path, size: int) -> None:
    data = bytes(range(256)) * (size // 256) + bytes(size % 256)
    (tmp_path / "file").write_bytes(data)
    assert storage.file_sha256(tmp_path / "file") == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("name", ["missing", "folder", "file/below"])
def test_sha256_of_what_is_no_file_is_an_input_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=name):
        storage.file_sha256(tmp_path / name)


shared_fixtures = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@shared_fixtures
@given(first=st.binary(), second=st.one_of(st.binary(), st.text()))
def test_write_file_replaces_and_leaves_nothing_else(
    tmp_path_factory: pytest.TempPathFactory, first: bytes, second: bytes | str
) -> None:
    path = tmp_path_factory.mktemp("write") / "new" / "file"
    storage.write_file(path, first)
    storage.write_file(path, second)
    assert path.read_bytes() == (second.encode() if isinstance(second, str) else second)
    assert os.listdir(path.parent) == ["file"]


def test_a_failed_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    storage.write_file(path, "old")
    monkeypatch.setattr(os, "fsync", _failing(errno.ENOSPC))
    with pytest.raises(InputError, match=rf"{path}.*disk is full"):
        storage.write_file(path, "new")
    assert read(tmp_path) == {"file": b"old"}


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "disk is full"), (errno.EACCES, "permission"), (errno.EROFS, "read-only")],
)
@pytest.mark.parametrize("step", ["fsync", "rename"])
def test_what_a_user_can_mend_becomes_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, code: int, words: str
) -> None:
    final = tmp_path / "out"
    monkeypatch.setattr(os, step, _failing(code))
    with pytest.raises(InputError, match=rf"{final}: .*{words}"):
        stage(final, NEW)
    assert os.listdir(tmp_path) == []


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for final in (tmp_path / "file", tmp_path / "file" / "below", tmp_path / "file" / "a" / "b"):
        with pytest.raises(InputError, match=r"is a file"):
            stage(final, NEW)
        with pytest.raises(InputError, match=r"file"):
            storage.write_file(final / "x", b"")
    with pytest.raises(InputError, match=r"is a folder"):
        storage.write_file(tmp_path, b"")


def test_faults_that_are_bugs_keep_their_type(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), storage.staged_folder(tmp_path / "out") as folder:
        (folder / "nowhere" / "file").write_bytes(b"")
    with pytest.raises(ZeroDivisionError), storage.staged_folder(tmp_path / "out"):
        raise ZeroDivisionError
    assert os.listdir(tmp_path) == []


def test_a_full_disk_inside_the_block_is_explained(tmp_path: Path) -> None:
    full = pytest.raises(InputError, match=r"out: the disk is full")
    with full, storage.staged_folder(tmp_path / "out"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert os.listdir(tmp_path) == []


names = st.sampled_from(["a", "b", "deep/c", "deep/er/d"])
contents = st.dictionaries(names, st.binary(max_size=9), min_size=1)


@shared_fixtures
@given(old=contents, new=contents)
def test_the_new_folder_stands_whole_or_the_old_one_does(
    tmp_path_factory: pytest.TempPathFactory, old: dict[str, bytes], new: dict[str, bytes]
) -> None:
    final = tmp_path_factory.mktemp("stage") / "out"
    stage(final, old)
    lost = {name.split("/")[0] for name in old} - {name.split("/")[0] for name in new}
    if lost:
        with pytest.raises(InputError, match="not ours to delete"):
            stage(final, new)
    else:
        stage(final, new)
    assert read(final) == (old if lost else new)
    assert os.listdir(final.parent) == ["out"]


def test_hidden_files_do_not_keep_a_folder_from_being_replaced(tmp_path: Path) -> None:
    stage(tmp_path / "out", OLD | {".DS_Store": b""})
    stage(tmp_path / "out", NEW)
    assert read(tmp_path / "out") == NEW


def test_folders_that_hold_more_than_ours_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = tmp_path / "project" / "src"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    for final in (Path(), Path(".."), tmp_path, Path.home()):
        with pytest.raises(InputError, match="name a new folder"):
            stage(final, NEW)


def test_one_staged_folder_inside_another(tmp_path: Path) -> None:
    with storage.staged_folder(tmp_path / "outer") as outer:
        storage.write_file(outer / "a.txt", b"new")
        stage(outer / "inner", NEW)
    assert set(read(tmp_path / "outer")) == {"a.txt", "inner/a.txt", "inner/deep/b.bin"}


def test_two_runs_for_one_folder_do_not_sweep_each_other(tmp_path: Path) -> None:
    final = tmp_path / "out"
    with storage.staged_folder(final) as slow:
        fill(slow, OLD)
        stage(final, NEW)
        assert read(slow) == OLD
        assert read(final) == NEW
    assert read(final) == OLD
    assert os.listdir(tmp_path) == ["out"]


# Dies by SIGKILL at the n-th call of a function of `os`. Everything is synced: 2 calls of fsync for
# write_file, 4 for what is staged, 1 after the renames.
DYING = """
import os, signal, sys
from pathlib import Path
from nanoflux_mobile.storage import staged_folder, write_file
final, step, fatal = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
original, calls = getattr(os, step), 0
def dying(*args):
    global calls
    calls += 1
    if calls == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args)
setattr(os, step, dying)
with staged_folder(final) as folder:
    (folder / "a.txt").write_bytes(b"new")
    (folder / "deep").mkdir()
    write_file(folder / "deep" / "b.bin", b"new")
"""


@pytest.mark.parametrize(
    ("step", "fatal"),
    [("fsync", 1), ("fsync", 3), ("fsync", 7), ("rename", 1), ("rename", 2), ("close", 1)],
)
@pytest.mark.parametrize("earlier", [{}, OLD], ids=["new", "replacing"])
def test_killed_anywhere_leaves_no_torn_folder(
    tmp_path: Path, step: str, fatal: int, earlier: dict[str, bytes]
) -> None:
    final = tmp_path / "out"
    if earlier:
        stage(final, earlier)
    result = _die(final, step, fatal)
    assert result.returncode == -signal.SIGKILL, result.stderr
    assert not final.exists() or read(final) in (earlier, NEW)
    stage(final, NEW)
    assert read(final) == NEW
    assert os.listdir(tmp_path) == ["out"], "the next call sweeps what the killed one left"


def test_killed_between_the_renames_the_old_folder_comes_back(tmp_path: Path) -> None:
    final = tmp_path / "out"
    stage(final, OLD)
    assert _die(final, "rename", 2).returncode == -signal.SIGKILL
    assert not final.exists()
    with pytest.raises(ZeroDivisionError), storage.staged_folder(final):
        raise ZeroDivisionError
    assert read(final) == OLD


def _die(final: Path, step: str, fatal: int) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", DYING, str(final), step, str(fatal)]
    root = Path(storage.__file__).parents[1]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)


def _failing(code: int) -> Callable[..., None]:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    return fail


def test_a_held_folder_is_refused_and_free_afterwards(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "run"
    with storage.alone_in(folder):
        with pytest.raises(InputError, match="another process works in"), storage.alone_in(folder):
            pytest.fail("two held it")
        with storage.alone_in(tmp_path / "other"):
            pass
    with storage.alone_in(folder):
        assert folder.is_dir()


def test_a_killed_holder_holds_no_more(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from nanoflux_mobile.storage import alone_in\n"
        "with alone_in(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        with pytest.raises(InputError), storage.alone_in(tmp_path):
            pytest.fail("two held it")
        child.send_signal(signal.SIGKILL)
    with storage.alone_in(tmp_path):
        pass


def test_what_happens_inside_a_held_folder_passes_through(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="ours"), storage.alone_in(tmp_path):
        raise OSError("ours")
