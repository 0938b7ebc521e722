"""Whole training steps of other code, in less space: tests/data/steps.json and steps.safetensors.

    python3 scripts/compact_steps.py authors.json oxrl.json sft.json tests/data/steps

Plain Python. A file is a list of cases, and `.safetensors` beside it holds their tensors in f64,
`id/name`: `tokens`, `mask` `[rows, time]`, `logits`, `ref_logits`, `grad_logits` `[rows, time, vocab]`
and, of some, `scores`, `sequence_kl`. The values come from the code of the authors of TDPO, EXO,
InfoNCA, β-DPO, SimPER and REBEL, from allRank, open-unlearning and oxRL 1.7.2 (`train_step` on logits
that are a leaf), and from TRL's SFT (scripts/sft_steps.py); only numbers are kept.

Only counted tokens are kept, one row of the sequences after the other, and `lengths` says how many
each has. All words but the token become one: what is left is one number, the token's log-odds
ln p/(1 − p), and the gradient along it. Nothing is lost where the loss sees only the log-probability
of the token, since its gradient is then g·(onehot − softmax): that is checked here. Cases whose loss
sees every word are kept whole if they are listed below, and left out otherwise.
"""

import array
import json
import math
import struct
import sys

WHOLE = {"tdpo_2"}
TOLERANCE = 1e-12
KEPT = ("id", "peer", "spec", "loss", "metrics")
DTYPES = {"I64": "q", "F64": "d", "U8": "B"}


def read(path):
    """The cases, and their tensors as (shape, numbers)."""
    with open(path.removesuffix(".json") + ".safetensors", "rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(size))
        body = file.read()
    tensors = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        numbers = array.array(DTYPES[info["dtype"]])
        begin, end = info["data_offsets"]
        numbers.frombytes(body[begin:end])
        tensors[name] = (info["shape"], numbers)
    with open(path) as file:
        return json.load(file), tensors


def log_sum_exp(values):
    largest = max(values)
    return largest + math.log(math.fsum(math.exp(x - largest) for x in values))


def log_odds(logits, token):
    return logits[token] - log_sum_exp(logits[:token] + logits[token + 1 :])


def probabilities(logits):
    normalizer = log_sum_exp(logits)
    return [math.exp(x - normalizer) for x in logits]


def compact(case, tensors):
    """The tensors of a case, compact; none where all words count."""
    of = {name: tensors.get(f"{case['id']}/{name}") for name in (
        "tokens", "mask", "logits", "ref_logits", "grad_logits", "scores", "sequence_kl")}
    (rows, time), tokens = of["tokens"]
    mask = of["mask"][1]
    vocab = of["logits"][0][2]

    def words(name, row, t):
        start = (row * time + t) * vocab
        return of[name][1][start : start + vocab]

    names = [name for name in ("logits", "ref_logits", "grad_logits") if of[name]]
    whole = {name: array.array("d") for name in names}
    merged = {name: array.array("d") for name in names}
    kept, lengths = array.array("q"), array.array("B", [0] * rows)
    largest = max(map(abs, of["grad_logits"][1]))
    sees_all = False
    for row in range(rows):
        assert not mask[row * time], "a first token cannot be predicted"
        for t in range(time):
            gradient = words("grad_logits", row, t)
            if t + 1 == time or not mask[row * time + t + 1]:
                assert not any(gradient), "a gradient where no token counts"
                continue
            token = tokens[row * time + t + 1]
            lengths[row] += 1
            kept.append(token)
            for name in names:
                whole[name].extend(words(name, row, t))
            for name in ("logits", "ref_logits"):
                if name in names:
                    merged[name].append(log_odds(words(name, row, t), token))
            merged["grad_logits"].append(gradient[token])
            p = probabilities(words("logits", row, t))
            g = gradient[token] / (1 - p[token])
            for word, found in enumerate(gradient):
                expected = g * ((word == token) - p[word])
                sees_all |= abs(found - expected) > TOLERANCE * largest
    if (sees_all or of["sequence_kl"]) and case["id"] not in WHOLE:
        return None
    if case["id"] in WHOLE:
        out = {name: ("F64", [len(kept), vocab], whole[name]) for name in names}
        out["tokens"] = ("I64", [len(kept)], kept)
    else:
        out = {name: ("F64", [len(kept), 1], merged[name]) for name in names}
    out["lengths"] = ("U8", [rows], lengths)
    for name in ("scores", "sequence_kl"):
        if of[name]:
            shape, numbers = of[name]
            out[name] = ("F64", shape, numbers)
    return out


def main():
    *sources, target = sys.argv[1:]
    cases, header, body = [], {}, bytearray()
    for source in sources:
        found, tensors = read(source)
        for case in found:
            compacted = compact(case, tensors)
            if compacted is None:
                print(f"left out: {case['id']}, whose loss sees every word")
                continue
            cases.append({key: case[key] for key in KEPT})
            for name, (dtype, shape, numbers) in compacted.items():
                data = numbers.tobytes()
                header[f"{case['id']}/{name}"] = {
                    "dtype": dtype,
                    "shape": shape,
                    "data_offsets": [len(body), len(body) + len(data)],
                }
                body += data
    text = json.dumps(header, separators=(",", ":")).encode()
    with open(target + ".safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + body)
    with open(target + ".json", "w") as file:
        file.write("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
    print(f"{len(cases)} cases")


main()
