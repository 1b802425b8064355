# Upload, schedule, wait, fetch; the settings stand above. It never ran against the farm itself.
: "${AWS_DEVICE_FARM_PROJECT_ARN:?set it to the ARN of your Device Farm project}"
cd "$(dirname "$0")"
rm -rf results  # an older run must not pass for this one
mkdir results
ln -sfn "$APP" "app.$APP_EXT"
ln -sfn "$TESTS" "tests.$TESTS_EXT"

farm() { timeout 120 aws devicefarm "$@" --region "$REGION" --output text; }

fetch() { curl --fail --silent --show-error --proto '=https' --max-time 1800 "$@"; }

again() {  # three tries, for what may be done twice
  for try in 1 2 3; do
    "$@" && return 0
    sleep $((try * 10))
  done
  return 1
}

upload() {  # TYPE FILE; prints the ARN
  local made arn url
  made=$(again farm create-upload --project-arn "$AWS_DEVICE_FARM_PROJECT_ARN" \
    --type "$1" --name "$2" --query 'upload.[arn,url]') || return 1
  read -r arn url <<< "$made"
  again fetch --upload-file "$2" "$url" >&2 || return 1
  for wait in $(seq 60); do
    case $(again farm get-upload --arn "$arn" --query upload.status) in
      SUCCEEDED) echo "$arn"; return 0 ;;
      FAILED) break ;;
    esac
    sleep 10
  done
  echo "$2 was not accepted: $(farm get-upload --arn "$arn" --query upload.message)" >&2
  return 1
}

app=$(upload "$APP_TYPE" "app.$APP_EXT")
tests=$(upload "${TEST_TYPE}_TEST_PACKAGE" "tests.$TESTS_EXT")
spec=$(upload "${TEST_TYPE}_TEST_SPEC" testspec.yml)
extra=()
if [ "$APP_TYPE" = ANDROID_APP ]; then
  ln -sfn "$BUNDLE" nanoflux-bundle
  rm -f bundle.zip
  zip -q -0 -r bundle.zip nanoflux-bundle
  data=$(upload EXTERNAL_DATA bundle.zip)
  extra=(--configuration "extraDataPackageArn=$data")
fi

run=$(farm schedule-run --project-arn "$AWS_DEVICE_FARM_PROJECT_ARN" --device-pool-arn "$POOL" \
  --name "$RUN_ID" --app-arn "$app" ${extra[@]+"${extra[@]}"} \
  --test "type=$TEST_TYPE,testPackageArn=$tests,testSpecArn=$spec" \
  --execution-configuration "jobTimeoutMinutes=$MINUTES,videoCapture=false" --query run.arn)
status=
for wait in $(seq $((2 * MINUTES + 120))); do  # an hour for its turn
  status=$(again farm get-run --arn "$run" --query run.status)
  [ "$status" = COMPLETED ] && break
  sleep 30
done
if [ "$status" != COMPLETED ]; then
  farm stop-run --arn "$run" >&2 || true
  echo "the run did not end in time: $status" >&2
fi

count=0
again farm list-artifacts --arn "$run" --type FILE --query 'artifacts[].[type,url]' > artifacts.tsv
while read -r type url; do
  case $type in
    CUSTOMER_ARTIFACT) extension=zip ;;
    TESTSPEC_OUTPUT) extension=txt ;;
    *) continue ;;
  esac
  count=$((count + 1))
  again fetch --max-filesize 2147483648 --output "results/$count-$type.$extension" "$url"
done < artifacts.tsv
rm -f artifacts.tsv
[ "$count" -gt 0 ] || { echo 'the run left nothing behind' >&2; exit 1; }
