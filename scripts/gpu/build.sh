#!/usr/bin/env bash
# The programs of a GPU machine, in bin/cuda/: `head` (times), `parity` (tests), `align` (the example).
#
#   scripts/gpu/build.sh          for CUDA; neither CUDA, a GPU nor LLVM need be here
#   scripts/gpu/build.sh wgpu     for WGSL and not optimised, to try them on a software device
#
# Half an hour of processor time, 2 GB of target. A machine without network needs run.sh, table.py
# and bin/, or bin.tar.xz in its place.
set -euo pipefail
cd "$(dirname "$0")"
feature=${1:-cuda}
case $feature in
    cuda) profile=release folder=release ;;
    wgpu) profile=dev folder=debug ;;
    *) echo "$0 [cuda | wgpu]" >&2; exit 2 ;;
esac
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
mkdir -p "$CARGO_TARGET_DIR"
# The toolkit that the programs are for; NVRTC and the driver are loaded when they run.
export CUDARC_CUDA_VERSION=${CUDARC_CUDA_VERSION:-13000}
# CubeCL downloads and links LLVM for its PTX compiler, which CUDA C++ does not use.
export DOCS_RS=1
# The versions that the crate is tested with.
cp ../../Cargo.lock Cargo.lock

build() {
    cargo "$1" --profile "$profile" --no-default-features --features "$feature" "${@:2}"
}

# Functions that abort in the place of those of LLVM, which only the linker asks for.
if ! build build --bin head 2>&1 | tee "$CARGO_TARGET_DIR/log"; then
    missing=$(grep -oP 'undefined symbol: \K\w+' "$CARGO_TARGET_DIR/log" | sort -u)
    if [ -z "$missing" ] || grep -vE '^(LLVM|cubecl_)' <<<"$missing"; then
        echo 'this is not about LLVM' >&2
        exit 1
    fi
    {
        printf '#include <stdio.h>\n#include <stdlib.h>\n'
        printf '#define STUB(name) void name(void) { fputs("no LLVM: " #name "\\n", stderr); abort(); }\n'
        sed 's/.*/STUB(&)/' <<<"$missing"
    } >"$CARGO_TARGET_DIR/stubs.c"
    export STUBS=$CARGO_TARGET_DIR/stubs.o
    cc -c -O1 "$CARGO_TARGET_DIR/stubs.c" -o "$STUBS"
    echo "stubs for $(wc -l <<<"$missing") functions of LLVM"
fi
# The other programs come with the test.
build test --test parity --no-run
bin=bin/$feature
mkdir -p "$bin"
cp "$CARGO_TARGET_DIR/$folder"/{head,align} "$bin"
cp "$(ls -t "$CARGO_TARGET_DIR/$folder"/deps/parity-* | grep -v '\.d$' | head -1)" "$bin/parity"
tar -cJf bin.tar.xz "$bin"
ls -l "$bin" bin.tar.xz
