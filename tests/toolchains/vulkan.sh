#!/bin/sh
# A Vulkan driver in software, for LiteRT's GPU accelerator on a machine without a GPU: Mesa's
# lavapipe 25, Vulkan's loader and their libraries, unpacked below
# ${NANOFLUX_TOOLCHAINS:-~/.cache/nanoflux-toolchains}/vulkan. Takes them from the Debian sources
# that this machine has configured; nothing is installed, and root is not needed. Debian 12's own
# lavapipe 22.3 lacks what the accelerator asks of a driver, so there it takes that of backports.
set -eu
. "$(dirname "$0")/debian.sh"
place=$cache/vulkan

libraries() { echo "$1"/root/usr/lib/*-linux-gnu; }
# Prints what the driver below $1 calls itself; fails where it does not answer.
answer() {
    mkdir -p -m 700 "$1/runtime"
    XDG_RUNTIME_DIR=$1/runtime VK_ICD_FILENAMES=$1/icd.json \
        LD_LIBRARY_PATH=$(libraries "$1") "$1/root/usr/bin/vulkaninfo" --summary |
        sed -n 's/^\tdeviceName *= //p; s/^\tdriverInfo *= //p' | paste -sd ' ' | grep .
}

if [ -e "$place/icd.json" ] && device=$(answer "$place" 2>/dev/null); then
    echo "vulkan: already in $place: $device"
    exit
fi
need_debian vulkan
make_work vulkan
release=$VERSION_CODENAME
[ "${VERSION_ID:-99}" -gt 12 ] || release=$VERSION_CODENAME-backports
own_sources | while read -r file; do
    name=$(basename "$file")
    cp "$file" "$work/sources/$name"
    [ "$release" = "$VERSION_CODENAME" ] ||
        sed "s/\b$VERSION_CODENAME\b[-a-z]*/$release/g" "$file" >"$work/sources/backports-$name"
done
echo "vulkan: reading Debian $release's lists and getting about 60 MB of packages"
download -t "$release" mesa-vulkan-drivers libvulkan1 vulkan-tools

root=$work/made/root
mkdir -p "$root"
for package in "$work"/archives/*.deb; do
    case $(basename "$package") in
    # A driver lives inside a process, which brings these.
    libc6_* | libgcc-s1_* | libstdc++6_*) ;;
    *) dpkg-deb -x "$package" "$root" ;;
    esac
done
# Loaders look for a bare name along LD_LIBRARY_PATH, so the folder can be moved.
sed 's|"[^"]*/\(libvulkan_lvp.so\)"|"\1"|' "$root"/usr/share/vulkan/icd.d/lvp_icd*.json \
    >"$work/made/icd.json"
device=$(answer "$work/made" 2>>"$work/log") || {
    cat "$work/log" >&2
    echo "vulkan: the driver does not answer" >&2
    exit 1
}
rm -rf "$place"
mv "$work/made" "$place"
echo "vulkan: in $place: $device"
