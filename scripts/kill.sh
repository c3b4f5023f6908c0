#!/bin/bash
# Kills Hypura (kill -9) at random moments while it writes attention state, N times (500 by default),
# and checks each time that what is left is sound, that the next start works, and that its answer is
# right. The tests do the same a few times.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"
HYPURA_KILLS=${1:-500} cargo test --release --workspace --test kill -- --nocapture
