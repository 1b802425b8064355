"""AWS Device Farm: a test spec that measures on its host, and the script that schedules the run.

Address: the ARN of a device pool. Handed in beside the app and its tests: `testspec.yml`
(version 0.1) and, for Android, the bundle as extra data; an .ipa carries its bundle. Comes back:
a zip of type CUSTOMER_ARTIFACT with what lay in `$DEVICEFARM_LOG_DIR`, and the spec's output.

The formats are those of the developer guide and of the API reference. This never ran on the farm.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from nanoflux_benchmarks.farms import Job
from nanoflux_benchmarks.farms._app import (
    ACTIVITY,
    ANDROID_BUNDLES,
    ANDROID_REPORTS,
    LAUNCH_TIMEOUT_S,
    PACKAGE,
)
from nanoflux_benchmarks.farms._handin import (
    ALARM,
    HandIn,
    assignments,
    hand_in,
    write_script,
    yaml,
)
from nanoflux_benchmarks.farms._results import candidates
from nanoflux_mobile.errors import InputError
from nanoflux_mobile.report import FILE
from nanoflux_mobile.storage import write_file

JOB_TIMEOUT_MINUTES = 150
"""The most that the farm grants."""
_POOL = re.compile(r"arn:aws:devicefarm:([a-z0-9-]+):\d*:devicepool:[\w/-]+", re.ASCII)
_UPLOADS = {
    "android": ("ANDROID_APP", "INSTRUMENTATION", "apk", "apk"),
    "ios": ("IOS_APP", "XCTEST_UI", "ipa", "zip"),
}

# Each block of the spec is one subshell, so no setting outlives it and `set -e` ends it alone.
_ANDROID_PREPARE = """\
phone wait-for-device
found=$(phone shell "find /sdcard/ -maxdepth 3 -type d -name nanoflux-bundle | head -n 1")
found=$(printf %s "$found" | tr -d '\\r')
test -n "$found" || { echo 'the extra data did not arrive on the phone' >&2; exit 1; }
phone shell "rm -rf $BUNDLES; mkdir -p $BUNDLES"
phone shell "cp -R '$found' $BUNDLE && rm -rf '$found' && chmod -R a+rX $BUNDLES"
"""
_ANDROID_MEASURE = """\
for launch in $(seq "$LAUNCHES"); do
  phone shell am force-stop "$PACKAGE"
  phone shell rm -f "$REPORT"
  for wait in $(seq 30); do  # ten minutes to cool down; the gate refuses a hot start
    phone shell dumpsys thermalservice | grep -q 'Thermal Status: 0' && break
    sleep 20
  done
  phone shell am start -W -n "$ACTIVITY" --es bundle "$BUNDLE" --es run_id "$RUN_ID.$launch" \\
    --ei images "$IMAGES" --ei warmup "$WARMUP" --el seed "$SEED"
  for wait in $(seq "$POLLS"); do
    sleep 10
    phone shell "test -f $REPORT && echo whole" | grep -q whole && break
  done
  phone pull "$REPORT" "$DEVICEFARM_LOG_DIR/latency-report-$launch.json" || true
  grep -qF "$RUN_ID.$launch" "$DEVICEFARM_LOG_DIR/latency-report-$launch.json" ||
    { echo "launch $launch left no report" >&2; exit 1; }
done
"""
_IOS_MEASURE = """\
xcodebuild test-without-building -xctestrun "$DEVICEFARM_XCUITESTRUN_FILE" \\
  -destination "id=$DEVICEFARM_DEVICE_UDID" -derivedDataPath "$DEVICEFARM_DERIVED_DATA_PATH" \\
  -resultBundlePath "$DEVICEFARM_LOG_DIR/bench.xcresult" \\
  -test-timeouts-enabled YES -maximum-test-execution-time-allowance "$SECONDS_ALLOWED"
"""
_IOS_COLLECT = f"""\
{ALARM} 600 xcrun xcresulttool export attachments \\
  --path "$DEVICEFARM_LOG_DIR/bench.xcresult" --output-path "$DEVICEFARM_LOG_DIR/attachments"
"""


def prepare(job: Job, address: str, folder: Path) -> tuple[str, ...]:
    """Write `testspec.yml` and `bench.sh`; the command uploads, waits and fills `results`.

    The script needs bash, zip, curl and the AWS command line, which finds its credentials in the
    environment, and `$AWS_DEVICE_FARM_PROJECT_ARN`.

    Raises:
        InputError: an address that is no device pool, or a job that cannot be handed in.
    """
    if not (pool := _POOL.fullmatch(address)):
        raise InputError(f"{address!r} is no device pool; write aws:arn:aws:devicefarm:...")
    given = hand_in(job)
    app_type, test_type, app_ext, tests_ext = _UPLOADS[given.kind.platform]
    settings = {
        "POOL": address,
        "REGION": pool[1],
        "RUN_ID": given.run_id,
        "APP": given.app,
        "TESTS": given.tests,
        "BUNDLE": given.bundle,
        "APP_TYPE": app_type,
        "TEST_TYPE": test_type,
        "APP_EXT": app_ext,
        "TESTS_EXT": tests_ext,
        "MINUTES": JOB_TIMEOUT_MINUTES,
    }
    write_file(folder / "testspec.yml", testspec(given))
    return (write_script(folder, settings, Path(__file__).with_suffix(".sh")),)


def testspec(given: HandIn) -> str:
    """The test spec of a hand-in as YAML; every loop in it ends."""
    if given.kind.platform == "ios":
        host, blocks = {"ios_test_host": "macos_sequoia"}, _ios_blocks(given)
    else:
        host, blocks = {"android_test_host": "amazon_linux_2"}, _android_blocks(given)
    phases = {phase: {"commands": [f"(\nset -eu\n{text})\n"]} for phase, text in blocks.items()}
    spec = {"version": 0.1, **host, "phases": phases, "artifacts": ["$DEVICEFARM_LOG_DIR"]}
    return yaml(spec)


def _android_blocks(given: HandIn) -> dict[str, str]:
    settings = assignments(
        {
            "PACKAGE": PACKAGE,
            "ACTIVITY": ACTIVITY,
            "REPORT": f"{ANDROID_REPORTS}/{FILE}",
            "BUNDLES": ANDROID_BUNDLES,
            "BUNDLE": f"{ANDROID_BUNDLES}/bundle",
            "POLLS": LAUNCH_TIMEOUT_S // 10,
            **{name.upper(): value for name, value in given.told.items()},
        }
    )
    phone = 'phone() { timeout 600 adb -s "$DEVICEFARM_DEVICE_UDID" "$@" < /dev/null; }\n'
    scripts = {"pre_test": _ANDROID_PREPARE, "test": _ANDROID_MEASURE}
    return {phase: settings + phone + script for phase, script in scripts.items()}


def _ios_blocks(given: HandIn) -> dict[str, str]:
    # xcodebuild hands variables with this prefix on to the tests, without it.
    told = {f"TEST_RUNNER_{name}": value for name, value in given.environment().items()}
    exports = "".join(f"export {line}\n" for line in assignments(told).splitlines())
    allowed = assignments({"SECONDS_ALLOWED": LAUNCH_TIMEOUT_S * int(given.told["launches"])})
    return {"test": exports + allowed + _IOS_MEASURE, "post_test": _IOS_COLLECT}


def collect(results: Path) -> Iterator[tuple[str, str]]:
    """The reports, and the logs with one, in the artifacts of a run.

    Raises:
        InputError: there is no report among them, or they cannot be read.
    """
    return candidates(results, ("*.log", "*.txt"))
