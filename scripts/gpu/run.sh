#!/usr/bin/env bash
# Everything that a GPU can tell: the parity suite on it, the head's times beside Burn's products
# and the Python peers in one table, and an example that trains on it.
#
#   scripts/gpu/run.sh            on CUDA
#   scripts/gpu/run.sh wgpu       tiny, on a software device: tries the scripts, measures nothing
#
# The programs of bin/ or bin.tar.xz are used as they are; where there are none, build.sh makes
# them. PYTHON is a Python with torch, liger-kernel and cut-cross-entropy (scripts/head_peers.py says
# how to install them); what it lacks is left out of the table.
set -euo pipefail
cd "$(dirname "$0")"
device=${1:-cuda}
case $device in
    cuda)
        shapes=(--shape 4096,2048,128256 --shape 2048,1024,128256 --dtype bf16 --dtype f32)
        if ! command -v nvidia-smi >/dev/null; then
            echo 'no NVIDIA driver here; "run.sh wgpu" tries the scripts on a software device' >&2
            exit 1
        fi
        nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
        ;;
    wgpu) shapes=(--shape 32,16,500 --dtype f32 --dtype f16 --rounds 2 --calls 1) ;;
    *) echo "$0 [cuda | wgpu]" >&2; exit 2 ;;
esac

bin=bin/$device
[ -x "$bin/head" ] || [ ! -e bin.tar.xz ] || tar -xf bin.tar.xz
[ -x "$bin/head" ] || ./build.sh "$device"

# NVRTC, and the headers it compiles with.
export CUDA_PATH=${CUDA_PATH:-/usr/local/cuda}
export LD_LIBRARY_PATH=$CUDA_PATH/lib64:${LD_LIBRARY_PATH:-}

echo '--- the parity suite'
# Times of wrong numbers are worth knowing too: the run goes on, and fails at its end.
status=0
BURN_PREFERENCE_DEVICE=$device "$bin/parity" --test-threads=1 || status=1

echo '--- times'
"${PYTHON:-python3}" table.py --head "$bin/head" "${shapes[@]}"

echo '--- the example align'
"$bin/align" --quick --svg "$(mktemp -d)/align.svg"
exit $status
