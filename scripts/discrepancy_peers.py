#!/usr/bin/env python3
"""The divergence of two models: ours and the Python peers on the same shapes, in the same session,
on CPU: one table.

    python3 -m venv peers && peers/bin/pip install torch==2.15.0 numpy trl==1.16.0
    peers/bin/pip install --no-deps liger-kernel==0.8.5
    cargo bench --workspace --bench head_floor --no-run
    peers/bin/python scripts/discrepancy_peers.py   # --shape s1 --beta 0.5 for a part of it

Forward and backward with the gradients of the policy's hidden states and head; ours run before and
after the peers. The table holds medians of seconds, and of ours / theirs. β = 0 is KL(π° ‖ π), β = 1
KL(π ‖ π°). Liger's is a mean over the tokens; the cross-entropy beside it has weight 0 and is left out.
"""
import argparse
import gc
import statistics
import subprocess
import time

import torch
import torch.nn.functional as F

SHAPES = {"s1": (2, 512, 576, 49152), "s2": (4, 512, 1024, 128256)}
OURS = {0.0: "forward-kl", 0.5: "jensen-shannon", 1.0: "reverse-kl"}


def inputs(shape):
    batch, length, width, vocab = SHAPES[shape]
    torch.manual_seed(0)
    rows = batch * (length - 1)  # the last position of a sequence predicts nothing
    head = lambda: torch.randn(vocab, width) / width**0.5
    return {
        "hidden": torch.randn(rows, width).requires_grad_(),
        "weight": head().requires_grad_(),
        "their_hidden": torch.randn(rows, width),
        "their_weight": head(),
        "target": torch.randint(0, vocab, (rows,)),
    }


def eager(d, beta):
    ours = (d["hidden"] @ d["weight"].t()).log_softmax(-1)
    with torch.no_grad():
        theirs = (d["their_hidden"] @ d["their_weight"].t()).log_softmax(-1)
    if beta == 0:
        return F.kl_div(ours, theirs, reduction="sum", log_target=True)
    if beta == 1:
        return F.kl_div(theirs, ours, reduction="sum", log_target=True)
    b = torch.tensor(beta)
    mixed = torch.logaddexp(ours + (1 - b).log(), theirs + b.log())
    terms = [F.kl_div(mixed, x, reduction="sum", log_target=True) for x in (theirs, ours)]
    return beta * terms[0] + (1 - beta) * terms[1]


def trl(d, beta):
    from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

    args = (d["hidden"], d["weight"], None, d["their_hidden"], d["their_weight"], None, beta)
    return ChunkedDivergenceFunction.apply(*args)[0].sum()


def liger(d, beta):
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    loss = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=beta, compiled=False
    )
    args = (d["hidden"], d["weight"], d["their_hidden"], d["their_weight"], d["target"])
    return loss(*args)


PEERS = [eager, trl, liger]


def ours(shape, beta, args):
    command = ["cargo", "bench", "--quiet", "--workspace", "--bench", "head_floor", "--", "--csv"]
    command += ["--threads", str(args.threads), "--shape", shape, "--rounds", str(args.rounds)]
    command += ["--only", OURS[beta]]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(lines.split()[0].split(",")[7])


def measured(shape, beta, args):
    """Seconds of every peer, and ours before and after them."""
    chosen, times = [peer for peer in PEERS if peer.__name__ in (args.peer or peer.__name__)], {}
    runs = [ours(shape, beta, args)]
    d = inputs(shape)
    for number in range(args.rounds + 1):
        for peer in list(chosen):
            start = time.perf_counter()
            try:
                peer(d, beta).backward()
            except Exception as error:  # A peer that cannot run is reported, not hidden.
                print(f"{peer.__name__}: {error!r}"[:200])
                chosen.remove(peer)
                continue
            seconds = time.perf_counter() - start
            d["hidden"].grad = d["weight"].grad = None
            gc.collect()
            if number > 0:  # The first round warms up.
                times.setdefault(peer.__name__, []).append(seconds)
    del d
    gc.collect()
    runs.append(ours(shape, beta, args))
    return {name: statistics.median(all) for name, all in times.items()}, runs


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--shape", choices=SHAPES, action="append")
    parser.add_argument("--beta", type=float, choices=OURS, action="append")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer", choices=[peer.__name__ for peer in PEERS], action="append")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    print(f"{args.threads} threads, {args.rounds} rounds; seconds, and ours / theirs\n")
    names = [peer.__name__ for peer in PEERS]
    print("| shape, β | ours, before and after | " + " | ".join(names) + " |")
    print("|---|---|" + "---|" * len(names))
    for shape in args.shape or SHAPES:
        for beta in args.beta or OURS:
            theirs, runs = measured(shape, beta, args)
            cells = [", ".join(f"{seconds:.2f} s" for seconds in runs)]
            for name in names:
                if name not in theirs:
                    cells.append("did not run")
                    continue
                ratio = statistics.mean(runs) / theirs[name]
                cells.append(f"{theirs[name]:.2f} s: {ratio:.2f}")
            print(f"| {shape}, {beta} | " + " | ".join(cells) + " |", flush=True)


main()
