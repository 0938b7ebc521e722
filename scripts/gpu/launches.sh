#!/usr/bin/env bash
# Kernel launches a call, and bytes of logits that they read and write: the kernels of GPUs beside
# the generic steps, on whichever wgpu device there is, with and without Burn's fusion.
set -euo pipefail
cd "$(dirname "$0")/../.."
for features in wgpu wgpu,burn/fusion; do
    echo "--features $features"
    cargo test --quiet --features "$features" --lib -- --ignored --nocapture fewer_launches
done
