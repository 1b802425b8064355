#!/bin/sh
# A Vulkan driver in software, for LiteRT's GPU accelerator on a machine without a GPU: Mesa's
# lavapipe 25, Vulkan's loader and their libraries, unpacked below
# ${NANOFLUX_TOOLCHAINS:-~/.cache/nanoflux-toolchains}/vulkan. Takes them from the Debian sources
# that this machine has configured; nothing is installed, and root is not needed. Debian 12's own
# lavapipe 22.3 lacks what the accelerator asks of a driver, so there it takes that of backports.
set -eu
cache=${NANOFLUX_TOOLCHAINS:-$HOME/.cache/nanoflux-toolchains}
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
for tool in apt-get dpkg-deb; do
    command -v $tool >/dev/null || { echo "vulkan: needs $tool, so a Debian machine" >&2; exit 1; }
done
. /etc/os-release
[ "${ID:-}" = debian ] || { echo "vulkan: takes packages of Debian; this is ${ID:-unknown}" >&2; exit 1; }

mkdir -p "$cache"
work=$(mktemp -d "$cache/vulkan.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/sources"
: >"$work/status"
release=$VERSION_CODENAME
[ "${VERSION_ID:-99}" -gt 12 ] || release=$VERSION_CODENAME-backports
for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
    [ -e "$file" ] && grep -q "\b$VERSION_CODENAME\b" "$file" || continue
    name=$(basename "$file")
    cp "$file" "$work/sources/$name"
    [ "$release" = "$VERSION_CODENAME" ] ||
        sed "s/\b$VERSION_CODENAME\b[-a-z]*/$release/g" "$file" >"$work/sources/backports-$name"
done
apt() {
    apt-get -q -y -o APT::Sandbox::User=root -o APT::Install-Recommends=false \
        -o Dir::State::lists="$work/lists" -o Dir::State::status="$work/status" \
        -o Dir::Cache="$work" -o Dir::Etc::sourcelist=/dev/null \
        -o Dir::Etc::sourceparts="$work/sources" "$@"
}
echo "vulkan: reading Debian $release's lists and getting about 60 MB of packages"
apt update >"$work/log" 2>&1 || true # one broken source of several is no matter
apt -t "$release" --download-only install mesa-vulkan-drivers libvulkan1 vulkan-tools \
    >>"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }

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
