#!/usr/bin/env bash
# Several processes by MPI: sums, whole steps and runs of `finetune` in two and three of them, and what
# is seen when one of them breaks. With the word `time` only how long sums take.
# Installs Open MPI and libclang where they are missing. Our code is built once more, with the feature `mpi`; Burn is not.
set -euo pipefail
cd "$(dirname "$0")/.."
if ! command -v mpirun >/dev/null || ! command -v mpicc >/dev/null || ! command -v clang >/dev/null; then
    apt-get update -qq
    apt-get install -qq --no-install-recommends clang libclang-dev libopenmpi-dev openmpi-bin >/dev/null
fi
# `mpirun` asks whether root means it.
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
features=burn-preference/mpi,finetune/mpi
if [ "${1:-}" != time ]; then
    cargo clippy --quiet --workspace --lib --bins --test mpi --test ranks --features $features -- -D warnings
    cargo test --quiet --workspace --features $features --doc training::mpi
fi
program=$(cargo test --workspace --features $features --test mpi --no-run --message-format json |
    grep -o '"executable":"[^"]*/deps/mpi-[^"]*"' | cut -d '"' -f 4)

run() { timeout 120 mpirun --oversubscribe -n "$@"; }

if [ "${1:-}" = time ]; then
    for ranks in 1 2 3; do
        echo "--- $ranks"
        run $ranks "$program" time
    done
    exit
fi

is_right() {
    for ranks in 2 3; do
        run $ranks "$program" | sort | tee target/mpi.txt
        [ "$(grep -c ': right$' target/mpi.txt)" = $ranks ]
    done
}

# breaks HOW RANKS WHAT: the run ends in time, badly, with these words.
breaks() {
    local start=$SECONDS
    if run "$2" "$program" "$1" >target/mpi.txt 2>&1; then
        echo "$1: the run went on"
        exit 1
    fi
    grep -Eq "$3" target/mpi.txt || { cat target/mpi.txt; exit 1; }
    [ $((SECONDS - start)) -lt 20 ] || { echo "$1: ended after $((SECONDS - start)) s"; exit 1; }
    echo "$1 of $2: $(grep -Em 1 -o "($3).*" target/mpi.txt)"
}
breaks_in_every_way() {
    for ranks in 2 3; do
        last=$((ranks - 1))
        breaks absent $ranks "$last of $ranks workers came within 2s, without rank $last"
        breaks killed $ranks "process rank $last with PID .* exited on signal 9|workers came within 2s, without rank $last"
        breaks other $ranks "worker $last: it sums 2 numbers of 32 bits where worker 0 sums 1 numbers of 32 bits"
    done
}
is_right
breaks_in_every_way

# The same on simulated machines with a network between them, where this one lets us make them.
if [ -w /dev/net/tun ] && hash ip nsenter python3 && unshare --net --uts --pid --fork --mount-proc true; then
    run() { timeout 120 scripts/cluster.py --mbit 1000 --delay-ms 0.1 --machines "$@"; }
    is_right
    breaks_in_every_way
    # Open MPI 4.1 itself waits for a machine that is gone: what ends the run stands outside.
    timeout 20 scripts/cluster.py --cut 1 --machines 3 "$program" cut >target/mpi.txt 2>&1 || true
    for rank in 0 1; do
        grep -m 1 "^rank $rank after [23] s: 2 of 3 workers came within 2s, without rank 2" target/mpi.txt
    done
else
    echo "left out: simulated machines (they want root, /dev/net/tun, ip, nsenter and unshare)"
fi

# `finetune` as a user starts it.
cargo test --quiet --workspace --features $features --test ranks -- --test-threads 1
