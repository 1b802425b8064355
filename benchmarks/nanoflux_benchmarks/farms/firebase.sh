# Run the test, copy what it left; the settings stand above. It never ran against the farm itself.
: "${GOOGLE_CLOUD_PROJECT:?set it}" "${NANOFLUX_RESULTS_BUCKET:?set it to a bucket of yours}"
cd "$(dirname "$0")"
rm -rf results  # an older run must not pass for this one
mkdir results

if [ "$PLATFORM" = ios ]; then
  set -- gcloud beta firebase test ios run
else
  set -- gcloud firebase test android run
fi
# Exit code 10 says that a test failed; what counts is the report.
timeout 7200 "$@" firebase.yaml:bench --quiet --project "$GOOGLE_CLOUD_PROJECT" \
  --results-bucket "$NANOFLUX_RESULTS_BUCKET" || test $? -eq 10

for try in 1 2 3; do
  timeout 1800 gcloud storage cp --recursive "gs://$NANOFLUX_RESULTS_BUCKET/$RUN_ID" results && exit 0
  sleep $((try * 10))
done
echo 'the results could not be copied' >&2
exit 1
