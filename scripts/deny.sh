#!/bin/bash
# Checks licences, bans and sources of all dependencies (deny.toml) with cargo-deny, which it builds
# first (a minute on two cores, into the target folder) unless a fitting one is installed.
#
# Advisories are not checked here: their database has to be fetched each time.
set -euo pipefail
cd "$(dirname "$0")/.."

# Reads our deny.toml: SINCE and newer. Built where there is none: VERSION.
readonly SINCE_MAJOR=0 SINCE_MINOR=18 VERSION=0.20.2
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
target=${CARGO_TARGET_DIR:-target}
tools=$target/tools

main() {
    local deny
    if fits cargo-deny; then
        deny=cargo-deny
    else
        deny=$tools/bin/cargo-deny
        fits "$deny" || install_deny
    fi
    # Two versions of one crate are a warning: one line each is enough.
    "$deny" --locked check --hide-inclusion-graph bans licenses sources
}

# True if $1 runs and is new enough.
fits() {
    local version major minor
    version=$("$1" --version 2>/dev/null) || return 1
    IFS=. read -r major minor _ <<<"${version##* }"
    [ "$major" -gt $SINCE_MAJOR ] || [ "$minor" -ge $SINCE_MINOR ]
}

# Unoptimised: it builds in a quarter of the time and still checks us in half a second. RUSTFLAGS is
# emptied because the ones of this repository and of the caller are meant for Hypura.
install_deny() {
    echo "deny: building cargo-deny $VERSION, once" >&2
    local log=$target/tools.log
    mkdir -p "$tools"
    RUSTFLAGS='' \
        CARGO_PROFILE_RELEASE_OPT_LEVEL=0 \
        CARGO_PROFILE_RELEASE_LTO=off \
        CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
        CARGO_PROFILE_RELEASE_DEBUG=0 \
        cargo install cargo-deny --quiet --locked --version "$VERSION" \
        --root "$tools" --target-dir "$tools/build" >"$log" 2>&1 ||
        {
            tail -n 20 "$log" >&2
            echo "deny: cargo-deny $VERSION could not be built (log: $log)" >&2
            exit 1
        }
    rm -rf "$tools/build" "$log"
}

main "$@"
