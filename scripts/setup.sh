#!/bin/bash
# Installs what the build needs and this machine lacks: a C++ compiler, cmake, libclang (bindgen
# reads llama.cpp's headers with it) and Rust. Does nothing, quickly, where all is there.
#
# Debian and its kin through apt-get, macOS through Homebrew (not verified on macOS). Elsewhere it
# names what is missing.
set -euo pipefail
shopt -s nullglob
cd "$(dirname "$0")/.."

# What a first build writes into the target folder, and a margin.
readonly BUILD_KIB=$((3 * 1024 * 1024))

say() { echo "setup: $*" >&2; }
die() {
    say "$*"
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

# Runs a command that never asks; shows the end of its output if it fails, and nothing if not.
quietly() {
    local log
    log=$(mktemp)
    if "$@" </dev/null >"$log" 2>&1; then
        rm -f "$log"
        return
    fi
    tail -n 8 "$log" >&2
    rm -f "$log"
    return 1
}

main() {
    PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
    case "$(uname -s)" in
        Linux) setup_linux ;;
        Darwin) setup_macos ;;
        *) die "Hypura builds on Linux and macOS, and this is $(uname -s)" ;;
    esac
    setup_rust
    check_disk
}

setup_linux() {
    local packages=()
    has c++ || packages+=(g++)
    has cmake || packages+=(cmake)
    has_libclang || packages+=(libclang-dev)
    if ! has cargo && ! has curl && ! has wget; then
        packages+=(curl ca-certificates)
    fi
    [ ${#packages[@]} -eq 0 ] || install_packages "${packages[@]}"
}

# True if there is a libclang, and the compiler's own headers (stddef.h) that it reads.
has_libclang() {
    [ -z "${LIBCLANG_PATH:-}" ] || return 0
    local libraries=(
        /usr/lib/llvm*/lib/libclang{,-*}.so*
        /usr/lib{,64,/*-linux-gnu,64/llvm*/lib}/libclang{,-*}.so*
        /usr/local/lib{,64}/libclang{,-*}.so*
    )
    local headers=(
        /usr/lib/llvm*/lib/clang/*/include/stddef.h
        /usr/{,local/}lib{,64}/clang/*/include/stddef.h
        /usr/lib64/llvm*/lib/clang/*/include/stddef.h
    )
    [ ${#libraries[@]} -gt 0 ] && [ ${#headers[@]} -gt 0 ]
}

install_packages() {
    has apt-get || die "missing: $*; install them with your package manager (Debian's names), then try again"
    local root=()
    if [ "$(id -u)" -ne 0 ]; then
        has sudo || die "missing: $*; as root, run: apt-get install $*"
        root=(sudo)
    fi
    say "installing $* with ${root[*]:+${root[*]} }apt-get"
    root+=(env DEBIAN_FRONTEND=noninteractive)
    # The lists of a fresh machine are empty, and old ones name packages that are gone.
    quietly "${root[@]}" apt-get update || die "apt-get update failed"
    quietly "${root[@]}" apt-get install -y --no-install-recommends "$@" ||
        die "apt-get could not install $*"
}

setup_macos() {
    # The command line tools bring the compiler and libclang.
    xcode-select -p >/dev/null 2>&1 || die "Apple's command line tools are missing; run: xcode-select --install"
    has cmake && return
    has brew || die "cmake is missing; install it from https://cmake.org or Homebrew, then try again"
    say "installing cmake with brew"
    quietly brew install cmake || die "brew could not install cmake"
}

setup_rust() {
    local channel version
    channel=$(sed -n 's/^channel = "\(.*\)"/\1/p' rust-toolchain.toml)
    if ! has cargo; then
        install_rustup
    fi
    # Fails when rustup does not have the toolchain that rust-toolchain.toml asks for.
    if version=$(RUSTUP_AUTO_INSTALL=0 cargo --version 2>/dev/null); then
        version=${version#cargo }
        version=${version%% *}
        is_at_least "$version" "$channel" ||
            die "Rust $channel or newer is needed, and $(command -v cargo) is $version; install rustup (https://rustup.rs) or update it"
        return
    fi
    has rustup || die "$(command -v cargo) does not run; repair it, or remove it and try again"
    say "installing Rust $channel with rustup"
    quietly rustup toolchain install || die "rustup could not install Rust $channel"
}

install_rustup() {
    local script
    script=$(mktemp)
    say "installing rustup into ${CARGO_HOME:-$HOME/.cargo} (add its bin folder to your PATH to use cargo yourself)"
    # The script that https://sh.rustup.rs serves, from the host that it loads the rest from.
    download https://static.rust-lang.org/rustup/rustup-init.sh "$script" ||
        die "rustup could not be downloaded; install it from https://rustup.rs, then try again"
    quietly sh "$script" -y --no-modify-path --profile minimal --default-toolchain none ||
        die "rustup's installer failed; see https://rustup.rs"
    rm -f "$script"
    has cargo || die "rustup was installed, but there is no cargo in ${CARGO_HOME:-$HOME/.cargo}/bin"
}

download() {
    if has curl; then
        curl --proto '=https' --tlsv1.2 -sSfL "$1" -o "$2"
    else
        wget -q "$1" -O "$2"
    fi
}

# True if version $1 is $2 or newer; both like 1.95.0.
is_at_least() {
    local have want i
    IFS=. read -r -a have <<<"${1%%-*}"
    IFS=. read -r -a want <<<"$2"
    for i in 0 1 2; do
        if [ "${have[i]:-0}" -ne "${want[i]:-0}" ]; then
            [ "${have[i]:-0}" -gt "${want[i]:-0}" ]
            return
        fi
    done
}

# Before a first build only: a compiler that runs out of disk half an hour later explains nothing.
check_disk() {
    local free_kib
    if [ -n "${CARGO_TARGET_DIR:-}" ] || [ -d target/release ]; then
        return
    fi
    free_kib=$(df -Pk . | awk 'NR == 2 { print $4 }')
    [ "$free_kib" -ge "$BUILD_KIB" ] ||
        die "the build needs $((BUILD_KIB >> 20)) GiB of disk, and $PWD has $((free_kib >> 10)) MiB free; make room or set CARGO_TARGET_DIR"
}

main "$@"
