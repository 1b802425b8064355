#!/bin/sh
# Android's real adbd, adb and shell (adbd, adb, mksh, toybox) for the tests of farms/adb: Debian
# trixie's packages, unpacked below ${NANOFLUX_TOOLCHAINS:-~/.cache/nanoflux-toolchains}/adbd.
# Takes them from the Debian sources that this machine has configured, whatever their release;
# nothing is installed. Needs Debian, and to run the tests: root, or user namespaces.
set -eu
release=trixie
cache=${NANOFLUX_TOOLCHAINS:-$HOME/.cache/nanoflux-toolchains}
place=$cache/adbd
if [ -e "$place/adb" ]; then
    echo "adbd: already in $place"
    exit
fi
for tool in apt-get dpkg-deb unshare nsenter setpriv; do
    command -v $tool >/dev/null || { echo "adbd: needs $tool, so a Debian machine" >&2; exit 1; }
done
. /etc/os-release
[ "${ID:-}" = debian ] || { echo "adbd: takes packages of Debian; this is ${ID:-unknown}" >&2; exit 1; }

mkdir -p "$cache"
work=$(mktemp -d "$cache/adbd.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/sources"
: >"$work/status"
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    [ -e "$file" ] && grep -q "\b$VERSION_CODENAME\b" "$file" || continue
    sed "s/\b$VERSION_CODENAME\b/$release/g" "$file" >"$work/sources/$(basename "$file")"
done
apt() {
    apt-get -q -y -o APT::Sandbox::User=root -o APT::Install-Recommends=false \
        -o Dir::State::lists="$work/lists" -o Dir::State::status="$work/status" \
        -o Dir::Cache="$work" -o Dir::Etc::sourcelist=/dev/null \
        -o Dir::Etc::sourceparts="$work/sources" "$@"
}
echo "adbd: reading Debian $release's lists and getting 11 MB of packages"
apt update >"$work/log" 2>&1 || true # one broken source of several is no matter
apt --download-only install adbd adb mksh toybox >>"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }

root=$work/made/root
mkdir -p "$root/usr/bin" "$root/usr/sbin" "$root/usr/lib" "$root/usr/lib64"
for name in bin sbin lib lib64; do ln -s usr/$name "$root/$name"; done
for package in "$work"/archives/*.deb; do dpkg-deb -x "$package" "$root"; done
mkdir -p "$root/proc" "$root/dev" "$root/data" "$root/sdcard" "$root/system/bin" "$root/tmp"
ln -s mksh "$root/usr/bin/sh"
for applet in $("$root"/lib*/ld-linux-*.so.* --library-path "$(echo "$root"/usr/lib/*-linux-gnu)" \
    "$root/usr/bin/toybox"); do
    [ -e "$root/usr/bin/$applet" ] || ln -s toybox "$root/usr/bin/$applet"
done
cat >"$work/made/adb" <<'CLIENT'
#!/bin/sh
# This adb with the libraries of its own release.
root=$(dirname "$0")/root
libraries=$(echo "$root"/usr/lib/*-linux-gnu)
exec "$root"/lib*/ld-linux-*.so.* --library-path "$libraries:$libraries/android" \
    "$root/usr/bin/adb" "$@"
CLIENT
chmod +x "$work/made/adb"
"$work/made/adb" version
rm -rf "$place"
mv "$work/made" "$place"
echo "adbd: in $place"
