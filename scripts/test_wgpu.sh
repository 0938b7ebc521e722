#!/usr/bin/env bash
# The parity suite on wgpu: WGSL on whichever adapter there is, a GPU or Mesa's lavapipe
# (apt-get install --no-install-recommends mesa-vulkan-drivers libvulkan1).
#
# Building takes about 10 minutes and 6 GB of target. `scripts/test_wgpu.sh fused` turns on what
# Burn's default features add, fusion and autotuning: for a GPU, a software device takes hours.
set -euo pipefail
cd "$(dirname "$0")/.."
features=wgpu
[ "${1:-}" != fused ] || features=wgpu,burn/fusion,burn/autotune
export BURN_PREFERENCE_DEVICE=wgpu
# One after another: tests of one device only wait for each other.
cargo test --features "$features" --test parity --no-fail-fast -- --test-threads=1
