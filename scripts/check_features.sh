#!/usr/bin/env bash
# Type-checks the features whose hardware is not at hand: scripts/check_features.sh [FEATURE...]
# About 5 minutes each; `metal` wants a Mac.
set -euo pipefail
cd "$(dirname "$0")/.."
[ $# -gt 0 ] || set -- vulkan
# `cuda`, `rocm` and `cpu` would download LLVM, which only linking needs.
export DOCS_RS=1
for feature in "$@"; do
    echo "--- $feature"
    # The library alone: tests and examples bring Flex along.
    cargo check --lib --features "$feature"
done
