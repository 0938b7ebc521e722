#!/usr/bin/env python3
"""Ten steps of TRL's SFT on the tiny Llama, for tests/sft.rs.

    python3 -m venv .venv
    .venv/bin/pip install torch==2.15.0 transformers==5.24.0 trl==1.16.0
    .venv/bin/python finetune/scripts/sft.py

After goldens.py and tokenizer.py. Writes tests/data/sft.json: for each case the rows with TRL's token ids and
the tokens that count, and what `SFTTrainer` makes of ten steps of two batches of three rows each (f32, eager
attention, AdamW at a constant rate, gradients clipped at 1): for each step the places of its rows and its loss,
and for each batch entropy and token accuracy.
"""
import json
import pathlib
import tempfile

import torch
import transformers
import trl
from datasets import Dataset

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data"
# ε of AdamW is far above the rounding of a gradient and far below its size: with 1e-8, the sign of a gradient that
# is 0 but for its rounding moves a weight by the whole rate.
RATE, EPSILON = 2e-3, 1e-4
STEPS, MICRO, ACCUMULATION = 10, 3, 2
# What the assistant writes, and the end of its turn.
MARKED = ("{{- '<|assistant|>' + message['content'] + eos_token }}",
          "{{- '<|assistant|>' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}")


def tokenizer():
    made = transformers.AutoTokenizer.from_pretrained(DATA / "tokenizer")
    assert MARKED[0] in made.chat_template
    made.chat_template = made.chat_template.replace(*MARKED)
    return made


def cases():
    """Rows and options by name."""
    pairs = [json.loads(line) for line in (DATA / "tokenizer" / "pairs.jsonl").read_text().splitlines()]
    completions = [dict(prompt=row["prompt"], completion=row[side]) for i, row in enumerate(pairs[:12])
                   for side in [("chosen", "rejected")[i % 2]]]
    turns = []
    for i, row in enumerate(pairs[:12]):
        more = pairs[i + 12]
        turns.append(dict(messages=row["prompt"] + row["chosen"] + (more["prompt"][-1:] + more["chosen"] if i % 3 else [])))
    said = lambda messages: messages[-1]["content"]
    texts = [dict(prompt=said(row["prompt"]) + " ", completion=said(row["completion"])) for row in completions]
    return dict(
        completions=(completions, {}),
        messages=(turns, dict(assistant_only_loss=True)),
        texts=(texts, {}),
        dft=(completions, dict(loss_type="dft")),
    )


def run(rows, options):
    model = transformers.AutoModelForCausalLM.from_pretrained(DATA / "llama", attn_implementation="eager")
    assert model.dtype == torch.float32
    with tempfile.TemporaryDirectory() as folder:
        args = trl.SFTConfig(folder, per_device_train_batch_size=MICRO, gradient_accumulation_steps=ACCUMULATION,
                             max_steps=STEPS, learning_rate=RATE, lr_scheduler_type="constant", warmup_steps=0,
                             max_grad_norm=1.0, weight_decay=0.0, adam_epsilon=EPSILON, bf16=False, gradient_checkpointing=False,
                             use_cpu=True, report_to="none", disable_tqdm=True, save_strategy="no",
                             logging_steps=1, max_length=None, seed=0, **options)
        trainer = trl.SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer())
        found = [dict(ids=row["input_ids"], counts=[label != -100 for label in row["labels"]])
                 for row in trainer.train_dataset]
        known = {tuple(row["ids"]): i for i, row in enumerate(found)}
        assert len(known) == len(rows)
        batches = []
        compute_loss = trainer.compute_loss

        def watched(model, inputs, *more, **options):
            lengths = inputs["attention_mask"].sum(1).tolist()
            places = [known[tuple(ids[:length])] for ids, length in zip(inputs["input_ids"].tolist(), lengths)]
            loss = compute_loss(model, inputs, *more, **options)
            metrics = trainer._metrics["train"]
            batches.append(dict(rows=places, loss=loss.item(), entropy=metrics["entropy"][-1],
                                accuracy=metrics["mean_token_accuracy"][-1]))
            return loss

        trainer.compute_loss = watched
        trainer.train()
        norms = [line["grad_norm"] for line in trainer.state.log_history if "grad_norm" in line]
    steps = [dict(batches=batches[i * ACCUMULATION:(i + 1) * ACCUMULATION], grad_norm=norms[i]) for i in range(STEPS)]
    assert len(batches) == STEPS * ACCUMULATION and len(norms) == STEPS
    for step in steps:
        step["loss"] = sum(batch.pop("loss") for batch in step["batches"])
    return [row | more for row, more in zip(({"row": row} for row in rows), found)], steps


def main():
    found = dict(trl=trl.__version__, transformers=transformers.__version__, torch=torch.__version__, rate=RATE,
                 epsilon=EPSILON, cases={})
    for name, (rows, options) in cases().items():
        rows, steps = run(rows, options)
        found["cases"][name] = dict(rows=rows, steps=steps)
        counted = sum(sum(row["counts"]) for row in rows)
        print(f"{name}: {len(rows)} rows, {counted} tokens count, loss", [round(step["loss"], 4) for step in steps])
    (DATA / "sft.json").write_text(json.dumps(found) + "\n")


main()
