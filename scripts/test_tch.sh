#!/usr/bin/env bash
# The tests on LibTorch's CPU: scripts/test_tch.sh [FOLDER FOR LIBTORCH]
#
# Burn 0.22.1 wants torch 2.9.0, which PyPI has (0.9 GB); building tch takes about 7 minutes. The
# wheel is the one for CUDA, of which only the CPU's libraries are unpacked: they load two of
# CUDA's small ones all the same.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath -m "${1:-target/libtorch}")

if [ ! -e "$folder/torch/lib/libtorch.so" ]; then
    python3 -m pip download --no-deps --dest "$folder/wheels" --only-binary=:all: \
        --python-version 3.11 --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 \
        torch==2.9.0 nvidia-cuda-runtime-cu12==12.8.90 nvidia-cuda-cupti-cu12==12.8.90
    unpack() { # WHEEL PATTERN...
        python3 - "$folder" "$@" <<'PYTHON'
import fnmatch, glob, sys, zipfile
folder, wheel, *patterns = sys.argv[1:]
archive = zipfile.ZipFile(glob.glob(f"{folder}/wheels/{wheel}-*.whl")[0])
for name in archive.namelist():
    if any(fnmatch.fnmatch(name, pattern) for pattern in patterns):
        archive.extract(name, folder)
PYTHON
    }
    unpack torch 'torch/include/*' 'torch/lib/libtorch_cpu.so' 'torch/lib/libc10.so' \
        'torch/lib/libgomp*' 'torch/lib/libshm*'
    unpack nvidia_cuda_runtime_cu12 '*/libcudart.so.12'
    unpack nvidia_cuda_cupti_cu12 '*/libcupti.so.12'
    cp "$folder"/nvidia/*/lib/lib*.so.12 "$folder/torch/lib/"
    # What tch links to; the wheel's own needs all of CUDA.
    cc -shared -o "$folder/torch/lib/libtorch.so" -Wl,--no-as-needed -L"$folder/torch/lib" \
        -ltorch_cpu -lc10 -Wl,--allow-shlib-undefined
fi

export LIBTORCH=$folder/torch LIBTORCH_BYPASS_VERSION_CHECK=1 LD_LIBRARY_PATH=$folder/torch/lib
export BURN_PREFERENCE_DEVICE=tch
cargo test --features tch --test parity --test suite --no-fail-fast
