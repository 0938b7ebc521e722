#!/usr/bin/env python3
"""One DPO step of TRL on the tiny models, for tests/steps.rs.

    python3 -m venv .venv
    .venv/bin/pip install torch==2.15.0 transformers==5.23.0 trl==1.16.0
    .venv/bin/python finetune/scripts/steps.py

After goldens.py and tokenizer.py. Writes tests/data/steps/<family>.json, what `DPOTrainer` makes of
three pairs in f32 (sigmoid loss, β = 0.1, eager attention), and <family>.safetensors, the gradient of
every parameter under its name. The reference is the folder's model. In the policy, parameter i of the
sorted names is multiplied by 1 + 0.05·(i mod 3), which both sides can do.
"""
import json
import pathlib
import tempfile

import torch
import transformers
import trl
from datasets import Dataset
from safetensors.torch import save_file

DATA = pathlib.Path(__file__).resolve().parent.parent / "tests" / "data"
OUT = DATA / "steps"
# Prompts of two lengths, completions of five.
PAIRS = slice(1, 4)


def model(family):
    loaded = transformers.AutoModelForCausalLM.from_pretrained(DATA / family, attn_implementation="eager")
    assert loaded.dtype == torch.float32
    return loaded


def perturbed(policy):
    with torch.no_grad():
        for i, (_, parameter) in enumerate(sorted(policy.named_parameters())):
            parameter.mul_(1 + 0.05 * (i % 3))
    return policy


def keep_log_probs(model, kept):
    """Has a model with TRL's head put what it computes for each token into `kept`."""
    forward = model.forward

    def watched(*inputs, **options):
        found = forward(*inputs, **options)
        kept.append(found.log_probs.detach())
        return found

    model.forward = watched


def trainer(family, pairs, folder):
    args = trl.DPOConfig(folder, beta=0.1, loss_type="sigmoid", per_device_train_batch_size=len(pairs), bf16=False,
                         gradient_checkpointing=False, use_cpu=True, report_to="none", disable_tqdm=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(DATA / "tokenizer")
    return trl.DPOTrainer(perturbed(model(family)), model(family), args, train_dataset=Dataset.from_list(pairs),
                          processing_class=tokenizer)


def step(family, pairs):
    """What is compared, and the gradients."""
    with tempfile.TemporaryDirectory() as folder:
        step = trainer(family, pairs, folder)
        policy, reference = [], []
        keep_log_probs(step.model, policy)
        keep_log_probs(step.ref_model, reference)
        batch = step.data_collator([step.train_dataset[i] for i in range(len(pairs))])
        step.model.train()
        loss = step.compute_loss(step.model, batch)
        loss.backward()
        gradients = {name: parameter.grad for name, parameter in step.model.named_parameters()}
        assert all(gradient.abs().max() > 0 for gradient in gradients.values())
        rewards = {side: step._metrics["train"][f"rewards/{side}"][0] for side in ("chosen", "rejected")}
    found = {key: batch[key].tolist() for key in ("input_ids", "attention_mask", "completion_mask")}
    found |= dict(policy=policy[0].tolist(), reference=reference[0].tolist(), loss=loss.item(), rewards=rewards)
    return found, gradients


def main():
    OUT.mkdir(exist_ok=True)
    versions = dict(trl=trl.__version__, transformers=transformers.__version__, torch=torch.__version__)
    pairs = [json.loads(line) for line in (DATA / "tokenizer" / "pairs.jsonl").read_text().splitlines()[PAIRS]]
    for config in sorted(DATA.glob("*/config.json")):
        family = config.parent.name
        found, gradients = step(family, pairs)
        (OUT / f"{family}.json").write_text(json.dumps(versions | dict(beta=0.1) | found) + "\n")
        save_file(gradients, OUT / f"{family}.safetensors")
        smallest = min((gradient.abs().max().item(), name) for name, gradient in gradients.items())
        print(f"{family}: loss {found['loss']:.6f}, {len(gradients)} gradients, the smallest {smallest}")


main()
