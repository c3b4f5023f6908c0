#!/bin/bash
# Measures what attention state beside the context costs and brings, on one model:
#
#   scripts/bench-kv.sh MODEL [TOKENS] [OPTIONS OF hypura run]
#
# A conversation of about TOKENS tokens (4096) and an answer of 137; a follow-up after a restart with
# a cold page cache; another one from the hot tier; the resident size of the idle chat with and
# without --hot-cache; and the first query with and without tiers, in turn. Needs root to drop the
# page cache; without it the follow-up reads past the cache all the same, and says so.
set -euo pipefail
cd "$(dirname "$0")/.."
model=$1 tokens=${2:-4096}
shift $(($# < 2 ? $# : 2))
hypura=${HYPURA:-target/release/hypura}
home=$(mktemp -d "${TMPDIR:-/var/tmp}/hypura-bench.XXXXXX")
trap 'rm -rf "$home"' EXIT
export HYPURA_HOME=$home
ctx=$(((tokens + 137 + 256 + 255) / 256 * 256))
common=(-t 0 --ignore-eos --ctx "$ctx" -q "$@")

words() { # N words, the same every time
    awk -v n="$1" -v seed="$2" 'BEGIN { srand(seed); split("the sea was calm and a small boat went out to find what nobody had seen before", w, " ");
        for (i = 0; i < n; i++) printf "%s ", w[int(rand() * 16) + 1] }'
}
field() { sed -nE "s/^  \"$2\": ([0-9.]+|true|false|\"[^\"]*\"),?$/\1/p" "$1"; }
show() { # FILE NAME...
    local file=$1 name
    shift
    for name in "$@"; do printf '  %-26s %s\n' "$name" "$(field "$file" "$name")"; done
}
run() { # STATS ARGS...
    local stats=$1
    shift
    "$hypura" run "$model" "${common[@]}" --stats-json "$home/$stats" "$@" >>"$home/text"
}
drop() { sync; { echo 3 >/proc/sys/vm/drop_caches; } 2>/dev/null || echo "  (the page cache stays)"; }

# How many words make so many tokens.
run probe.json --session probe -n 1 -p "$(words 100 1)"
per=$(field "$home/probe.json" prompt_tokens)
n=$((tokens * 100 / per))

echo "== first query, with tiers and without, in turn"
for round in 1 2 3; do
    for kv in on off; do
        rm -rf "$home/cache/kv"
        run first.json --kv-cache $kv -n 32 -p "$(words $((n / 16)) $round)"
        printf '  %-3s prompt %8.2f tokens/s, answer %7.2f tokens/s\n' $kv \
            "$(field "$home/first.json" prompt_tokens_per_s)" "$(field "$home/first.json" decode_tokens_per_s)"
    done
done

echo "== the conversation"
rm -rf "$home/cache/kv"
run one.json --session talk -n 137 -p "$(words "$n" 2)"
show "$home/one.json" mode load_ms prompt_tokens prompt_tokens_per_s ttft_ms decode_tokens_per_s \
    kv_export_ms kv_written_bytes kv_unwritten_blocks peak_rss_bytes budget_bytes

echo "== follow-up after a restart"
drop
run two.json --session talk -n 8 -p "$(words 8 3)"
show "$home/two.json" load_ms prompt_tokens kv_tokens_reused kv_cold_tokens kv_restore_ms kv_read_bytes \
    kv_restore_bytes_per_s prompt_ms ttft_ms
echo "== the drive, by the same reads: pieces of a model file"
"$hypura" iobench "$model" 2>&1 | sed 's/^/  /' | tail -n 12
echo "== memory copy"
"$hypura" profile "$model" 2>&1 | grep -i cop | sed 's/^/  /'

echo "== follow-up from the hot tier: another conversation in between, in one process"
{ echo '/load talk'; echo "$(words 8 4)"; echo '/fork side'; echo '/system x'; echo 'hello'; echo '/load talk'; echo "$(words 8 5)"; } |
    run hot.json -i -n 4 --hot-cache $((tokens * 2)) --always-restore
show "$home/hot.json" kv_hot_tokens kv_cold_tokens kv_restore_ms kv_restore_bytes_per_s prompt_ms ttft_ms

echo "== resident size of the idle chat, 10 s after an answer"
for hot in "" 1024; do
    mkfifo "$home/in"
    rm -f "$home/idle.json"
    "$hypura" run "$model" "${common[@]}" --session talk -i -n 4 --stats-json "$home/idle.json" \
        ${hot:+--hot-cache $hot} <"$home/in" >>"$home/text" 2>&1 &
    pid=$!
    exec 3>"$home/in"
    echo "go on" >&3
    while [ ! -s "$home/idle.json" ]; do sleep 0.5; done
    sleep 10
    printf '  %-22s %s\n' "${hot:+--hot-cache }${hot:-without}" "$(grep VmRSS /proc/$pid/status)"
    exec 3>&-
    wait $pid
    rm "$home/in"
done
