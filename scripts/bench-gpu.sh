#!/bin/bash
# Measures a model over the sizes of its tiers with a GPU: docs/performance.md, "A GPU".
#
#   scripts/bench-gpu.sh [GPU [FOLDER]]       GPU: CUDA0, or CPU to try the script; models go to FOLDER
#
# Needs a build that knows the GPU (README, "GPUs"), python3, and some 23 GB in FOLDER.
# BIN: where hypura-synth and tiers are, if not where cargo puts them. LINES_FILE: where results go.
set -euo pipefail
cd "$(dirname "$0")/.."

gpu=${1:-CUDA0}
folder=${2:-target/tmp/bench-gpu}
lines=${LINES_FILE:-$folder/tiers.jsonl}
demo=models/demo-moe-54m-q4_k_m.gguf
mkdir -p "$folder"
: > "$lines"

if [ -n "${BIN:-}" ]; then
    synth=$BIN/hypura-synth tiers=$BIN/tiers
else
    cargo build --release --workspace --examples --bins ${FEATURES:+--features "hypura/$FEATURES"}
    synth=target/release/hypura-synth tiers=target/release/examples/tiers
fi

# Runs cases of a model; a case that fails is a line that says so.
run() {
    local model=$1
    shift
    printf '%s: %s\n' "$(date +%T)" "$*" >&2
    "$tiers" "$model" "$@" >> "$lines"
}

make_model() {
    local file=$1
    shift
    [ -e "$file" ] || { "$synth" "$@"; } >&2
}

x64=$folder/x64.gguf x256=$folder/x256.gguf dense=$folder/d8.gguf
make_model "$x64" widen "$demo" "$x64" --times 64 --requantize Q8_0
make_model "$x256" widen "$demo" "$x256" --times 256 --requantize Q8_0
make_model "$dense" dense "$dense"

"$tiers" speed "$gpu" >> "$lines"
plenty=memory=60000
prompts=prompts=512/1900,ubatch=2048
few=tokens=32,rounds=3,warm=1
many=rounds=9,warm=9
# What no prompt has needed before would be read from the drive in the middle of one: memory has room for
# all experts, and is filled with them first.
all_read=history=$folder/history,settle=6
run "$x64" "gpu=$gpu,baseline=read,$prompts,$many,name=all"
for slots in 31 24 16 8; do
    rm -rf "$folder/history"
    run "$x64" "gpu=$gpu,slots=$slots,$plenty,$prompts,$many,$all_read,name=slots-$slots"
done
rm -rf "$folder/history"
run "$x64" "gpu=$gpu,slots=8,$plenty,$prompts,$many,$all_read,profile=$folder/profile,assist=1,name=slots-8-cpu"
run "$x64" "gpu=$gpu,baseline=experts,$prompts,$few,name=experts-on-cpu"
run "$x64" "gpu=$gpu,baseline=read,$prompts,$many,name=all-again"
run "$dense" "gpu=$gpu,baseline=read,$prompts,$few,name=dense-all"
run "$dense" "gpu=$gpu,gpu-memory=3200,$plenty,$prompts,$few,name=dense-half"
run "$dense" "gpu=$gpu,baseline=read,layers=16,$prompts,$few,name=layers-16-of-dense"
run "$x256" "gpu=$gpu,slots=8,weights=6500,memory=30000,$few,name=drive"

python3 - "$lines" <<'PY'
import json, sys

texts = {}
for line in open(sys.argv[1]):
    d = json.loads(line)
    if "host_to_device" in d:
        copies = ", ".join(f"{n >> 10} KiB: {r / 1e9:.1f}" for n, r in d["host_to_device"])
        print(f"copies to the GPU, GB/s: {copies}; weights read there: {d['decode_bytes_per_s'] / 1e9:.0f}")
    elif "error" in d:
        print(f"{d['case']}: {d['error']}")
    else:
        ms, least, most = d["decode_ms"]
        prompts = ", ".join(
            f"{p['tokens']}: {p['ms'][0]:.1f} ms"
            + (f" (reading {p['read'] / 1e6:.0f} MB in all rounds)" if p["read"] else "")
            for p in d["prompts"]
        )
        text = texts.setdefault(d["name"].split("-")[0].replace("slots", "all"), (d["logits"], d["sampled"]))
        said = "the same text" if text == (d["logits"], d["sampled"]) else "another text"
        same = f", no misses {d['forced_ms'][0]:.3f}" if d["forced_ms"] else ""
        print(
            f"{d['name']:15} {ms:8.3f} ms per token ({least:.3f} to {most:.3f}){same}"
            f"; per token {d['copied_bytes_per_token'] / 1e6:.1f} MB copied, "
            f"{d['read_bytes_per_token'] / 1e6:.1f} MB read; prompts {prompts}; {said}"
        )
PY
