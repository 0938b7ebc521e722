#!/usr/bin/env bash
# Seconds a step of `finetune` on 1, 2, 4 and 8 simulated machines of a fifth of a core each, joined at 100 Mbit/s:
# scripts/cluster_table.sh PROGRAM MODEL PAIRS STEPS [OPTIONS OF FINETUNE]; PROGRAM has the feature `mpi`. Wants root.
set -euo pipefail
program=$(realpath "$1") model=$(realpath "$2") pairs=$(realpath "$3") steps=$4
cluster=$(realpath "$(dirname "$0")/cluster.py")
shift 4
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cd "$folder"
usual=(--model "$model" --data "$pairs" --max-length 64 --batch 8 --budget 128 --workers 1 --steps "$steps"
    --held-out 0 --answers 0 --no-check --cache cache "$@")
export RAYON_NUM_THREADS=1
# The reference is computed once.
"$program" "${usual[@]}" --out cache-only >/dev/null
for machines in 1 2 4 8; do
    "$cluster" --machines "$machines" --mbit 100 --delay-ms 0.1 --cores 0.2 "$program" "${usual[@]}" --out out >log
    awk -v n="$machines" '/ s an example/ { printf "%d machines: %.1f s a step; %s MiB\n", n, 8 * $1, int($(NF - 1) / 1024) }' log
    rm -rf out out.run
done
