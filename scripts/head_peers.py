#!/usr/bin/env python3
"""Our head and the Python peers on the same shapes, in the same session, on CPU: one table.

    python3 -m venv peers && peers/bin/pip install torch==2.15.0 numpy trl==1.16.0
    peers/bin/pip install --no-deps liger-kernel==0.8.5 cut-cross-entropy==25.1.1
    cargo bench --workspace --bench head_floor --no-run
    peers/bin/python scripts/head_peers.py   # --shape s1 --mask full for a part of it

About 6 GB to download, and 8 GB of memory. Forward and backward of the log-prob head with both
gradients; ours run before and after the peers, and the table holds medians of seconds, and of ours
/ theirs. `products` are the three products alone, by torch.
"""
import argparse
import gc
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F

SHAPES = {"s1": (2, 512, 576, 49152), "s2": (4, 512, 1024, 128256)}
OURS = ["trained", "bounded"]


def inputs(shape, mask):
    batch, length, width, vocab = SHAPES[shape]
    torch.manual_seed(0)
    counted = torch.ones(batch, length, dtype=torch.bool)
    if mask == "real":
        counted[:, : length * 7 // 20] = False
        counted[:, length * 3 // 4 :] = False
    return {
        "hidden": torch.randn(batch, length, width).requires_grad_(),
        "weight": (torch.randn(vocab, width) / width**0.5).requires_grad_(),
        "target": torch.randint(0, vocab, (batch, length)),
        "counted": counted,
    }


def eager(d):
    log_probs = (d["hidden"] @ d["weight"].t()).log_softmax(-1)
    return log_probs.gather(-1, d["target"][..., None])[d["counted"]].sum()


def eager_compact(d):
    logits = d["hidden"][d["counted"]] @ d["weight"].t()
    return -F.cross_entropy(logits, d["target"][d["counted"]], reduction="sum")


def trl(d):
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as chunk

    names = ("log_probs", "entropy", "mean_logits", "is_top1")
    hidden = d["hidden"].flatten(0, 1)
    out = ChunkedLogProbFunction.apply(
        hidden, d["weight"], None, d["target"].flatten(), 1.0, chunk, None, 1.0, names
    )
    return out[0][d["counted"].flatten()].sum()


def ignored(d):
    return d["target"].masked_fill(~d["counted"], -100)


def liger(d):
    from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

    dpo = LigerFusedLinearDPOLoss(
        compiled=False, use_ref_model=False, compute_nll_loss=False, average_log_prob=False
    )
    return dpo(d["weight"], d["hidden"], ignored(d))[0]


def cut_cross_entropy(d):
    from cut_cross_entropy import linear_cross_entropy

    args = (d["hidden"], d["weight"], ignored(d))
    return -linear_cross_entropy(*args, reduction="sum", impl="torch_compile")


def torch_chunked(d):
    options = torch.nn.LinearCrossEntropyOptions()
    hidden, target = d["hidden"][d["counted"]], d["target"][d["counted"]]
    return -F.linear_cross_entropy(hidden, d["weight"], target, reduction="sum", options=options)


def products(d):
    """The three products alone, into buffers that stay: the floor by torch's own library."""
    with torch.no_grad():
        hidden, weight = d["hidden"][d["counted"]], d["weight"]
        if "buffers" not in d:
            d["buffers"] = hidden @ weight.t(), torch.empty_like(hidden), torch.empty_like(weight)
        logits, d_hidden, d_weight = d["buffers"]
        torch.mm(hidden, weight.t(), out=logits)
        torch.mm(logits, weight, out=d_hidden)
        torch.mm(logits.t(), hidden, out=d_weight)


PEERS = [products, eager, eager_compact, trl, liger, cut_cross_entropy, torch_chunked]


def ours(shape, mask, args):
    command = ["cargo", "bench", "--quiet", "--workspace", "--bench", "head_floor", "--", "--csv"]
    command += ["--threads", str(args.threads), "--shape", shape, "--mask", mask, "--rounds", str(args.rounds)]
    for name in OURS:
        command += ["--only", name]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [line.split(",") for line in lines.split()]
    return {row[6]: (float(row[7]), float(row[8])) for row in rows}


def measured(shape, mask, args):
    """Seconds of every peer, and our seconds and floors before and after them."""
    peers, times = [peer for peer in PEERS if peer.__name__ in (args.peer or peer.__name__)], {}
    runs = [ours(shape, mask, args)]
    d = inputs(shape, mask)
    for number in range(args.rounds + 1):
        for peer in list(peers):
            start = time.perf_counter()
            try:
                loss = peer(d)
                if loss is not None:
                    loss.backward()
            except Exception as error:  # A peer that cannot run is reported, not hidden.
                print(f"{peer.__name__}: {error!r}"[:200])
                peers.remove(peer)
                continue
            seconds = time.perf_counter() - start
            d["hidden"].grad = d["weight"].grad = None
            if number == args.rounds:
                d.pop("buffers", None)
            gc.collect()
            if number > 0:  # The first round compiles and warms up.
                times.setdefault(peer.__name__, []).append(seconds)
    del d
    gc.collect()
    runs.append(ours(shape, mask, args))
    return {name: statistics.median(all) for name, all in times.items()}, runs


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--mask", choices=["full", "real"], action="append")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", choices=[peer.__name__ for peer in PEERS], action="append")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    columns = {}
    for shape in args.shape or SHAPES:
        for mask in args.mask or ["full", "real"]:
            columns[f"{shape} {mask}"] = measured(shape, mask, args)

    def line(name, cells):
        print("| " + " | ".join([name, *cells]) + " |", flush=True)

    print(f"{args.threads} threads, {args.rounds} rounds; seconds (ours: before and after the "
          f"peers, x the products' floor), and ours / theirs: {', '.join(OURS)}\n")
    line("", columns)
    line("---", ["---"] * len(columns))
    for name in OURS:
        cells = [
            ", ".join(f"{run[name][0]:.2f} s ({run[name][0] / run[name][1]:.2f} x)" for run in runs)
            for _, runs in columns.values()
        ]
        line(f"ours, {name}", cells)
    for peer in PEERS:
        cells = []
        for theirs, runs in columns.values():
            if peer.__name__ not in theirs:
                cells.append("did not run")
                continue
            seconds = theirs[peer.__name__]
            ratios = [statistics.mean(run[name][0] for run in runs) / seconds for name in OURS]
            cells.append(f"{seconds:.2f} s: " + ", ".join(f"{ratio:.2f}" for ratio in ratios))
        line(peer.__name__, cells)


main()
