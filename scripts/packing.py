#!/usr/bin/env python3
"""How much of packed rows is padding, by the rule that fills them.

    python3 scripts/oasst_pairs.py en_100_tree.jsonl > pairs.jsonl   # or any file of pairs
    python3 scripts/packing.py pairs.jsonl

Four characters are a token; prompts have 256 at most, prompt and answer 512. Each number is the mean
over 300 random batches: rows have the length of the longest one.
"""
import gzip
import json
import random
import sys


def tokens(text):
    return (len(text) if isinstance(text, str) else sum(len(m["content"]) for m in text)) // 4


def group(row):
    prompt = min(tokens(row["prompt"]), 256)
    return prompt + sum(min(tokens(row[side]), 512 - prompt) for side in ("chosen", "rejected"))


def one_after_the_other(groups, length):
    rows = [0]
    for tokens in groups:
        if rows[-1] + tokens > length:
            rows.append(0)
        rows[-1] += tokens
    return rows


def first_fit(groups, length):
    rows = []
    for tokens in groups:
        row = next((i for i, filled in enumerate(rows) if filled + tokens <= length), len(rows))
        if row == len(rows):
            rows.append(0)
        rows[row] += tokens
    return rows


def decreasing(groups, length):
    return first_fit(sorted(groups, reverse=True), length)


def even(groups, length):
    """What the crate does."""
    first = decreasing(groups, length)
    rows = [0] * len(first)
    for tokens in sorted(groups, reverse=True):
        rows[rows.index(min(rows))] += tokens
    return rows if max(rows) <= max(first) else first


def main():
    path = sys.argv[1]
    opened = gzip.open(path, "rt") if path.endswith(".gz") else open(path)
    groups = [group(json.loads(line)) for line in opened]
    rules = {
        "one after the other": one_after_the_other,
        "first fit": first_fit,
        "first-fit decreasing": decreasing,
        "even": even,
    }
    print("| groups | row | " + " | ".join(rules) + " |")
    print("|---|---|" + "---|" * len(rules))
    for count in (4, 16, 64):
        for length in (1024, 2048):
            shares = []
            for rule in rules.values():
                random.seed(1)
                padding = total = 0
                for _ in range(300):
                    batch = random.sample(groups, count)
                    rows = rule(batch, length)
                    total += max(rows) * len(rows)
                    padding += max(rows) * len(rows) - sum(batch)
                shares.append(f"{100 * padding / total:.1f}%")
            print(f"| {count} | {length} | " + " | ".join(shares) + " |")


main()
