"""Training steps of TRL's SFT, for scripts/compact_steps.py: sft.json and sft.safetensors.

    python3 -m venv .venv && .venv/bin/pip install torch==2.15.0 transformers==5.24.0 trl==1.16.0
    .venv/bin/python scripts/sft_steps.py FOLDER

The loss is `SFTTrainer.compute_loss` itself, with a stub of the trainer: the head before it, which TRL
computes in f32, is a log-softmax in f64 of logits that are a leaf. `num_items` is the number of tokens of
the whole step, of which the batch may be a part.
"""
import collections
import json
import pathlib
import sys
import types

import torch
import trl
from safetensors.torch import save_file

ROWS, TIME, VOCAB = 4, 7, 6
CASES = [("nll", None), ("nll", 31), ("dft", None), ("dft", 31)]


def stub(loss_type):
    """As much of a trainer as `compute_loss` asks for."""
    accelerator = types.SimpleNamespace(num_processes=1, parallelism_config=None, gather_for_metrics=lambda x: x)
    return types.SimpleNamespace(
        model=types.SimpleNamespace(training=True), aux_loss_enabled=False, accelerator=accelerator,
        compute_loss_func=None, label_smoother=None, get_tp_size=lambda: 1, _tp_size=1, _total_train_tokens=0,
        _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
        args=types.SimpleNamespace(loss_type=loss_type, average_tokens_across_devices=True))


def model(logits):
    def forward(labels, fused_lm_head, **_):
        assert fused_lm_head
        labels, words = labels[:, 1:], logits[:, :-1].log_softmax(-1)
        mask = labels != -100
        picked = words.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        # Entropy and hits are logged, and not compared here.
        nothing = torch.zeros_like(picked)
        return types.SimpleNamespace(log_probs=picked.masked_fill(~mask, 0), label_mask=mask, entropy=nothing,
                                     is_top1=nothing)

    return forward


def step(loss_type, num_items, seed):
    made = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(ROWS, TIME, VOCAB, generator=made, dtype=torch.float64)
    tokens = torch.randint(VOCAB, (ROWS, TIME), generator=made)
    # Completions of 6, 3, 1 and 0 tokens after a prompt, and padding.
    lengths, places = torch.tensor([6, 3, 1, 0]), torch.arange(TIME)
    mask = (places >= 1) & (places <= lengths[:, None])
    logits.requires_grad_()
    inputs = dict(input_ids=tokens, labels=tokens.masked_fill(~mask, -100), attention_mask=torch.ones_like(tokens))
    items = None if num_items is None else torch.tensor(num_items)
    loss = trl.SFTTrainer.compute_loss(stub(loss_type), model(logits), inputs, num_items_in_batch=items)
    loss.backward()
    return loss.item(), dict(tokens=tokens, mask=mask.to(torch.uint8), logits=logits.detach(), grad_logits=logits.grad)


def main():
    out = pathlib.Path(sys.argv[1])
    cases, tensors = [], {}
    for i, (loss_type, num_items) in enumerate(CASES):
        loss, found = step(loss_type, num_items, i)
        spec = {"loss_type": loss_type} | ({} if num_items is None else {"num_items": num_items})
        cases.append(dict(id=f"sft_{i}", peer="trl.sft", spec=spec, loss=loss, metrics={}))
        tensors |= {f"sft_{i}/{name}": tensor.contiguous() for name, tensor in found.items()}
    (out / "sft.json").write_text(json.dumps(cases))
    save_file(tensors, out / "sft.safetensors")
    print(trl.__version__, torch.__version__, [(case["spec"], case["loss"]) for case in cases])


main()
