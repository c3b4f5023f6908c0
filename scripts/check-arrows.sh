#!/bin/bash
# Checks what ARCHITECTURE.md promises about who may know whom: dependencies go down only, some
# crates never reach some others, and `unsafe` stays where it is allowed.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PATH:${CARGO_HOME:-$HOME/.cargo}/bin"

# Top to bottom: a crate may use those to its right only. `testkit` stands outside: it may use all,
# and the others may use it in their tests only.
readonly ORDER="cli server engine llama plan kv hub chat grammar tier profile io gguf"
# Crates with `unsafe`; all others forbid it.
readonly UNSAFE="llama io"

failures=0
fail() {
    echo "arrows: $*" >&2
    failures=$((failures + 1))
}

main() {
    local crate
    check_order
    # The policies are pure: no inference library, no network, no runtime.
    for crate in chat plan tier kv grammar; do
        check_never_reaches "$crate" llama-cpp-sys-2 hypura-llama axum tokio
    done
    # Models are found and fetched without either, and with no TLS that is built from C by cmake.
    check_never_reaches hub llama-cpp-sys-2 hypura-llama axum tokio openssl-sys aws-lc-sys
    check_never_reaches engine axum hyper
    check_only_user llama-cpp-sys-2 llama
    check_only_user axum server
    check_unsafe
    [ $failures -eq 0 ] || exit 1
    echo "arrows: ok" >&2
}

# `cargo tree` of all targets; $1 is the kinds of edges, the rest are further arguments.
tree() {
    cargo tree --quiet --target all --format '{p}' -e "$@"
}

# "USER USED" for each direct dependency of each crate of the workspace.
edges() {
    tree "$1" --workspace --depth 1 --no-dedupe --prefix depth |
        awk '/^0/ { user = substr($1, 2) } /^1/ { print user, substr($1, 2) }'
}

# Place of package $1 in ORDER, from 1; nothing if it is not there. The package of `cli` is `hypura`.
rank() {
    local i=0 name package
    for name in $ORDER; do
        i=$((i + 1))
        package=hypura-$name
        [ "$name" != cli ] || package=hypura
        if [ "$package" = "$1" ]; then
            echo $i
        fi
    done
}

check_order() {
    local user used user_rank used_rank list
    while read -r user _; do
        [ "$user" = hypura-testkit ] || [ -n "$(rank "$user")" ] ||
            fail "$user has no place in the order of scripts/check-arrows.sh"
    done < <(tree normal --workspace --depth 0 --prefix none | awk 'NF')
    list=$(edges normal,build)
    while read -r user used; do
        [ "$user" != hypura-testkit ] || continue
        if [ "$used" = hypura-testkit ]; then
            fail "$user uses hypura-testkit outside its tests"
            continue
        fi
        user_rank=$(rank "$user")
        used_rank=$(rank "$used")
        # A package of somebody else's has no rank.
        [ "${used_rank:-99}" -gt "${user_rank:-0}" ] || fail "$user must not use $used: arrows go down only"
    done <<<"$list"
}

# Crate $1 reaches none of the packages that follow, over any path that ships.
check_never_reaches() {
    local crate=$1 reached name
    shift
    reached=$(tree normal,build -p "hypura-$crate" --prefix none | awk '{ print $1 }')
    for name in "$@"; do
        if grep -qx "$name" <<<"$reached"; then
            fail "hypura-$crate reaches $name: cargo tree -p hypura-$crate -i $name"
        fi
    done
}

# Package $1 is used directly by crate $2 alone.
check_only_user() {
    local user used list
    list=$(edges normal,build,dev)
    while read -r user used; do
        if [ "$used" = "$1" ] && [ "$user" != "hypura-$2" ]; then
            fail "$user uses $1, which is for hypura-$2 alone"
        fi
    done <<<"$list"
}

# Each crate root but those of UNSAFE has the attribute by which the compiler itself checks it.
check_unsafe() {
    local root crate
    for root in crates/*/src/lib.rs crates/*/src/main.rs crates/*/src/bin/*.rs; do
        # No such file (an unmatched pattern), or nothing in it yet.
        grep -q '[^[:space:]]' "$root" 2>/dev/null || continue
        crate=${root#crates/}
        crate=${crate%%/*}
        case " $UNSAFE " in *" $crate "*) continue ;; esac
        grep -qx '#!\[forbid(unsafe_code)\]' "$root" || fail "$root lacks #![forbid(unsafe_code)]"
    done
}

main "$@"
