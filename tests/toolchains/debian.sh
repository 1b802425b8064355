# Sourced by scripts that unpack packages of Debian below ${NANOFLUX_TOOLCHAINS:-~/.cache/
# nanoflux-toolchains}. Takes them from the Debian sources that this machine has configured; nothing
# is installed, and root is not needed.
cache=${NANOFLUX_TOOLCHAINS:-$HOME/.cache/nanoflux-toolchains}

# Ends the script $1 unless this is a Debian machine with the tools that follow.
need_debian() {
    who=$1
    shift
    for tool in apt-get dpkg-deb "$@"; do
        command -v "$tool" >/dev/null || { echo "$who: needs $tool, so a Debian machine" >&2; exit 1; }
    done
    . /etc/os-release
    [ "${ID:-}" = debian ] ||
        { echo "$who: takes packages of Debian; this is ${ID:-unknown}" >&2; exit 1; }
}

# Makes the folder $work for the script $1, and in it what `apt` below keeps.
make_work() {
    mkdir -p "$cache"
    work=$(mktemp -d "$cache/$1.XXXXXX")
    trap 'rm -rf "$work"' EXIT
    mkdir -p "$work/lists/partial" "$work/archives/partial" "$work/sources"
    : >"$work/status"
}

# Prints the files in which this machine names the sources of its own release.
own_sources() {
    for file in /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources; do
        [ -e "$file" ] && grep -q "\b$VERSION_CODENAME\b" "$file" && echo "$file"
    done
    return 0
}

# apt-get with $work for its folders, and no sources but those in $work/sources.
apt() {
    apt-get -q -y -o APT::Sandbox::User=root -o APT::Install-Recommends=false \
        -o Dir::State::lists="$work/lists" -o Dir::State::status="$work/status" \
        -o Dir::Cache="$work" -o Dir::Etc::sourcelist=/dev/null \
        -o Dir::Etc::sourceparts="$work/sources" "$@"
}

# Gets the packages that apt is told to install, and shows its words only where that fails.
download() {
    apt update >"$work/log" 2>&1 || true # one broken source of several is no matter
    apt --download-only install "$@" >>"$work/log" 2>&1 || { cat "$work/log" >&2; exit 1; }
}
