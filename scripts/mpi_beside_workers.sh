#!/usr/bin/env bash
# Seconds an example of `finetune`: one process with two workers, and two processes of one thread, in
# turn. scripts/mpi_beside_workers.sh PROGRAM MODEL PAIRS [ROUNDS]; PROGRAM has the feature `mpi`.
set -euo pipefail
program=$(realpath "$1") model=$(realpath "$2") pairs=$(realpath "$3") rounds=${4:-2}
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
# What runs at once has as many tokens in both: two workers share a budget.
usual=(--model "$model" --data "$pairs" --max-length 256 --batch 4 --steps 3 --held-out 0 --answers 0 --no-check --cache cache)
one() { RAYON_NUM_THREADS=2 "$program" "${usual[@]}" --budget 2048 --workers 2 --out "$1"; }
two() { RAYON_NUM_THREADS=1 mpirun --oversubscribe -n 2 "$program" "${usual[@]}" --budget 1024 --workers 1 --out "$1"; }
# The reference is computed once.
one cache-only >/dev/null
for round in $(seq "$rounds"); do
    for kind in one two; do
        echo "$kind: $($kind "$kind$round" | grep ' s an example')"
        rm -rf "$kind$round"*
    done
done
