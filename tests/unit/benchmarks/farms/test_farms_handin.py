"""What the farms that CI drives are handed: files that parse, and in which nothing leaks."""

from __future__ import annotations

import json
import plistlib
import re
import shlex
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoflux_benchmarks.farms import Job, apple, aws, browserstack, firebase
from nanoflux_benchmarks.farms._handin import hand_in, plain, xctestrun
from nanoflux_benchmarks.farms._handin import yaml as to_yaml
from nanoflux_mobile.errors import InputError

yaml = pytest.importorskip("yaml")

FIXTURES = Path(__file__).parents[3] / "fixtures/farms"
CASES = [
    ("apple", ".app"),
    ("apple", ".xctestrun"),
    ("aws", ".apk"),
    ("aws", ".ipa"),
    ("browserstack", ".apk"),
    ("browserstack", ".ipa"),
    ("firebase", ".apk"),
    ("firebase", ".ipa"),
]
SECRETS = {
    "AWS_ACCESS_KEY_ID": "secret-1-AKIA",
    "AWS_SECRET_ACCESS_KEY": "secret-2-aws",
    "AWS_SESSION_TOKEN": "secret-3-aws",
    "BROWSERSTACK_USERNAME": "secret-4-user",
    "BROWSERSTACK_ACCESS_KEY": "secret-5-key",
    "GOOGLE_APPLICATION_CREDENTIALS": "/secret-6/google.json",
    "GOOGLE_CLOUD_PROJECT": "secret-7-project",
}
FARMS = {"apple": apple, "aws": aws, "browserstack": browserstack, "firebase": firebase}
GOOD = {
    "apple": "00008140-000A1B2C3D4E501C",
    "aws": "arn:aws:devicefarm:us-west-2::devicepool:aaaa",
    "browserstack": "iPhone 16 Pro-18",
    "firebase": "model=e3q,version=34,locale=en_US,orientation=portrait",
}


def files(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text("utf-8") for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("farm", "suffix"), CASES)
def test_no_secret_of_the_environment_is_written_or_told(farm, suffix, prepare, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    folder, command = prepare(farm, suffix)
    written = files(folder)
    assert "bench.sh" in written
    for value in SECRETS.values():
        assert all(value not in text for text in (command, *written.values()))


@pytest.mark.parametrize(("farm", "suffix"), CASES)
def test_the_command_is_words_and_its_script_is_shell(farm, suffix, prepare):
    folder, command = prepare(farm, suffix)
    shell, script = shlex.split(command)
    assert Path(script) == folder / "bench.sh"
    subprocess.run([shell, "-n", script], check=True)


def test_every_hand_in_is_a_run_of_its_own(make_job):
    job = make_job()
    run_ids = [hand_in(job).run_id for _ in range(2)]
    assert run_ids[0] != run_ids[1]
    # The bundle's digest first, for people; a launch adds a number, and a report takes 64.
    assert all(re.fullmatch(r"[0-9a-f]{12}-[0-9a-f]{8}", run_id) for run_id in run_ids)


def test_the_android_test_spec_has_the_form_of_the_guide(prepare):
    folder, _ = prepare("aws", ".apk")
    spec = yaml.safe_load((folder / "testspec.yml").read_text("utf-8"))
    assert spec["version"] == 0.1
    assert spec["android_test_host"] == "amazon_linux_2"
    assert spec["artifacts"] == ["$DEVICEFARM_LOG_DIR"]
    assert set(spec["phases"]) <= {"install", "pre_test", "test", "post_test"}
    for phase in spec["phases"].values():
        (command,) = phase["commands"]
        subprocess.run(["sh", "-n", "-c", command], check=True)
    assert "io.nanoflux.mobile/.BenchActivity" in spec["phases"]["test"]["commands"][0]


def test_the_ios_test_spec_tells_the_tests_through_xcodebuild(prepare):
    folder, _ = prepare("aws", ".ipa")
    spec = yaml.safe_load((folder / "testspec.yml").read_text("utf-8"))
    assert spec["ios_test_host"] == "macos_sequoia"
    (test,) = spec["phases"]["test"]["commands"]
    assert "export TEST_RUNNER_NANOFLUX_IMAGES=10\n" in test
    assert "-maximum-test-execution-time-allowance" in test


def test_the_firebase_arguments_push_every_file_of_an_android_bundle(prepare):
    folder, _ = prepare("firebase", ".apk")
    bench = yaml.safe_load((folder / "firebase.yaml").read_text("utf-8"))["bench"]
    assert bench["type"] == "instrumentation"
    assert bench["device"] == [{"model": "e3q", "version": "34"}]
    assert Path(bench["app"]).name == "bench.apk"
    assert Path(bench["test"]).name == "bench-androidTest.apk"
    told = bench["environment-variables"]
    assert (told["launches"], told["images"], told["warmup"], told["seed"]) == ("3", "10", "2", "7")
    pushed = bench["other-files"]
    assert f"{told['bundle']}/manifest.json" in pushed
    manifest = json.loads(
        Path(bench["app"]).with_name("bundle").joinpath("manifest.json").read_text()
    )
    assert len(pushed) == 1 + len(manifest["files"])
    assert all(place.startswith("/data/local/tmp/nanoflux/bundle/") for place in pushed)
    assert all(Path(source).is_absolute() for source in pushed.values())
    assert bench["directories-to-pull"] == ["/sdcard/Android/data/io.nanoflux.mobile/files"]
    # Attempts at once on several phones, or a film, would spoil the measurement.
    assert bench["num-flaky-test-attempts"] == 0
    assert bench["record-video"] is False
    assert bench["performance-metrics"] is False


def test_the_firebase_arguments_replace_the_xctestrun_of_ios_tests(prepare):
    folder, _ = prepare("firebase", ".ipa")
    bench = yaml.safe_load((folder / "firebase.yaml").read_text("utf-8"))["bench"]
    assert bench["type"] == "xctest"
    assert Path(bench["xctestrun-file"]) == folder / "bench.xctestrun"
    assert bench["directories-to-pull"] == ["io.nanoflux.mobile:/Documents/reports"]
    (configuration,) = plistlib.loads((folder / "bench.xctestrun").read_bytes())[
        "TestConfigurations"
    ]
    (target,) = configuration["TestTargets"]
    told = target["EnvironmentVariables"]
    assert told["NANOFLUX_BUNDLE"] == "Documents/bundle"
    assert told["NANOFLUX_LAUNCHES"] == "3"
    assert told["NANOFLUX_RUN_ID"] == bench["results-dir"]


def test_the_browserstack_body_asks_for_logs_and_no_film(prepare):
    folder, _ = prepare("browserstack", ".apk")
    body = json.loads((folder / "build.json").read_text("utf-8"))
    assert body["devices"] == ["Samsung Galaxy S24-14.0"]
    assert (body["deviceLogs"], body["video"]) == (True, False)
    options = body["instrumentationOptions"]
    assert body["app"] == body["testSuite"] == options["run_id"]
    assert options["launches"] == "3"
    assert "bundle" not in options  # the app carries it
    assert "FRAMEWORK=espresso\nBUILD_CALL=build\n" in files(folder)["bench.sh"]


def test_the_browserstack_body_for_ios_goes_with_an_xctestrun(prepare):
    folder, _ = prepare("browserstack", ".ipa")
    assert "instrumentationOptions" not in json.loads((folder / "build.json").read_text("utf-8"))
    assert "FRAMEWORK=xcuitest\nBUILD_CALL=xctestrun-build\n" in files(folder)["bench.sh"]
    assert b"NANOFLUX_RUN_ID" in (folder / "bench.xctestrun").read_bytes()


def test_the_commands_for_an_app_on_an_iphone(make_job, tmp_path):
    job = make_job(".app")
    steps = apple.commands(hand_in(job, apple._KINDS), GOOD["apple"], tmp_path)
    actions = [" ".join(step.argv[3:5]) for step in steps if step.argv[0] == "xcrun"]
    assert actions == ["install app", "copy to"] + 3 * ["process launch", "copy from"]
    for step in steps:
        assert step.timeout_s > 0
        assert step.note
        if step.argv[0] == "xcrun":
            assert step.argv[5:7] == ("--device", GOOD["apple"])
            # devicectl gives up first, and says why; the alarm is for when it hangs.
            assert int(step.argv[step.argv.index("--timeout") + 1]) < step.timeout_s
    launch = next(step.argv for step in steps if "launch" in step.argv)
    told = json.loads(launch[launch.index("--environment-variables") + 1])
    assert told["NANOFLUX_RUN_ID"].endswith(".1")
    assert launch[-1] == "io.nanoflux.mobile"


def test_the_commands_for_tests_on_an_iphone(make_job, tmp_path):
    job = make_job(".xctestrun")
    test, export = apple.commands(hand_in(job, apple._KINDS), GOOD["apple"], tmp_path)
    assert str(job.app) in test.argv
    assert f"id={GOOD['apple']}" in test.argv
    assert "-only-testing:NanofluxBenchTests" in test.argv
    assert "TEST_RUNNER_NANOFLUX_WARMUP=2" in test.argv
    assert test.timeout_s > 3 * 900
    result = test.argv[test.argv.index("-resultBundlePath") + 1]
    assert export.argv[export.argv.index("--path") + 1] == result
    assert export.argv[2:4] == ("export", "attachments")


def test_an_alarm_ends_a_command_that_hangs():
    line = apple.Command(("tail", "-f", "/dev/null"), 1, "nothing").line
    done = subprocess.run(["sh", "-c", f"{line}; echo $?"], capture_output=True, check=False)
    assert done.stdout == b"142\n"  # 128 + SIGALRM


BAD_ADDRESSES = {
    "apple": ("", "iPhone", "00008140-000A1B2C3D4E501C; ls", "-" * 36),
    "aws": ("", "mine", "arn:aws:devicefarm:us-west-2:1:project:a", "arn:aws:s3:::x"),
    "browserstack": ("", "Pixel", "-14", "Pixel 9-15\n", '"Pixel"-15', "$(x)-15"),
    "firebase": (
        "",
        "e3q",
        "version=34",
        "model=e3q,model=x",
        "model=e3q,colour=red",
        "model=$(x)",
    ),
}


@pytest.mark.parametrize(
    ("farm", "address"), [(farm, bad) for farm, rows in BAD_ADDRESSES.items() for bad in rows]
)
def test_an_address_that_is_none_is_refused(farm, address, make_job, tmp_path):
    job = make_job(".app" if farm == "apple" else ".apk")
    with pytest.raises(InputError, match="no device"):
        FARMS[farm].prepare(job, address, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("char", ["\n", "\r", "\x1b", "\x85", "\u2028", "\u202e", "\0", "\udc80"])
def test_text_with_a_control_character_cannot_stand_in_a_script(char):
    with pytest.raises(InputError, match="printable"):
        plain(f"/tmp/a{char}b.apk")


@pytest.mark.parametrize("farm", ["aws", "browserstack", "firebase"])
def test_a_name_with_a_line_break_is_refused(farm, make_job, tmp_path):
    job = make_job(folder="a\nb")
    with pytest.raises(InputError, match="printable"):
        FARMS[farm].prepare(job, GOOD[farm], tmp_path / "out")
    assert not (tmp_path / "out").exists()


REFUSED: dict[str, tuple[Callable[[Job], dict[str, object]], str]] = {
    "a baseline": (lambda job: {"baseline": job.bundle}, "gate --baseline"),
    "no app": (lambda job: {"app": None}, r"takes a file \*.apk or \*.ipa"),
    "another sort of app": (lambda job: {"app": job.bundle}, r"takes a file \*.apk or \*.ipa"),
    "an app without tests": (lambda job: {"app": job.app.with_name("x.apk")}, "does not exist"),
    "no bundle": (lambda job: {"bundle": job.bundle.parent}, "not a bundle"),
    "a bundle for iOS": (lambda job: {"app": job.app.with_suffix(".ipa")}, "is for litert"),
    "a seed too large": (lambda job: {"seed": 1 << 63}, "Android takes 0 to 9223372036854775807"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_job_that_cannot_be_handed_in_is_refused(name, make_job, tmp_path):
    job, (change, message) = make_job(), REFUSED[name]
    for made in ("x.apk", "bench.ipa", "bench-tests.zip"):
        (job.app.parent / made).write_text("there")
    with pytest.raises(InputError, match=message):
        hand_in(Job(**{**vars(job), **change(job)}))


@pytest.mark.parametrize("version", [1, 2])
def test_variables_reach_the_tests_of_either_version(version, tmp_path):
    tests = tmp_path / "tests.zip"
    with zipfile.ZipFile(tests, "w") as archive:
        archive.write(FIXTURES / f"version{version}.xctestrun", "x.xctestrun")
    plist = plistlib.loads(xctestrun(tests, {"NANOFLUX_SEED": "7"}))
    target = (
        plist["NanofluxBenchTests"]
        if version == 1
        else plist["TestConfigurations"][0]["TestTargets"][0]
    )
    assert target["EnvironmentVariables"]["NANOFLUX_SEED"] == "7"
    assert target["TestBundlePath"].endswith("NanofluxBenchTests.xctest")
    if version == 1:
        assert target["EnvironmentVariables"]["OS_ACTIVITY_DT_MODE"] == "YES"


DAMAGED = {
    "no zip": None,
    "no xctestrun": {"a.txt": b""},
    "two of them": {"a.xctestrun": b"", "b.xctestrun": b""},
    "one in a folder": {"a/b.xctestrun": b""},
    "not a property list": {"a.xctestrun": b"\x00\x01 no"},
    "cut XML": {"a.xctestrun": b"<?xml version='1.0'?><plist><dict>"},
    "a list": {"a.xctestrun": plistlib.dumps([1])},
    "a target that is text": {"a.xctestrun": plistlib.dumps({"Tests": "x"})},
    "variables that are a list": {
        "a.xctestrun": plistlib.dumps({"Tests": {"EnvironmentVariables": [1]}})
    },
    "configurations without targets": {"a.xctestrun": plistlib.dumps({"TestConfigurations": [{}]})},
    "endless": {"a.xctestrun": plistlib.dumps({"Tests": {"x": "y" * (1 << 21)}})},
}


@pytest.mark.parametrize("name", DAMAGED)
def test_tests_without_a_usable_xctestrun_are_refused(name, tmp_path):
    tests, entries = tmp_path / "tests.zip", DAMAGED[name]
    if entries is None:
        tests.write_bytes(b"no zip")
    else:
        with zipfile.ZipFile(tests, "w") as archive:
            for inside, data in entries.items():
                archive.writestr(inside, data)
    with pytest.raises(InputError, match=r"pack one|build the tests again"):
        xctestrun(tests, {"A": "b"})


# Everything that means something to YAML, and words that it takes for something else.
PRINTABLE = st.text("""ynoNul 01.e~:-#'"\\{}[],&*!|>%@`=?<é漢😀""", min_size=1, max_size=8)


@given(PRINTABLE)
def test_yaml_reads_back_as_it_was_written(text):
    value = {"list": [text, {"inner": text, text: [1, True, 0.5]}, ["x", text]], text: {"y": text}}
    assert yaml.safe_load(to_yaml(value)) == value


@settings(max_examples=25)
@given(st.lists(PRINTABLE.map(lambda line: f"x{line}"), min_size=2, max_size=4))
def test_a_script_in_yaml_stays_as_it_is(lines):
    script = "\n".join([*lines[:-1], "", f"  {lines[-1]}"]) + "\n"
    assert yaml.safe_load(to_yaml({"commands": [script]})) == {"commands": [script]}
