#!/usr/bin/env python3
"""Whether transformers and PEFT load what the program saves, and compute what it computes.

    cargo build --release -p finetune --bin finetune --example log_probs
    python3 -m venv .venv && .venv/bin/pip install torch==2.15.0 transformers==5.24.0 peft==0.21.2
    .venv/bin/python finetune/scripts/check.py

For every family of tests/data it trains a few steps: all weights, merged adapters (saved in f32, bf16 and
f16), adapters alone, whose config names their base, and a reward model. Of each, other programs' log-probability
of every token (their reward at the end of a row) is off by less than 1e-4, and their tokenizer gives the same ids.

    --smollm2 SmolLM2-135M-Instruct.Q4_1.gguf --data PAIRS.jsonl.gz

does so with a GGUF file as well (docs/measured.md says where it comes from). `--programs DIR` is where cargo
puts programs, target/release without it.
"""
import argparse
import gzip
import json
import pathlib
import shutil
import subprocess
import tempfile

import peft
import torch
import transformers
from safetensors import safe_open

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data"
CONVERSATIONS = [
    [dict(role="user", content="is a big bee a cat?")],
    [dict(role="user", content="a red cat?"), dict(role="assistant", content="yes, cat."), dict(role="user", content="0.1, not 10!")],
]
TEXTS = ["Two  blanks,\ttabs,\n\nlines and 12345 digits.", "Größe, naïve, 漢字, 🙂!", "  it's <|im_start|> special",
         "def f(x):\n    return x ** 2  # code"]
TOLERANCE = 1e-4


def command(*parts):
    done = subprocess.run([str(part) for part in parts], capture_output=True, text=True)
    assert done.returncode == 0, (parts, done.stdout, done.stderr)
    return done.stdout


def ours(programs, model, rows, adapter=None):
    """What this package computes."""
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(rows, file)
        file.flush()
        extra = ["--adapter", adapter] if adapter else []
        return json.loads(command(programs / "examples" / "log_probs", model, *extra, file.name))


def worst(found, expected):
    assert len(found) == len(expected) > 0
    return max((a - torch.tensor(b, dtype=torch.float64)).abs().max().item() for a, b in zip(found, expected))


def token_log_probs(model, ids):
    for row in ids:
        row = torch.tensor([row])
        logits = model(input_ids=row).logits.double()
        yield logits[0, :-1].log_softmax(-1).gather(1, row[0, 1:, None])[:, 0]


def loaded(kind, folder, dtype=torch.float32):
    model, report = kind.from_pretrained(folder, attn_implementation="eager", output_loading_info=True)
    # transformers only warns of what is missing or left over.
    assert not any(report.values()), report
    # By the config.
    assert model.dtype == dtype, model.dtype
    # In f32, as this package computes with the numbers.
    return kind.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32).eval()


def with_adapter(folder):
    # From the folder alone, wherever it is: its config names the base.
    model = peft.AutoPeftModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    # And so does PEFT.
    with safe_open(folder / "adapter_model.safetensors", "pt") as file:
        stored = set(file.keys())
    wanted = set(peft.get_peft_model_state_dict(model))
    assert stored == wanted, stored ^ wanted
    return model


def same_ids(folder, ids, conversations):
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    for row, messages in zip(ids, conversations, strict=True):
        theirs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert row == theirs, (row, theirs)


def check(programs, model, data, work, rows, options):
    """Trains, and has other programs load it: the largest difference of each kind."""
    found = {}
    for kind, more in dict(merged=[], full=["--full"], bf16=["--save-dtype", "bf16"], f16=["--save-dtype", "f16"],
                           adapter=["--save", "adapter"], rewards=["--loss", "bradley_terry"]).items():
        out = work / kind
        if kind == "adapter" and model.is_file():
            # PEFT wants a folder for a base: the one that was saved goes on.
            model = work / "merged"
        command(programs / "finetune", "--model", model, "--data", data, "--out", out, *options, *more)
        shutil.rmtree(f"{out}.run")
        if kind == "adapter":
            expected = ours(programs, model, rows, out)
            same_ids(out, expected["ids"][len(rows["ids"]):], rows["conversations"])
            theirs = list(token_log_probs(with_adapter(out), expected["ids"]))
            found[kind] = worst(theirs, expected["log_probs"])
            continue
        expected = ours(programs, out, rows)
        same_ids(out, expected["ids"][len(rows["ids"]):], rows["conversations"])
        if kind == "rewards":
            scorer = loaded(transformers.AutoModelForSequenceClassification, out)
            theirs = [scorer(input_ids=torch.tensor([row])).logits[0, 0].double() for row in expected["ids"]]
            found[kind] = worst(theirs, expected["rewards"])
            if scorer.config.pad_token_id not in (None, transformers.AutoTokenizer.from_pretrained(out).eos_token_id):
                found["padded rewards"] = padded(scorer, expected)
        else:
            dtype = dict(bf16=torch.bfloat16, f16=torch.float16).get(kind, torch.float32)
            theirs = list(token_log_probs(loaded(transformers.AutoModelForCausalLM, out, dtype), expected["ids"]))
            found[kind] = worst(theirs, expected["log_probs"])
    return found


def padded(scorer, expected):
    """All rows at once: transformers finds their ends by the padding that the config names."""
    length = max(map(len, expected["ids"]))
    padding = scorer.config.pad_token_id
    ids = torch.tensor([row + [padding] * (length - len(row)) for row in expected["ids"]])
    # Only what nothing else is padding of.
    assert not any(row[-1] == padding for row in expected["ids"])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in expected["ids"]])
    return worst(list(scorer(input_ids=ids, attention_mask=mask).logits[:, 0].double()), expected["rewards"])


def tiny(programs, work):
    for family in sorted(config.parent.name for config in DATA.glob("*/config.json")):
        model = work / family
        shutil.copytree(DATA / family, model)
        for name in ["tokenizer.json", "tokenizer_config.json"]:
            shutil.copy(DATA / "tokenizer" / name, model)
        ids = json.loads((model / "expected.json").read_text())["ids"]
        rows = dict(ids=[[4 if word == 0 else word for word in row] for row in ids], conversations=CONVERSATIONS[:1])
        options = ["--max-length", 32, "--steps", 4, "--answers", 0, "--rate", 0.01]
        out = work / f"{family}-out"
        yield family, check(programs, model, DATA / "tokenizer" / "pairs.jsonl", out, rows, options)


def smollm2(programs, work, model, data):
    few = work / "few.jsonl"
    with gzip.open(data, "rt") as file:
        few.write_text("".join(line for _, line in zip(range(6), file)))
    conversations = CONVERSATIONS + [[dict(role="user", content=text)] for text in TEXTS]
    options = ["--max-length", 64, "--batch", 2, "--steps", 2, "--evaluate-every", 2, "--answers", 0, "--held-out", 0]
    rows = dict(ids=[], conversations=conversations)
    return check(programs, model, few, work / "smollm2", rows, options)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--programs", type=pathlib.Path, default="target/release")
    parser.add_argument("--smollm2", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path)
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    everything = []
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        models = list(tiny(args.programs, work))
        if args.smollm2:
            models.append(("SmolLM2-135M", smollm2(args.programs, work, args.smollm2, args.data)))
        for name, found in models:
            print(f"{name}: off by at most", ", ".join(f"{value:.1e} ({kind})" for kind, value in found.items()))
            everything += found.values()
    print(f"{max(everything):.1e} at most in all of them")
    assert max(everything) < TOLERANCE


main()
