#!/bin/sh
# Android's real adbd, adb and shell (adbd, adb, mksh, toybox) for the tests of farms/adb: Debian
# trixie's packages, unpacked below ${NANOFLUX_TOOLCHAINS:-~/.cache/nanoflux-toolchains}/adbd.
# Takes them from the Debian sources that this machine has configured, whatever their release;
# nothing is installed. Needs Debian, and to run the tests: root, or user namespaces.
set -eu
. "$(dirname "$0")/debian.sh"
release=trixie
place=$cache/adbd
if [ -e "$place/adb" ]; then
    echo "adbd: already in $place"
    exit
fi
need_debian adbd unshare nsenter setpriv
make_work adbd
own_sources | while read -r file; do
    sed "s/\b$VERSION_CODENAME\b/$release/g" "$file" >"$work/sources/$(basename "$file")"
done
echo "adbd: reading Debian $release's lists and getting 11 MB of packages"
download adbd adb mksh toybox

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
