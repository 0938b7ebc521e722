#!/usr/bin/env bash
# The parity suite and the tests of the kernels on wgpu: WGSL on whichever adapter there is, a GPU or
# Mesa's lavapipe (apt-get install --no-install-recommends mesa-vulkan-drivers libvulkan1).
#
#   scripts/test_wgpu.sh                    with Burn's fusion, which its default features turn on
#   scripts/test_wgpu.sh plain              without
#   scripts/test_wgpu.sh finetune           the program `finetune` with --device wgpu, without fusion
#   scripts/test_wgpu.sh tuned              with autotuning too: a software device takes hours
#
# Building takes about 10 minutes and 6 GB of target.
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-fused}" in
    fused) features=wgpu,burn/fusion ;;
    plain) features=wgpu ;;
    tuned) features=wgpu,burn/fusion,burn/autotune ;;
    finetune)
        exec cargo test -p finetune --features wgpu --test program -- the_same_numbers_on_another_device ;;
    *) echo "$0 [fused | plain | finetune | tuned]" >&2; exit 2 ;;
esac
export BURN_PREFERENCE_DEVICE=wgpu
# One after another: tests of one device only wait for each other.
cargo test --features "$features" --test parity --no-fail-fast -- --test-threads=1
cargo test --features "$features" --lib cube -- --test-threads=1
