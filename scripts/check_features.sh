#!/usr/bin/env bash
# Type-checks the features whose hardware is not at hand: scripts/check_features.sh [FEATURE...]
# About 3 minutes each. `metal` wants a Mac; `cpu` downloads LLVM while it builds.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- cuda rocm vulkan
for feature in "$@"; do
    echo "--- $feature"
    # The library alone: tests and examples bring Flex along.
    cargo check --lib --features "$feature"
done
