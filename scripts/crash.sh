#!/usr/bin/env bash
# Runs of `finetune` that are killed, or whose disk fails, at their calls that change a file, and go on;
# and the order of the calls that a loss of power asks for. With the word `all` at every one of them, which
# takes minutes; without it, where something gets its name, and at every 29th. Installs strace where it is missing.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v strace >/dev/null; then
    apt-get update -qq
    apt-get install -qq --no-install-recommends strace >/dev/null
fi
# A container may forbid to trace.
if ! strace -qq -o /dev/null true 2>/dev/null; then
    echo 'skipped: strace may not trace here'
    exit
fi
if [ "${1:-}" = all ]; then
    export BURN_PREFERENCE_CRASH=all
fi
cargo test --quiet --workspace --test crash -- --ignored --nocapture --test-threads 1
