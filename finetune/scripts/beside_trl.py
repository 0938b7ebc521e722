#!/usr/bin/env python3
"""The same fine-tuning by TRL and by this program: same rows, batch, steps, rank, f32, two threads.

    python3 -m venv .venv && .venv/bin/pip install torch==2.15.0 transformers==5.23.0 trl==1.16.0 peft==0.21.2 gguf==0.19.0
    cargo build --release -p finetune
    .venv/bin/python finetune/scripts/beside_trl.py --model SmolLM2-135M-Instruct.Q4_1.gguf --data pairs.jsonl

Answers are cut to `--max-length` tokens before, so that neither program cuts any, and prompts of more
than half of them are left out; conversations (`tree`) are
split; each program trains on all training rows once, in an order of its own. Each runs in a process
of its own, one after the other, `--rounds` times. Printed are seconds a pair of training, without
the reference's log-probabilities, which both compute once before it, and without evaluation; peak
memory of the process (VmHWM); and the held-out table. Ours runs as it does by itself, and with a padded
row for each completion, as TRL has them. TRL runs as it is fastest on a CPU, in f32 without gradient
checkpointing, and by its defaults, which are bf16 (by autocast) with it.
"""
import argparse
import json
import os
import pathlib
import random
import re
import shutil
import subprocess
import sys
import time


def arguments():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--loss", choices=["dpo", "orpo"], default="dpo")
    parser.add_argument("--pairs", type=int, default=64, help="training pairs")
    parser.add_argument("--held-out", type=int, default=24)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--micro", type=int, default=2, help="pairs of a forward, by TRL; ours: as many tokens")
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--rate", type=float, default=1e-4)
    parser.add_argument("--evaluate-every", type=int, default=1000000, help="steps, for our figure")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("target/trl"))
    parser.add_argument("--only", action="append", choices=list(PROGRAMS), help="several times for several")
    parser.add_argument("--child", choices=["fast", "default"], help=argparse.SUPPRESS)
    parser.add_argument("options", nargs="*", help="more options of ours, behind --")
    return parser.parse_args()


def tokenizer(args):
    import transformers

    return transformers.AutoTokenizer.from_pretrained(args.model.parent, gguf_file=args.model.name)


def rows(args):
    """Conversational pairs that nobody cuts, split by conversation."""
    import gzip

    tok = tokenizer(args)
    opened = gzip.open if args.data.suffix == ".gz" else open
    length = lambda messages: len(tok.apply_chat_template(messages, tokenize=True, return_dict=True)["input_ids"])
    trees = {}
    for line in opened(args.data, "rt", encoding="utf-8"):
        row = json.loads(line)
        room = args.max_length - length(row["prompt"]) - 8
        if room < args.max_length // 2:
            continue
        cut = lambda text: tok.decode(tok(text, add_special_tokens=False)["input_ids"][:room])
        sides = {s: [{"role": "assistant", "content": cut(row[s])}] for s in ("chosen", "rejected")}
        if max(length(row["prompt"] + side) for side in sides.values()) <= args.max_length:
            trees.setdefault(row["tree"], []).append(dict(prompt=row["prompt"], **sides))
    names = sorted(trees)
    random.Random(0).shuffle(names)
    held_out, train = [], []
    for name in names:
        (held_out if len(held_out) < args.held_out else train).extend(trees[name])
    args.work.mkdir(parents=True, exist_ok=True)
    for name, some in (("held_out", held_out), ("train", train[: args.pairs])):
        path = args.work / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in some), encoding="utf-8")
        print(f"{name}: {len(some)} pairs", flush=True)


def peak():
    return int(re.search(r"VmHWM:\s+(\d+)", open("/proc/self/status").read())[1]) / 1024


def child(args):
    """TRL, in a process of its own."""
    import datasets
    import peft
    import torch
    import transformers
    import trl

    torch.set_num_threads(2)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        args.model.parent, gguf_file=args.model.name, dtype=torch.float32)
    # The same numbers in a model that is not called quantised.
    config = loaded.config.to_dict()
    config.pop("quantization_config", None)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig.from_dict(config))
    model.load_state_dict(loaded.state_dict())
    del loaded
    # Ours, which was saved beside the trained model: what transformers makes of a GGUF file's
    # tokenizer takes digits together, and would give other ids.
    tok = transformers.AutoTokenizer.from_pretrained(args.work / "ours")
    data = {n: datasets.load_dataset("json", data_files=str(args.work / f"{n}.jsonl"), split="train")
            for n in ("train", "held_out")}
    shared = dict(
        output_dir=str(args.work / "trl"), per_device_train_batch_size=args.micro,
        gradient_accumulation_steps=args.batch // args.micro, per_device_eval_batch_size=args.micro,
        num_train_epochs=1, learning_rate=args.rate, lr_scheduler_type="cosine", warmup_steps=0.1,
        max_grad_norm=1.0, weight_decay=0.0, beta=0.1, max_length=args.max_length, report_to=[],
        logging_steps=1, save_strategy="no", use_cpu=True, seed=0, disable_tqdm=True)
    if args.child == "fast":
        shared.update(bf16=False, fp16=False, gradient_checkpointing=False)
    lora = peft.LoraConfig(r=args.rank, lora_alpha=2 * args.rank, target_modules="all-linear", task_type="CAUSAL_LM")
    if args.loss == "dpo":
        config = trl.DPOConfig(**shared, precompute_ref_log_probs=True)
        trainer_of = trl.DPOTrainer
    else:
        from trl.experimental.orpo import ORPOConfig, ORPOTrainer

        config, trainer_of = ORPOConfig(**shared), ORPOTrainer
    trainer = trainer_of(model=model, args=config, train_dataset=data["train"],
                         eval_dataset=data["held_out"], processing_class=tok, peft_config=lora)

    class Clock(transformers.TrainerCallback):
        """Sums the seconds between the beginning and the end of steps."""
        seconds, start = 0.0, None

        def on_step_begin(self, *_, **__):
            self.start = time.perf_counter()

        def on_step_end(self, *_, **__):
            self.seconds += time.perf_counter() - self.start

    clock = Clock()
    trainer.add_callback(clock)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    pick = lambda table: {k: table.get(f"eval_{k}") for k in
                          ("loss", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected")}
    print("RESULT " + json.dumps(dict(seconds=clock.seconds / len(data["train"]), memory=peak(),
                                      before=pick(before), after=pick(after))))


def by_trl(args, how):
    command = [sys.executable, __file__, "--child", how, *sys.argv[1:]]
    out = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(next(line for line in out.splitlines() if line.startswith("RESULT "))[7:])


def ours(args, layout):
    out = args.work / "ours"
    for folder in (out, args.work / "ours.run"):
        shutil.rmtree(folder, ignore_errors=True)
    program = pathlib.Path(os.environ.get("FINETUNE", "target/release/finetune"))
    command = [str(program), "--model", str(args.model), "--data", str(args.work / "train.jsonl"),
               "--held-out-data", str(args.work / "held_out.jsonl"), "--loss", args.loss,
               "--batch", str(args.batch), "--budget", str(2 * args.micro * args.max_length),
               "--max-length", str(2 * args.max_length), "--rank", str(args.rank), "--rate", str(args.rate),
               "--evaluate-every", str(args.evaluate_every), "--answers", "0", "--out", str(out),
               "--layout", layout, *args.options]
    text = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True,
                          env={**os.environ, "RAYON_NUM_THREADS": "2"}).stdout
    print(text, file=sys.stderr)
    seconds, memory = re.search(r"([\d.]+) s an example; peak memory (\d+) kB", text).groups()
    table = {}
    for name in ("before", "after"):
        cells = re.search(rf"\| {name} \|(.*)\|", text)[1].split("|")
        table[name] = dict(zip(("loss", "rewards/accuracies", "rewards/margins", "logps/chosen", "logps/rejected"),
                               (float(c) if c.strip() != "–" else None for c in cells)))
    return dict(seconds=float(seconds), memory=int(memory) / 1024, **table)


def main():
    args = arguments()
    if args.child:
        return child(args)
    rows(args)
    # TRL takes the tokenizer that ours saves.
    programs = {name: PROGRAMS[name] for name in args.only or PROGRAMS}
    results = {name: [] for name in programs}
    for _ in range(args.rounds):
        for name, (run, how) in programs.items():
            results[name].append(run(args, how))
            print(name, json.dumps(results[name][-1]), flush=True)
    print("\n| | seconds a pair | peak MiB | held-out loss before, after | accuracy after | margin after |")
    print("|---|---|---|---|---|---|")
    for name, runs in results.items():
        runs = sorted(runs, key=lambda run: run["seconds"])
        median, first = runs[len(runs) // 2], runs[0]
        print(f"| {name} | {median['seconds']:.2f} | {first['memory']:.0f} | {first['before']['loss']:.4f}, "
              f"{first['after']['loss']:.4f} | {first['after']['rewards/accuracies']:.3f} | "
              f"{first['after']['rewards/margins']:.4f} |")


PROGRAMS = {
    "ours": (ours, "auto"),
    "ours, padded": (ours, "padded"),
    "TRL": (by_trl, "fast"),
    "TRL by default": (by_trl, "default"),
}
main()
