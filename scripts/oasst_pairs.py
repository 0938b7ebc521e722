#!/usr/bin/env python3
"""Open-Assistant conversation trees as pairs, in the shape that `finetune` reads.

    url=https://raw.githubusercontent.com/LAION-AI/Open-Assistant/f1e6ed9526f5817531f3ab85441a40b3671ddccb
    curl -O $url/model/model_eval/manual/data/en_100_tree.jsonl
    python3 scripts/oasst_pairs.py en_100_tree.jsonl > pairs.jsonl

A row per message with at least two ranked human replies by an assistant: the best against the
worst. Rows of one tree share the beginning of a conversation: split by `tree`.
"""
import json
import sys


def walk(message, before, tree):
    role = {"prompter": "user", "assistant": "assistant"}[message["role"]]
    prompt = before + [{"role": role, "content": message["text"]}]
    replies = message["replies"]
    ranked = [
        reply
        for reply in replies
        if reply["role"] == "assistant"
        and reply.get("rank") is not None
        and not reply.get("synthetic")
        and not reply.get("deleted")
    ]
    ranked.sort(key=lambda reply: reply["rank"])
    if len(ranked) >= 2 and ranked[0]["rank"] < ranked[-1]["rank"]:
        yield {
            "tree": tree,
            "prompt": prompt,
            "chosen": ranked[0]["text"],
            "rejected": ranked[-1]["text"],
            "rank_gap": ranked[-1]["rank"] - ranked[0]["rank"],
        }
    for reply in replies:
        yield from walk(reply, prompt, tree)


for line in open(sys.argv[1], encoding="utf-8"):
    tree = json.loads(line)
    for row in walk(tree["prompt"], [], tree["message_tree_id"]):
        print(json.dumps(row, ensure_ascii=False))
