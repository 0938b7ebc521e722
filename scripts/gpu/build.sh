#!/usr/bin/env bash
# The programs of a GPU machine, in bin/: `head` (times), `parity` (tests), `align` (the example).
#
#   scripts/gpu/build.sh          for CUDA; neither CUDA, a GPU nor LLVM need be here
#   scripts/gpu/build.sh wgpu     for WGSL and not optimised, to try them on a software device
#
# About 15 minutes and 3 GB of target on two cores. Copy scripts/gpu/ to a machine without network
# and call run.sh there.
set -euo pipefail
cd "$(dirname "$0")"
feature=${1:-cuda}
case $feature in
    cuda) profile=release folder=release ;;
    wgpu) profile=dev folder=debug ;;
    *) echo "$0 [cuda | wgpu]" >&2; exit 2 ;;
esac
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$PWD/target}
# The toolkit that the programs are for; NVRTC and the driver are loaded when they run.
export CUDARC_CUDA_VERSION=${CUDARC_CUDA_VERSION:-13000}
# CubeCL downloads and links LLVM for its PTX compiler, which CUDA C++ does not use.
export DOCS_RS=1
# The versions that the crate is tested with.
cp ../../Cargo.lock Cargo.lock

build() {
    # Cargo builds the programs of a package for its tests.
    cargo test --profile "$profile" --no-default-features --features "$feature" --test parity --no-run
}

# A function that aborts in the place of every function of LLVM that the linker misses.
stub() {
    local missing=$CARGO_TARGET_DIR/missing
    grep -oE 'undefined symbol: \w+' "$1" | awk '{ print $3 }' | sort -u >"$missing"
    if grep -vE '^(LLVM|cubecl_)' "$missing"; then
        echo 'these are missing, and not of LLVM' >&2
        exit 1
    fi
    [ -s "$missing" ] || exit 1
    {
        printf '#include <stdio.h>\n#include <stdlib.h>\n'
        printf '#define STUB(name) void name(void) { fputs("no LLVM: " #name "\\n", stderr); abort(); }\n'
        sed 's/.*/STUB(&)/' "$missing"
    } >"$CARGO_TARGET_DIR/stubs.c"
    export STUBS=$CARGO_TARGET_DIR/stubs.o
    cc -c -O1 "$CARGO_TARGET_DIR/stubs.c" -o "$STUBS"
    echo "stubs for $(wc -l <"$missing") functions of LLVM"
}

log=$(mktemp)
if ! build 2>&1 | tee "$log"; then
    stub "$log"
    build
fi
mkdir -p bin
cp "$CARGO_TARGET_DIR/$folder"/{head,align} bin/
cp "$(ls -t "$CARGO_TARGET_DIR/$folder"/deps/parity-* | grep -v '\.d$' | head -1)" bin/parity
ls -l bin
