#!/bin/bash
# Checks the files themselves: their length, and that nothing of one machine is in them.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly LINES_MAX=600
# Rust files that may be longer, one per line: PATH: REASON.
readonly LONG_FILES="
"

failures=0
fail() {
    echo "tree: $*" >&2
    failures=$((failures + 1))
}

main() {
    [ -n "$(files '*.rs')" ] || fail "git lists no Rust files here"
    check_lengths
    check_paths
    check_sources
    check_scripts
    [ $failures -eq 0 ] || exit 1
    echo "tree: ok" >&2
}

# The files of the repository, those not yet added included; patterns of git may follow.
files() {
    local file
    git ls-files --cached --others --exclude-standard -- "$@" | sort -u | while IFS= read -r file; do
        # Listed and removed, but not yet committed so.
        [ ! -f "$file" ] || printf '%s\n' "$file"
    done
}

check_lengths() {
    local file lines entry
    while IFS= read -r file; do
        lines=$(wc -l <"$file" | tr -d ' ')
        entry=$(grep -F "$file: " <<<"$LONG_FILES" || true)
        if [ "$lines" -gt $LINES_MAX ] && [ -z "$entry" ]; then
            fail "$file has $lines lines, more than $LINES_MAX; split it by noun, or name the reason in $0"
        elif [ "$lines" -le $LINES_MAX ] && [ -n "$entry" ]; then
            fail "$file is listed in $0 as long, and is not any more"
        fi
    done < <(files '*.rs')
}

# Absolute paths of one person's machine mean nothing on another. Temporary folders are the
# business of programs, not of documents.
check_paths() {
    local everywhere='(^|[^A-Za-z0-9_.~/-])/(work|root|Users/[a-z]+|home/[a-z]+)/'
    local documents='(^|[^A-Za-z0-9_.~/-])/tmp(/|[^A-Za-z0-9_-]|$)'
    report "names a path of one machine" "$everywhere" < <(files ':!*.gguf' ':!scripts/check-tree.sh')
    report "names a temporary folder" "$documents" < <(files '*.md')
}

# Crates come from crates.io; a mirror is configured outside of the repository.
check_sources() {
    local ours='^source = "registry\+https://github\.com/rust-lang/crates\.io-index"$'
    if grep -E '^source = ' Cargo.lock | grep -qvE "$ours"; then
        fail "Cargo.lock has a source other than crates.io"
    fi
    report "configures a registry, mirror or proxy" '^ *\[(source|registries|registry|http)\b' \
        < <(files '.cargo/*' '*.toml')
    report "asks for a registry by name" '(^|[ ,{])registry(-index)? *= *"' < <(files '*Cargo.toml')
}

check_scripts() {
    local file
    while IFS= read -r file; do
        [ -x "$file" ] || fail "$file is not executable"
    done < <(files 'scripts/*.sh' '.ci/run')
}

# Fails for each line of the files named on stdin that matches $2; $1 says what is wrong with it.
report() {
    local file hit
    while IFS= read -r file; do
        while IFS= read -r hit; do
            fail "$file:${hit%%:*} $1: ${hit#*:}"
        done < <(grep -nIE "$2" "$file")
    done
}

main "$@"
