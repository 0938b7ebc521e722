#!/usr/bin/env python3
"""One table: the head, Burn's and torch's bare products, and the Python peers on the same device.

`run.sh` calls it. Ours runs before and after the peers, and the table has the mean of its two
medians. Without CUDA, torch runs on the CPU: a trial of the script, no measurement. Without torch
the table is ours alone.
"""
import argparse
import statistics
import subprocess
import time
from importlib.metadata import PackageNotFoundError, version

try:
    import torch
    import torch.nn.functional as F
except ModuleNotFoundError:
    torch = None

IGNORED = -100
PRODUCTS = {
    "reference": ["logits"],
    "frozen": ["logits", "d_hidden"],
    "trained": ["logits", "logits", "d_hidden", "d_weight"],
}


def ours(args, rows, hidden, vocab, dtype):
    """Seconds and bytes by name."""
    command = [args.head, "--dtype", dtype, "--rounds", str(args.rounds), "--calls", str(args.calls)]
    command += ["--rows", str(rows), "--hidden", str(hidden), "--vocab", str(vocab)]
    lines = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    fields = [line.split(",") for line in lines.split()]
    return {name: (float(seconds), int(size or 0)) for name, seconds, size in fields}


class Torch:
    """The same tensors in torch, and what is timed on them."""

    def __init__(self, args, rows, hidden, vocab, dtype):
        self.args = args
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        dtype = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}[dtype]
        to = {"device": self.device, "dtype": dtype}
        torch.manual_seed(0)
        self.hidden = torch.randn(rows, hidden, **to)
        self.weight = torch.randn(vocab, hidden, **to) / hidden**0.5
        self.delta = torch.randn(rows, vocab, **to) / vocab
        self.target = torch.randint(0, vocab, (rows,), device=self.device)

    def wait(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def products(self):
        return {
            "logits": lambda: torch.mm(self.hidden, self.weight.t()),
            "d_hidden": lambda: torch.mm(self.delta, self.weight),
            "d_weight": lambda: torch.mm(self.delta.t(), self.hidden),
        }

    def eager(self):
        return F.cross_entropy((self.hidden @ self.weight.t()).float(), self.target, reduction="sum")

    def cut_cross_entropy(self):
        from cut_cross_entropy import linear_cross_entropy

        impl = "cce" if self.device == "cuda" else "torch_compile"
        return linear_cross_entropy(self.hidden, self.weight, self.target, reduction="sum", impl=impl)

    def liger_dpo(self):
        from liger_kernel.chunked_loss import LigerFusedLinearDPOLoss

        dpo = LigerFusedLinearDPOLoss(
            compiled=self.device == "cuda", use_ref_model=False, compute_nll_loss=False, average_log_prob=False
        )
        rows, width = self.hidden.shape
        batch = 4 if rows % 4 == 0 else 2
        return dpo(self.weight, self.hidden.view(batch, -1, width), self.target.view(batch, -1))[0]

    def step(self, mode, peer):
        self.hidden.requires_grad_(mode != "reference")
        self.weight.requires_grad_(mode == "trained")
        loss = peer()
        if mode != "reference":
            loss.backward()
        self.hidden.grad = self.weight.grad = None

    def calls(self):
        """Everything by mode and name."""
        found = {("", name): product for name, product in self.products().items()}
        for mode in PRODUCTS:
            peers = [self.eager, self.cut_cross_entropy]
            # It computes the weight's gradient in any case.
            peers += [self.liger_dpo] if mode == "trained" else []
            for peer in peers:
                found[mode, peer.__name__] = lambda mode=mode, peer=peer: self.step(mode, peer)
        return found

    def memory(self, mode, call):
        """Bytes at the peak beyond what was there and the gradients."""
        if self.device != "cuda" or not mode:
            return 0
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        gradients = {"reference": [], "frozen": [self.hidden], "trained": [self.hidden, self.weight]}[mode]
        gradients = sum(leaf.numel() * leaf.element_size() for leaf in gradients)
        return torch.cuda.max_memory_allocated() - before - gradients

    def run(self):
        calls, times = self.calls(), {}
        for number in range(self.args.rounds + 1):
            for key, call in list(calls.items()):
                try:
                    self.wait()
                    start = time.perf_counter()
                    for _ in range(self.args.calls):
                        call()
                    self.wait()
                    seconds = (time.perf_counter() - start) / self.args.calls
                except Exception as error:  # A peer that cannot run is reported, not hidden.
                    print(f"left out: {' '.join(key)}: {error!r}"[:300])
                    del calls[key]
                    continue
                if number > 0:  # The first round compiles.
                    times.setdefault(key, []).append(seconds)
        return {
            key: (statistics.median(times[key]), self.memory(key[0], call)) for key, call in calls.items()
        }


def rows_of(args, shape, dtype):
    label = f"{'×'.join(map(str, shape))} {dtype}"
    runs = [ours(args, *shape, dtype)]
    theirs = Torch(args, *shape, dtype).run() if torch else {}
    if theirs:
        torch.cuda.empty_cache()
    runs.append(ours(args, *shape, dtype))
    mine = {
        name: (statistics.mean(run[name][0] for run in runs), runs[0][name][1]) for name in runs[0]
    }
    spread = max(max(run[name][0] for run in runs) / min(run[name][0] for run in runs) for name in mine)
    print(f"{label}: the two runs of ours differ by at most {100 * (spread - 1):.0f}%")

    for mode, products in PRODUCTS.items():
        floors = [sum(mine[name][0] for name in products)]
        if theirs:
            floors.append(sum(theirs["", name][0] for name in products))
        named = zip(["Burn's products", "torch.mm's products"], floors)
        entries = [(name, seconds, None) for name, seconds in named]
        entries.append(("ours", *mine[mode]))
        entries += [(name, *found) for (of, name), found in theirs.items() if of == mode]
        for name, seconds, size in entries:
            cells = [label, mode, name, f"{1e3 * seconds:.3f}"]
            cells += [f"{seconds / floor:.2f}" for floor in floors] + [""] * (2 - len(floors))
            # torch's allocator counts on CUDA alone.
            counted = size is not None and (name == "ours" or torch.cuda.is_available())
            cells.append(f"{size / 2**20:.0f}" if counted else "")
            cells.append("" if name == "ours" or size is None else f"{mine[mode][0] / seconds:.2f}")
            yield "| " + " | ".join(cells) + " |"


def versions():
    names = ["torch", "triton", "liger-kernel", "cut-cross-entropy"]
    for name in names:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            yield f"no {name}"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head", required=True, help="the program of this folder")
    parser.add_argument("--shape", action="append", required=True, help="rows,hidden,vocab")
    parser.add_argument("--dtype", action="append", required=True, choices=["f32", "f16", "bf16"])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=3)
    args = parser.parse_args()

    print(", ".join(versions()))
    if torch is None:
        print("left out: all of torch, which is not installed")
    elif torch.cuda.is_available():
        # Burn's f32 products may use TF32 too.
        torch.set_float32_matmul_precision("high")
        print(f"{torch.cuda.get_device_name()}; f32 products may round to TF32, ours and torch's")
    else:
        print("no CUDA here: torch runs on the CPU. A trial of the script; the times say nothing.")
    lines = []
    for shape in args.shape:
        for dtype in args.dtype:
            lines += rows_of(args, [int(size) for size in shape.split(",")], dtype)
    print(f"medians of {args.rounds} rounds; MiB: the most in use beyond inputs and gradients")
    print("| rows×hidden×vocab | mode | who | ms | × Burn's products | × torch.mm's | MiB | ours / theirs |")
    print("|---" * 8 + "|")
    print("\n".join(lines))


main()
