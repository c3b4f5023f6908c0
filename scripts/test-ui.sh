#!/bin/bash
# Checks the page that the server shows at /ui in a headless Chromium, which it installs by apt-get
# where there is none. Without arguments the page is served by a mock (scripts/ui/mock.py); with
# `--real http://HOST:PORT` by a server that runs. --help lists the rest.
#
# Where there is no browser to be had it is skipped, unless UI_TEST_REQUIRED=1.
set -euo pipefail
cd "$(dirname "$0")/.."

has() { command -v "$1" >/dev/null 2>&1; }

# Ends the script: the checks can't be made here, because of $1.
skip() {
    if [ "${UI_TEST_REQUIRED:-0}" = 1 ]; then
        echo "ui: $1" >&2
        exit 1
    fi
    echo "skipped: $1" >&2
    exit 0
}

main() {
    has python3 || skip "there is no python3"
    has_browser || install_browser
    PYTHONDONTWRITEBYTECODE=1 exec python3 scripts/ui/check.py "$@"
}

has_browser() {
    [ -n "${CHROMIUM:-}" ] || has chromium-headless-shell || has chromium || has chromium-browser ||
        has google-chrome || has google-chrome-stable
}

install_browser() {
    has apt-get || skip "there is no Chromium here; install one, or name it in CHROMIUM"
    local sudo=() log
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || skip "there is no Chromium, and only root may install it: apt-get install chromium-headless-shell"
        sudo=(sudo -n)
    fi
    echo "ui: installing chromium-headless-shell, once" >&2
    log=$(mktemp)
    if ! install_packages "${sudo[@]+"${sudo[@]}"}" >"$log" 2>&1; then
        tail -n 5 "$log" >&2
        rm -f "$log"
        skip "chromium-headless-shell could not be installed"
    fi
    rm -f "$log"
}

# The arguments are what comes before apt-get: sudo, or nothing.
install_packages() {
    local options=(-qq -y --no-install-recommends -o Dpkg::Use-Pty=0)
    local packages=(chromium-headless-shell fonts-liberation fonts-dejavu-core)
    export DEBIAN_FRONTEND=noninteractive
    "$@" apt-get install "${options[@]}" "${packages[@]}" </dev/null ||
        { "$@" apt-get update -qq </dev/null && "$@" apt-get install "${options[@]}" "${packages[@]}" </dev/null; }
}

main "$@"
