"""Files to a phone and back: a copy counts when the hash taken on the phone is the right one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from shlex import quote

from nanoflux_benchmarks.farms import _app
from nanoflux_benchmarks.farms._handin import ANDROID
from nanoflux_benchmarks.farms.adb import link, words
from nanoflux_benchmarks.farms.adb.link import Phone, call, during, shell
from nanoflux_mobile.errors import InputError, NanofluxError
from nanoflux_mobile.manifest import FILE, Artifact, Manifest, read_manifest
from nanoflux_mobile.storage import file_sha256

_STAGING = "/data/local/tmp"
_INSTALL_S = 300.0


def install(phone: Phone, app: Path, tell: Callable[[str], None]) -> None:
    """Put an .apk on the phone and grant it what it asks for.

    It is copied and then installed by the phone's own `pm`, so that a broken copy is seen; the
    copy is removed.

    Raises:
        InputError: the file cannot be read, or the phone refuses it (the message says why).
        NanofluxError: the phone went away.
    """
    digest = file_sha256(app)
    place = f"{_STAGING}/{digest}.apk"
    with during(phone, f"installing {app.name}"):
        send(phone, app, place, digest)
        said = shell(phone, f"pm install -r -g {place}", _INSTALL_S).text
        shell(phone, f"rm -f {place}")
    if "Success" not in said.split():
        raise InputError(f"{phone.serial} refuses {app.name}: {words.printable(said)[-300:]}")
    tell(f"installed {app.name}")


def require_app(phone: Phone) -> None:
    """Make sure that the app is there.

    Raises:
        InputError: it is not.
    """
    with during(phone, "looking for the app"):
        said = shell(phone, f"pm path {_app.PACKAGE}").text
    if not any(line.startswith("package:") for line in said.splitlines()):
        raise InputError(f"{_app.PACKAGE} is not on {phone.serial}; name its .apk to install it")


def read_bundle(bundle: Path) -> Manifest:
    """The manifest of a bundle whose files are all there and that an Android app runs.

    Raises:
        InputError: it is for another target, or a file is missing or has another size.
    """
    manifest = read_manifest(bundle)
    if manifest.target != ANDROID.target:
        raise InputError(f"{bundle} is for {manifest.target}; Android runs {ANDROID.target}")
    for file in manifest.files:
        path = bundle / file.path
        if not path.is_file() or path.stat().st_size != file.bytes:
            raise InputError(f"{path} is not as {FILE} lists it; run: nanoflux verify")
    return manifest


def send_bundle(phone: Phone, bundle: Path, manifest: Manifest, tell: Callable[[str], None]) -> str:
    """Copy a bundle to a folder named by its digest, which is returned.

    What lies there and has the right hash stays, so an interrupted copy goes on where it stopped.
    The manifest goes last: a folder that has one is whole.

    Raises:
        InputError: the bundle is damaged, or the phone has no room for it.
        NanofluxError: the phone went away, or damages what it is sent.
    """
    folder = f"{_app.ANDROID_BUNDLES}/{manifest.digest}"
    present = 0
    for file in _files(bundle, manifest):
        name = words.printable(file.path)
        with during(phone, f"copying {name}"):
            if send(phone, bundle / file.path, f"{folder}/{file.path}", file.sha256):
                tell(f"copied {name} ({file.bytes / 1e6:.1f} MB)")
            else:
                present += 1
    tell(f"{bundle.name}: {len(manifest.files) + 1} files on the phone, {present} were there")
    return folder


def _files(bundle: Path, manifest: Manifest) -> Iterator[Artifact]:
    yield from manifest.files
    path = bundle / FILE
    yield Artifact(FILE, file_sha256(path), path.stat().st_size)


def send(phone: Phone, source: Path, target: str, sha256: str) -> bool:
    """Copy one file unless the phone has it; whether it was copied.

    Raises:
        InputError: the file is not what `sha256` says, or the phone will not take it.
        NanofluxError: it arrived damaged TRIES times.
        Away: the phone went away.
    """
    seconds = link.ANSWER_S + source.stat().st_size / link.SLOWEST_BYTES_PER_S
    if remote_sha256(phone, target, seconds) == sha256:
        return False
    for _ in range(link.TRIES):
        said = call(phone, "push", source.absolute(), target, seconds=seconds)
        if remote_sha256(phone, target, seconds) == sha256:
            return True
        if fault := words.refusal(said):
            megabytes = source.stat().st_size / 1e6
            raise InputError(f"{phone.serial} takes no {source.name} ({megabytes:.1f} MB): {fault}")
    if file_sha256(source) != sha256:
        raise InputError(f"{source} is damaged; run: nanoflux verify")
    last = words.printable(said)[-200:]
    raise NanofluxError(
        f"{source.name} arrives damaged on {phone.serial}, {link.TRIES} times: {last}"
    )


def fetch(phone: Phone, source: str, target: Path) -> None:
    """Copy one file from the phone.

    Raises:
        NanofluxError: it arrived damaged TRIES times.
        Away: the phone went away.
    """
    for _ in range(link.TRIES):
        said = call(phone, "pull", source, target, seconds=link.ANSWER_S)
        wanted = remote_sha256(phone, source)
        if wanted and target.is_file() and file_sha256(target) == wanted:
            return
    raise NanofluxError(
        f"cannot fetch {source} from {phone.serial}: {words.printable(said)[-200:]}"
    )


def remote_sha256(phone: Phone, path: str, seconds: float | None = None) -> str | None:
    """The hash of a file on the phone, taken there; None where there is none."""
    # Read from stdin: a name with a backslash would be printed escaped.
    return words.sha256(shell(phone, f"sha256sum < {quote(path)}", seconds).text)
