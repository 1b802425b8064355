"""What is handed in, run for real with stand-ins for the farms' tools: it quotes, ends, collects.

No farm, phone or Mac was at hand: the stand-ins answer as the references say that the tools do.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nanoflux_benchmarks.importers import read_any
from nanoflux_benchmarks.importers.log_markers import marker_lines
from nanoflux_mobile.report import LatencyReport, report_json

yaml = pytest.importorskip("yaml")

FIXTURES = Path(__file__).parents[3] / "fixtures/farms"
PROJECT = {"AWS_DEVICE_FARM_PROJECT_ARN": "arn:aws:devicefarm:us-west-2:1:project:a"}
# A phone's report with the run id that the launch was told.
REPORT = 'sed "s/RUN-ID/$run_id/" "$STATE/template.json"'

AWS = """\
case "$*" in
  *create-upload*) printf 'arn:upload:x\\thttps://upload.example/x\\n' ;;
  *get-upload*upload.status*) echo "${UPLOAD_STATUS:-SUCCEEDED}" ;;
  *schedule-run*) echo arn:run ;;
  *get-run*) echo "${RUN_STATUS:-COMPLETED}" ;;
  *list-artifacts*)
    printf 'VIDEO\\thttps://s3.example/1\\nCUSTOMER_ARTIFACT\\thttps://s3.example/2\\n'
    printf 'TESTSPEC_OUTPUT\\thttps://s3.example/3\\n' ;;
esac
"""
SAVE = 'while [ $# -gt 0 ]; do [ "$1" = --output ] && cp "$STATE/artifact" "$2"; shift; done; true'


@pytest.fixture
def template(make_report: Callable[..., LatencyReport], tmp_path: Path) -> LatencyReport:
    """What the played app leaves after each launch."""
    report = make_report(launches=1, run_id="RUN-ID")
    (tmp_path / "template.json").write_text(report_json(report), "utf-8")
    return report


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    """What the played farm gives for every download."""
    path = tmp_path / "artifact"
    path.write_bytes(b"an artifact")
    return path


def shorten(file: Path, loop: str, shorter: str) -> None:
    """Let a loop of a generated file end sooner, as every round of it starts several programs."""
    text = file.read_text("utf-8")
    assert loop in text
    file.write_text(text.replace(loop, shorter), "utf-8")


def test_aws_uploads_schedules_and_fetches(prepare, play, artifact):
    folder, command = prepare("aws", ".apk")
    (folder / "results").mkdir()
    (folder / "results/old.zip").write_bytes(b"an older run")
    code, calls = play(command, {"aws": AWS, "curl": SAVE}, PROJECT)
    assert code == 0
    # The film is left there, and so is whatever the archive calls its files.
    names = ["1-CUSTOMER_ARTIFACT.zip", "2-TESTSPEC_OUTPUT.txt"]
    assert sorted(path.name for path in (folder / "results").iterdir()) == names
    kinds = [call.split("--type ")[1].split()[0] for call in calls if "create-upload" in call]
    assert kinds == [
        "ANDROID_APP",
        "INSTRUMENTATION_TEST_PACKAGE",
        "INSTRUMENTATION_TEST_SPEC",
        "EXTERNAL_DATA",
    ]
    (schedule,) = [call for call in calls if "schedule-run" in call]
    assert "extraDataPackageArn=arn:upload:x" in schedule
    assert "type=INSTRUMENTATION,testPackageArn=arn:upload:x,testSpecArn=arn:upload:x" in schedule
    assert "jobTimeoutMinutes=150" in schedule
    assert all("--region us-west-2" in call for call in calls if call.startswith("aws "))
    with zipfile.ZipFile(folder / "bundle.zip") as bundle:
        assert "nanoflux-bundle/manifest.json" in bundle.namelist()
        assert all(info.compress_type == zipfile.ZIP_STORED for info in bundle.infolist())


def test_aws_for_ios_hands_in_no_extra_data(prepare, play, artifact):
    _, command = prepare("aws", ".ipa")
    code, calls = play(command, {"aws": AWS, "curl": SAVE}, PROJECT)
    assert code == 0
    kinds = [call.split("--type ")[1].split()[0] for call in calls if "create-upload" in call]
    assert kinds == ["IOS_APP", "XCTEST_UI_TEST_PACKAGE", "XCTEST_UI_TEST_SPEC"]
    assert not any("extraData" in call for call in calls)


def test_aws_gives_up_a_run_that_does_not_end(prepare, play, artifact):
    folder, command = prepare("aws", ".ipa")
    shorten(folder / "bench.sh", "seq $((2 * MINUTES + 120))", "seq 4")
    tools = {"aws": AWS, "curl": SAVE}
    code, calls = play(command, tools, PROJECT | {"RUN_STATUS": "RUNNING"})
    assert code == 0  # what there is was fetched; the gate says what it is worth
    assert sum("get-run" in call for call in calls) == 4
    assert sum("stop-run" in call for call in calls) == 1


@pytest.mark.parametrize(
    ("status", "asked"), [("FAILED", 1), ("PROCESSING", 4)], ids=["refused", "stuck"]
)
def test_aws_gives_up_an_upload_that_is_not_accepted(status, asked, prepare, play, artifact):
    folder, command = prepare("aws", ".ipa")
    shorten(folder / "bench.sh", "seq 60", "seq 4")
    tools = {"aws": AWS, "curl": SAVE}
    code, calls = play(command, tools, PROJECT | {"UPLOAD_STATUS": status})
    assert code != 0
    assert sum("upload.status" in call for call in calls) == asked
    assert not any("schedule-run" in call for call in calls)


def test_aws_tries_three_times_and_no_more(prepare, play):
    _, command = prepare("aws", ".ipa")
    code, calls = play(command, {"aws": "exit 1", "curl": SAVE}, PROJECT)
    assert code != 0
    assert sum("create-upload" in call for call in calls) == 3


@pytest.mark.parametrize("farm", ["aws", "browserstack", "firebase"])
def test_a_script_without_its_variables_does_nothing(farm, prepare, play):
    _, command = prepare(farm, ".apk")
    code, calls = play(command, {"aws": AWS, "curl": SAVE, "gcloud": ""}, {})
    assert code != 0
    assert calls == []


ADB = f"""\
case "$*" in
  *"find /sdcard/"*) printf '/sdcard/nanoflux-bundle\\r\\n' ;;
  *thermalservice*) echo "Thermal Status: ${{THERMAL:-0}}" ;;
  *"am start"*)
    while [ "$1" != run_id ]; do shift; done
    run_id=$2
    [ "${{APP:-works}}" = works ] && {REPORT} > "$STATE/on-phone" ;;
  *"rm -f"*) rm -f "$STATE/on-phone" ;;
  *"test -f"*) [ -f "$STATE/on-phone" ] && echo whole ;;
  *" pull "*) while [ $# -gt 1 ]; do shift; done; cp "$STATE/on-phone" "$1" ;;
esac
true
"""


def phase(folder: Path, name: str) -> str:
    spec = yaml.safe_load((folder / "testspec.yml").read_text("utf-8"))
    (command,) = spec["phases"][name]["commands"]
    return command


@pytest.fixture
def host(tmp_path: Path) -> dict[str, str]:
    """The variables of Device Farm's test host."""
    logs = tmp_path / "logs of the host"
    logs.mkdir()
    return {
        "DEVICEFARM_DEVICE_UDID": "R5CT",
        "DEVICEFARM_LOG_DIR": str(logs),
        "DEVICEFARM_XCUITESTRUN_FILE": str(tmp_path / "x y.xctestrun"),
        "DEVICEFARM_DERIVED_DATA_PATH": str(tmp_path / "derived data"),
    }


def test_the_android_spec_measures_launches_that_merge(prepare, play, host, template, tmp_path):
    folder, _ = prepare("aws", ".apk")
    code, calls = play(phase(folder, "pre_test"), {"adb": ADB}, host)
    assert code == 0
    assert any("cp -R '/sdcard/nanoflux-bundle' /data/local/tmp" in call for call in calls)
    code, calls = play(phase(folder, "test"), {"adb": ADB}, host)
    assert code == 0
    starts = [call for call in calls if "am start" in call]
    assert len(starts) == 3
    assert "--ei images 10 --ei warmup 2 --el seed 7" in starts[0]
    logs = Path(host["DEVICEFARM_LOG_DIR"])
    assert sorted(path.name for path in logs.iterdir()) == [
        f"latency-report-{i}.json" for i in (1, 2, 3)
    ]
    with zipfile.ZipFile(tmp_path / "1-CUSTOMER_ARTIFACT.zip", "w") as results:
        for path in logs.iterdir():
            results.write(path, f"Host_Machine_Files/$DEVICEFARM_LOG_DIR/{path.name}")
    merged = read_any(tmp_path / "1-CUSTOMER_ARTIFACT.zip")
    assert merged.launches == template.launches * 3
    assert merged.run_id in starts[0]


def test_the_android_spec_gives_up_a_launch_without_a_report(prepare, play, host, template):
    folder, _ = prepare("aws", ".apk")
    shorten(folder / "testspec.yml", "POLLS=90", "POLLS=4")
    code, calls = play(phase(folder, "test"), {"adb": ADB}, host | {"APP": "crashes"})
    assert code != 0
    assert sum("am start" in call for call in calls) == 1
    assert sum(call == "sleep 10" for call in calls) == 4


def test_the_android_spec_waits_for_a_warm_phone_but_not_for_ever(prepare, play, host, template):
    folder, _ = prepare("aws", ".apk")
    shorten(folder / "testspec.yml", "seq 30", "seq 2")
    code, calls = play(phase(folder, "test"), {"adb": ADB}, host | {"THERMAL": "2"})
    assert code == 0
    assert sum(call == "sleep 20" for call in calls) == 3 * 2


def test_the_android_spec_says_when_the_bundle_is_missing(prepare, play, host):
    folder, _ = prepare("aws", ".apk")
    assert play(phase(folder, "pre_test"), {"adb": "true"}, host)[0] == 1


def test_the_ios_spec_runs_and_exports(prepare, play, host):
    folder, _ = prepare("aws", ".ipa")
    told = 'echo "told $TEST_RUNNER_NANOFLUX_LAUNCHES" >> "$CALLS"'
    code, calls = play(phase(folder, "test"), {"xcodebuild": told}, host)
    assert code == 0
    assert "told 3" in calls
    assert f"-xctestrun {host['DEVICEFARM_XCUITESTRUN_FILE']}" in calls[0]
    assert "-destination id=R5CT" in calls[0]
    code, calls = play(phase(folder, "post_test"), {"xcrun": ""}, host)
    assert code == 0
    assert calls[0].startswith("xcrun xcresulttool export attachments --path")


CURL = """\
[ "$1" = --config ] && cat "$2" >> "$STATE/credentials"
for url; do :; done
out=/dev/stdout
while [ $# -gt 0 ]; do [ "$1" = --output ] && out=$2; shift; done
case "$url" in
  */v2/build | */v2/xctestrun-build) echo '{"build_id": "b1"}' > "$out" ;;
  */builds/b1) cat "${BUILD:-$FIXTURES/browserstack-build.json}" > "$out" ;;
  */sessions/s1) cat "$FIXTURES/browserstack-session.json" > "$out" ;;
  https://api.browserstack.com/*devicelogs) cat "$STATE/device.log" > "$out" ;;
  https://api.browserstack.com/*) echo 'OK (1 test)' > "$out" ;;
esac
"""
KEYS = {
    "BROWSERSTACK_USERNAME": "secret-user",
    "BROWSERSTACK_ACCESS_KEY": "secret-key",
    "FIXTURES": str(FIXTURES),
}
needs_jq = pytest.mark.skipif(not shutil.which("jq"), reason="the script needs jq")


@pytest.fixture
def device_log(make_report: Callable[..., LatencyReport], tmp_path: Path) -> LatencyReport:
    """A report, and the log of a device whose tests printed it."""
    report = make_report(launches=3, run_id="run-1")
    lines = [
        f"01-31 10:00:00.000 I/nanoflux: {line}"
        for line in marker_lines(report_json(report), report.run_id)
    ]
    (tmp_path / "device.log").write_text("\n".join(["boot", *lines, "end"]) + "\n", "utf-8")
    return report


@needs_jq
@pytest.mark.parametrize("suffix", [".apk", ".ipa"])
def test_browserstack_builds_waits_and_fetches_logs(suffix, prepare, play, device_log, tmp_path):
    folder, command = prepare("browserstack", suffix)
    code, calls = play(command, {"curl": CURL}, KEYS)
    assert code == 0
    assert read_any(folder / "results") == device_log
    assert 'user = "secret-user:secret-key"' in (tmp_path / "credentials").read_text("utf-8")
    assert not any("secret" in call for call in calls)
    # The second test case of the answer points to another host, which must not see the key.
    assert not any("example.org" in call for call in calls)
    assert sum(call.endswith(("/v2/build", "/v2/xctestrun-build")) for call in calls) == 1
    if suffix == ".ipa":
        with zipfile.ZipFile(folder / "tests.zip") as tests:
            names = tests.namelist()
            assert [name for name in names if name.endswith(".xctestrun")] == ["bench.xctestrun"]
            assert any(name.endswith("Info.plist") for name in names)
            assert b"NANOFLUX_LAUNCHES" in tests.read("bench.xctestrun")


@needs_jq
def test_browserstack_gives_up_a_build_that_does_not_end(prepare, play, device_log, tmp_path):
    folder, command = prepare("browserstack", ".apk")
    shorten(folder / "bench.sh", "MINUTES=150", "MINUTES=2")
    state = json.loads((FIXTURES / "browserstack-build.json").read_text("utf-8"))
    (tmp_path / "running.json").write_text(json.dumps({**state, "status": "running"}), "utf-8")
    _, calls = play(command, {"curl": CURL}, KEYS | {"BUILD": str(tmp_path / "running.json")})
    assert sum(call == "sleep 30" for call in calls) == 4


GCLOUD = """\
case "$*" in
  *" run firebase.yaml:bench"*) exit "${TEST_CODE:-0}" ;;
  *"storage cp"*)
    [ "${COPIES:-yes}" = yes ] || exit 1
    for place; do :; done
    mkdir -p "$place/run/e3q-34-en_US-portrait/artifacts/sdcard/Android/data"
    cp "$STATE/template.json" \\
      "$place/run/e3q-34-en_US-portrait/artifacts/sdcard/Android/data/latency-report.json"
    echo log > "$place/run/e3q-34-en_US-portrait/logcat" ;;
esac
"""
CLOUD = {"GOOGLE_CLOUD_PROJECT": "my-project", "NANOFLUX_RESULTS_BUCKET": "my bucket"}


@pytest.mark.parametrize("test_code", ["0", "10"])
@pytest.mark.parametrize(
    ("suffix", "group"), [(".apk", "firebase test android"), (".ipa", "beta firebase test ios")]
)
def test_firebase_tests_and_copies(test_code, suffix, group, prepare, play, template):
    folder, command = prepare("firebase", suffix)
    code, calls = play(command, {"gcloud": GCLOUD}, CLOUD | {"TEST_CODE": test_code})
    assert code == 0
    assert calls[0].startswith(f"gcloud {group} run firebase.yaml:bench --quiet")
    assert "--project my-project --results-bucket my bucket" in calls[0]
    assert read_any(folder / "results") == template


def test_firebase_ends_when_the_test_was_refused(prepare, play):
    _, command = prepare("firebase", ".apk")
    code, calls = play(command, {"gcloud": GCLOUD}, CLOUD | {"TEST_CODE": "2"})
    assert code != 0
    assert len(calls) == 1


def test_firebase_copies_three_times_at_most(prepare, play):
    _, command = prepare("firebase", ".apk")
    code, calls = play(command, {"gcloud": GCLOUD}, CLOUD | {"COPIES": "no"})
    assert code == 1
    assert sum("storage cp" in call for call in calls) == 3


XCRUN = f"""\
case "$*" in
  *"process launch"*)
    run_id=$(printf '%s' "$*" | grep -o '"NANOFLUX_RUN_ID": "[^"]*"' | cut -d '"' -f 4)
    case "$run_id" in
      *".${{CRASHES_AT:-0}}") ;;
      *) {REPORT} > "$STATE/on-phone" ;;
    esac ;;
  *"copy from"*)
    while [ "$1" != --destination ]; do shift; done
    cp "$STATE/on-phone" "$2" ;;
esac
"""


def test_an_iphone_is_given_the_bundle_and_launched_anew(prepare, play, template):
    folder, command = prepare("apple", ".app")
    code, calls = play(command, {"xcrun": XCRUN}, {})
    assert code == 0
    assert sum("process launch" in call for call in calls) == 3
    merged = read_any(folder / "results")
    assert merged.launches == template.launches * 3


def test_a_launch_on_an_iphone_that_left_nothing_is_no_launch(prepare, play, template):
    _, command = prepare("apple", ".app")
    code, calls = play(command, {"xcrun": XCRUN}, {"CRASHES_AT": "2"})
    assert code != 0
    assert sum("process launch" in call for call in calls) == 2


def test_an_xctest_on_an_iphone_is_told_and_its_attachments_exported(prepare, play):
    _, command = prepare("apple", ".xctestrun")
    tools = {"xcodebuild": 'echo "told $TEST_RUNNER_NANOFLUX_SEED" >> "$CALLS"', "xcrun": ""}
    code, calls = play(command, tools, {})
    assert code == 0
    assert [call.split()[0] for call in calls] == ["xcodebuild", "told", "xcrun"]
    assert calls[1] == "told 7"


def test_words_survive_the_shell(prepare):
    """The stand-ins see arguments; this sees that paths reach the script's variables whole."""
    folder, _ = prepare("aws", ".apk")
    head = (folder / "bench.sh").read_text("utf-8").split("\n: ")[0]
    done = subprocess.run(
        ["bash", "-c", f'{head}\nprintf %s "$APP"'], capture_output=True, check=True, text=True
    )
    app = Path(done.stdout)
    assert app.is_file()
    assert shlex.quote(str(app)) in head
