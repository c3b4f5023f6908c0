#!/bin/bash
# Checks `hypura serve` with the official clients, unchanged, and the demo model: Ollama's, OpenAI's
# and Anthropic's for Python, and LangChain's. --all adds llm, the clients for Node, and OpenClaw
# (800 MB from npm). --only TEXT runs the checks whose line contains it.
#
# HYPURA names the binary, if it is not target/release/hypura. The clients are installed into
# target/clients, in the versions of scripts/clients/requirements*.txt.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly FOLDER=target/clients
export HYPURA=${HYPURA:-${CARGO_TARGET_DIR:-target}/release/hypura}
export PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONPYCACHEPREFIX=$PWD/$FOLDER/pycache

say() { echo "clients: $*" >&2; }
die() {
    say "$*"
    exit 1
}
has() { command -v "$1" >/dev/null 2>&1; }

main() {
    [ -x "$HYPURA" ] || die "there is no $HYPURA; run: make build"
    local lists=(scripts/clients/requirements.txt)
    if is_all "$@"; then
        lists+=(scripts/clients/requirements-all.txt)
        has npm || die "--all needs npm; install Node 20 or newer"
    fi
    install_clients "${lists[@]}"
    exec "$FOLDER/venv/bin/python" scripts/clients/main.py "$@"
}

is_all() {
    local argument
    for argument in "$@"; do
        [ "$argument" != --all ] || return 0
    done
    return 1
}

# The arguments are lists of packages. Does nothing if these, or these and more, are installed.
install_clients() {
    local wanted installed
    wanted=$(cat "$@")
    installed=$(cat "$FOLDER/installed" 2>/dev/null || true)
    if [ -x "$FOLDER/venv/bin/python" ] && [[ $installed == "$wanted"* ]]; then
        return
    fi
    python3 -c 'import ensurepip, venv' 2>/dev/null || install_python
    say "installing the Python clients into $FOLDER"
    mkdir -p "$FOLDER"
    rm -f "$FOLDER/installed"
    python3 -m venv --clear "$FOLDER/venv" || die "python3 -m venv failed"
    # The lists are complete, so nothing has to be resolved. What is compiled here would be compiled
    # again by whoever imports it.
    "$FOLDER/venv/bin/pip" install --quiet --no-deps --no-compile "${@/#/-r}" ||
        die "pip could not install the clients"
    printf '%s\n' "$wanted" >"$FOLDER/installed"
}

install_python() {
    has apt-get || die "Python's venv is missing; install Python 3.10 or newer, then try again"
    local root=()
    if [ "$(id -u)" -ne 0 ]; then
        has sudo || die "Python's venv is missing; as root, run: apt-get install python3-venv"
        root=(sudo)
    fi
    root+=(env DEBIAN_FRONTEND=noninteractive)
    say "installing python3-venv with apt-get"
    "${root[@]}" apt-get update -qq </dev/null >&2 || die "apt-get update failed"
    "${root[@]}" apt-get install -qq -y --no-install-recommends python3-venv </dev/null >&2 ||
        die "apt-get could not install python3-venv"
}

main "$@"
