#!/bin/bash
# The demo: widens the small trained model to about 1 GB, once, then shows how it would be laid out
# in half the memory of its weights, and runs it so. `--clean` removes the widened model.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly TRAINED=models/demo-moe-54m-q4_k_m.gguf
# How many times the trained width: with 32 the file has about 1 GB, nearly all of it experts.
readonly TIMES=32
readonly PROMPT="Once upon a time there was a little fox who lived in the forest."
readonly SEED=7 TOKENS_MAX=160

bin=${CARGO_TARGET_DIR:-target}/release
# Where hypura itself keeps what can be made again.
cache=${HYPURA_HOME:+$HYPURA_HOME/cache}
cache=${cache:-${XDG_CACHE_HOME:-$HOME/.cache}/hypura}/demo
model=$cache/demo-1g.gguf
# What the cached model was made from; another one is made when this changes.
stamp=$model.from

main() {
    if [ "${1:-}" = --clean ]; then
        rm -f "$model" "$model.partial" "$stamp"
        rmdir "$cache" 2>/dev/null || true
        return
    fi
    widen
    local bytes memory_mib
    bytes=$(wc -c <"$model" | tr -d ' ')
    memory_mib=$((bytes / 2 / 1048576))
    title "A model of $((bytes / 1048576)) MiB in $memory_mib MiB of memory"
    show "$bin/hypura" inspect "$model" --memory "${memory_mib}MiB"
    title "Its answer"
    show "$bin/hypura" run "$model" --memory "${memory_mib}MiB" \
        --seed $SEED --temperature 0.6 --max-tokens $TOKENS_MAX --raw -p "$PROMPT"
}

widen() {
    local from
    from="$(cksum <"$TRAINED") $(cksum <"$0") times $TIMES"
    if [ -f "$model" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$from" ]; then
        return
    fi
    mkdir -p "$cache"
    title "Making the demo's model, once ($model)"
    rm -f "$stamp"
    # It looks at the free disk first, and the file appears whole or not at all.
    show "$bin/hypura-synth" widen "$TRAINED" "$model" --times $TIMES
    echo "$from" >"$stamp"
}

title() {
    printf '\n== %s\n' "$*" >&2
}

# Prints a command, as it could be typed, and runs it.
show() {
    printf '$' >&2
    local word
    for word in "$@"; do
        case $word in
            *[!A-Za-z0-9_./=-]*) printf " '%s'" "$word" >&2 ;;
            *) printf ' %s' "$word" >&2 ;;
        esac
    done
    printf '\n' >&2
    "$@"
}

main "$@"
