#!/usr/bin/env bash
# The packaged crate, as a user gets it, with each feature alone and with none: an error or a warning
# of ours fails. Features of GPUs: scripts/check_features.sh. About 4 minutes on 2 cores.
set -euo pipefail
cd "$(dirname "$0")/.."
target=$PWD/target/package-check
cargo package --quiet --allow-dirty --no-verify --target-dir "$target"
alone=$(mktemp -d)
trap 'rm -rf "$alone"' EXIT
# Times of today: those of a package are all of 2006, and cargo would take changed files for old ones.
tar -xzmf "$target"/package/burn-preference-*.crate -C "$alone" --strip-components=1
for feature in '' data parquet cache optim train flex ndarray; do
    said=$(cargo check --manifest-path "$alone/Cargo.toml" --no-default-features --features "$feature" \
        --target-dir "$target" --message-format short 2>&1) || { printf '%s\n' "$said"; exit 1; }
    if grep -E '^(warning|error)|: (warning|error)' <<<"$said"; then
        echo "with the feature '$feature'"
        exit 1
    fi
    echo "${feature:-none}: ok"
done
