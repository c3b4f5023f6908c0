#!/bin/bash
# Checks the page against the real server with the demo model, in less memory than it needs.
# With `--picture` writes the README's pictures, docs/ui.png and docs/ui-dark.png.
set -euo pipefail
cd "$(dirname "$0")/.."

hypura=${HYPURA:-${CARGO_TARGET_DIR:-target}/release/hypura}
home=$(mktemp -d)
server=
cleanup() {
    [ -z "$server" ] || kill "$server" 2>/dev/null || true
    [ -z "$server" ] || wait "$server" 2>/dev/null || true
    rm -rf "$home"
}
trap cleanup EXIT

HYPURA_HOME=$home "$hypura" serve --port 0 --models-dir models --memory 90MiB --parallel 2 \
    2>"$home/log" &
server=$!
url=
for _ in $(seq 300); do
    url=$(sed -nE 's/.*serving at (http[^,]*),.*/\1/p' "$home/log")
    [ -z "$url" ] || break
    kill -0 "$server" 2>/dev/null || break
    sleep 0.1
done
if [ -z "$url" ]; then
    cat "$home/log" >&2
    exit 1
fi
picture=()
if [ "${1:-}" = --picture ]; then
    picture=(--screenshot docs/ui.png)
fi
scripts/test-ui.sh --real "$url" ${picture[@]+"${picture[@]}"}
