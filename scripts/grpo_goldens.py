#!/usr/bin/env python3
"""Losses, gradients, advantages and metrics of TRL's GRPO and RLOO, and losses and gradients of Liger's GRPO, for
tests/conformance/samples.rs.

    python3 -m venv .venv
    .venv/bin/pip install torch==2.15.0 transformers==5.24.0 trl==1.16.0 liger-kernel==0.8.5
    .venv/bin/python scripts/grpo_goldens.py

After finetune/scripts/goldens.py and tokenizer.py. The tiny Llama of `finetune` is the reference, the same with moved
weights the sampler, and once more moved the policy, so that ratios are clipped on both sides. TRL's trainers make the
inputs (`_generate_and_score_completions`, with completions of our choice in place of generated ones) and the loss
(`_compute_loss`). Liger's `ppo_loss_fn` gets the same log-probabilities, in f64. Writes tests/data/grpo.json: the log-probabilities of the three models, the rewards, and for each
case the options, advantages, loss, its gradient with respect to the policy's log-probabilities, and metrics.
"""
import importlib.metadata
import json
import pathlib
import random
import tempfile

import torch
import transformers
import trl
from datasets import Dataset
from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction

ROOT = pathlib.Path(__file__).resolve().parent.parent
DATA = ROOT / "finetune" / "tests" / "data"
LLAMA = str(DATA / "llama")
PROMPTS, EACH, LONGEST = ["What is 2+2?", "Name a colour.", "Say yes."], 4, 7
# A group whose rewards are all equal is among them.
REWARDS = [1.0, 0.25, -0.5, 0.6, 2.0, 2.0, 2.0, 2.0, 0.0, 1.0, 0.3, 0.1]
KEYS = ["kl", "reward", "reward_std", "frac_reward_zero_std", "clip_ratio/low_mean", "clip_ratio/high_mean",
        "clip_ratio/region_mean", "cispo_clip_ratio"]

K3 = dict(use_bias_correction_kl=False)
CASES = {
    "dapo": dict(loss_type="dapo"),
    "dapo, clips": dict(loss_type="dapo", epsilon=0.1, epsilon_high=0.28),
    "bnpo": dict(loss_type="bnpo"),
    "grpo": dict(loss_type="grpo"),
    "grpo, k3": dict(loss_type="grpo", beta=0.04, **K3),
    "grpo, weighted k3": dict(loss_type="grpo", beta=0.04),
    "grpo, by all": dict(loss_type="grpo", scale_rewards="batch"),
    "dr_grpo": dict(loss_type="dr_grpo", scale_rewards="none"),
    "dr_grpo, weighted k3": dict(loss_type="dr_grpo", scale_rewards="none", beta=0.5),
    "two-sided": dict(loss_type="dapo", delta=1.3),
    "gspo": dict(loss_type="grpo", importance_sampling_level="sequence", epsilon=0.03, epsilon_high=0.04),
    "gspo, dapo": dict(loss_type="dapo", importance_sampling_level="sequence", epsilon=0.03, epsilon_high=0.04),
    "gspo, weighted k3": dict(loss_type="grpo", importance_sampling_level="sequence", beta=0.1),
    "luspo": dict(loss_type="luspo", importance_sampling_level="sequence", epsilon=0.03, epsilon_high=0.04),
    "cispo": dict(loss_type="cispo", epsilon_high=1.1),
    "cispo, k3": dict(loss_type="cispo", epsilon_high=1.1, beta=0.1, **K3),
    "cispo, sequence": dict(loss_type="cispo", epsilon_high=1.02, importance_sampling_level="sequence"),
    "rloo": dict(rloo=True, beta=0.0),
    "rloo, kl": dict(rloo=True, beta=0.05),
}


def move(model, seed, by):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, parameter in sorted(model.named_parameters()):
            parameter.add_(torch.randn(parameter.shape, generator=generator) * by)


def completions(tokenizer):
    choose = random.Random(0)
    words = [i for i in range(len(tokenizer)) if i not in tokenizer.all_special_ids]
    drawn = [[choose.choice(words) for _ in range(1 + i * 5 % LONGEST)] for i in range(len(REWARDS))]
    return [ids + ([tokenizer.eos_token_id] if i % 2 and len(ids) < LONGEST else []) for i, ids in enumerate(drawn)]


def run(rloo=False, **options):
    model = transformers.AutoModelForCausalLM.from_pretrained(LLAMA, attn_implementation="eager")
    tokenizer = transformers.AutoTokenizer.from_pretrained(DATA / "tokenizer")
    config, kind = (trl.RLOOConfig, trl.RLOOTrainer) if rloo else (trl.GRPOConfig, trl.GRPOTrainer)
    rows = [dict(prompt=prompt) for prompt in PROMPTS for _ in range(EACH)]
    with tempfile.TemporaryDirectory() as folder:
        args = config(folder, per_device_train_batch_size=len(rows), gradient_accumulation_steps=1, num_iterations=2,
                      num_generations=EACH, max_completion_length=LONGEST, bf16=False, gradient_checkpointing=False,
                      use_cpu=True, report_to="none", disable_tqdm=True, seed=0, **options)
        trainer = kind(model, lambda completions, **_: REWARDS, args=args, train_dataset=Dataset.from_list(rows),
                       processing_class=tokenizer)
    trainer.model.train()
    drawn = completions(tokenizer)
    trainer._generate_single_turn = lambda *_: drawn if rloo else (drawn, None)
    of_tokens = trainer._get_per_token_logps_and_entropies
    passes = []

    def watched(*inputs, **more):
        found = of_tokens(*inputs, **more)
        passes.append(found[0])
        if found[0].requires_grad:
            found[0].retain_grad()
        return found

    trainer._get_per_token_logps_and_entropies = watched
    move(trainer.model, 1, 0.01)
    inputs = trainer._generate_and_score_completions(rows)
    sampler, reference = passes[0], passes[1] if options["beta"] else None
    assert len(passes) == 1 + (reference is not None)
    move(trainer.model, 6, 0.02)
    trainer.current_gradient_accumulation_steps = 1
    loss = trainer._compute_loss(trainer.model, inputs)
    policy = passes[-1]
    loss.backward()
    mask = inputs["completion_mask"].bool()
    assert mask.sum(1).tolist() == [len(ids) for ids in drawn]
    rows_of = lambda values: [row[counts].tolist() for row, counts in zip(values.detach(), mask)]
    metrics = {key: trainer._metrics["train"][key][-1] for key in KEYS if key in trainer._metrics["train"]}
    numbers = dict(policy=rows_of(policy), sampler=rows_of(sampler))
    if reference is not None:
        numbers["reference"] = rows_of(reference)
    return numbers, dict(advantages=inputs["advantages"].tolist(), loss=loss.item(), grads=rows_of(policy.grad),
                         metrics=metrics)


def liger(shared, advantages, loss_type, beta, epsilon=0.2, epsilon_high=None, scale_rewards=None,
          use_bias_correction_kl=True, **options):
    """Liger's loss of the same samples, and its gradient."""
    lengths = [len(row) for row in shared["policy"]]
    pad = lambda rows: torch.tensor([row + [0.0] * (max(lengths) - len(row)) for row in rows], dtype=torch.float64)
    policy = pad(shared["policy"]).requires_grad_()
    mask = pad([[1.0] * length for length in lengths])
    loss, _ = LigerFusedLinearGRPOFunction.ppo_loss_fn(
        policy, mask, torch.tensor(advantages, dtype=torch.float64), mask, pad(shared["reference"]),
        pad(shared["sampler"]), epsilon, epsilon_high or epsilon, beta, loss_type, LONGEST,
        use_bias_correction_kl=use_bias_correction_kl, **options)
    loss.backward()
    return dict(loss=loss.item(), grads=[row[:length].tolist() for row, length in zip(policy.grad, lengths)])


def main():
    shared, cases = {}, {}
    for name, options in CASES.items():
        options = dict(beta=0.0) | options
        numbers, found = run(**options)
        for key, values in numbers.items():
            assert shared.setdefault(key, values) == values, key
        cases[name] = dict(options=options) | found
        print(f"{name}: loss {found['loss']:.6f}, {found['metrics']}")
    for name, case in cases.items():
        options = case["options"]
        # Liger has no RLOO, and refuses CISPO with a ratio of completions.
        if "rloo" not in options and name != "cispo, sequence":
            case["liger"] = liger(shared, case["advantages"], **options)
    ratios = [p - s for ps, ss in zip(shared["policy"], shared["sampler"]) for p, s in zip(ps, ss)]
    print("ln ratios from", min(ratios), "to", max(ratios))
    found = dict(trl=trl.__version__, liger=importlib.metadata.version("liger-kernel"), transformers=transformers.__version__, torch=torch.__version__, longest=LONGEST,
                 rewards=REWARDS, groups=[i // EACH for i in range(len(REWARDS))], **shared, cases=cases)
    rounded = json.loads(json.dumps(found), parse_float=lambda text: float(f"{float(text):.9g}"))
    (ROOT / "tests" / "data" / "grpo.json").write_text(json.dumps(rounded) + "\n")


main()
