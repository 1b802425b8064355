# Upload, build, wait, fetch logs; the settings stand above. It never ran against the farm itself.
: "${BROWSERSTACK_USERNAME:?set it}" "${BROWSERSTACK_ACCESS_KEY:?set it}"
cd "$(dirname "$0")"
rm -rf results  # an older run must not pass for this one
mkdir results
api=https://api-cloud.browserstack.com/app-automate/$FRAMEWORK/v2

call() {  # the key comes on a pipe, as arguments show in the list of processes
  curl --config <(printf 'user = "%s:%s"\n' "$BROWSERSTACK_USERNAME" "$BROWSERSTACK_ACCESS_KEY") \
    --fail --silent --show-error --proto '=https' --max-time 1800 "$@"
}
again() { call --retry 3 --retry-max-time 3600 "$@"; }

ln -sfn "$APP" "app.$APP_EXT"
if [ "$FRAMEWORK" = xcuitest ]; then
  cp "$TESTS" tests.zip
  zip -q -d tests.zip '*.xctestrun'
  zip -q tests.zip bench.xctestrun
else
  ln -sfn "$TESTS" "tests.$TESTS_EXT"
fi
again --form "file=@app.$APP_EXT" --form "custom_id=$RUN_ID" --output /dev/null "$api/app"
again --form "file=@tests.$TESTS_EXT" --form "custom_id=$RUN_ID" --output /dev/null \
  "$api/test-suite"

call --header 'Content-Type: application/json' --data @build.json --output build-id.json \
  "$api/$BUILD_CALL"
build=$(jq --exit-status --raw-output .build_id build-id.json)
status=
for wait in $(seq $((2 * MINUTES))); do
  again --output state.json "$api/builds/$build"
  status=$(jq --raw-output .status state.json)
  case $status in
    queued | running) sleep 30 ;;
    *) break ;;
  esac
done
echo "build $build: $status" >&2

jq --raw-output '.devices[].sessions[].id' state.json | while read -r session; do
  again "$api/builds/$build/sessions/$session"
done | jq --raw-output \
  '.testcases.data[].testcases[] | .device_log, .instrumentation_log | strings' > logs.txt
count=0
while read -r url; do
  case $url in
    https://api.browserstack.com/* | https://api-cloud.browserstack.com/*) ;;
    *) echo 'a log lies on another host; the key is not sent there' >&2; continue ;;
  esac
  count=$((count + 1))
  again --max-filesize 67108864 --output "results/$count.log" "$url"
done < logs.txt
[ "$count" -gt 0 ] || { echo 'the build left no log' >&2; exit 1; }
